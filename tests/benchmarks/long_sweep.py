"""A sweep of 200 short trials on Ray: is memory flat, is anything left behind, what costs a trial beside training?

Run: make bench-sweep    (python tests/benchmarks/long_sweep.py [--trials 200] [--per-process 25])

Memory is that of the driver and of everything that it started, Ray's own processes among them; what is left behind are
processes, and files in the folder for temporary ones beside Ray's logs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import processes

from nnce_dist.metrics.jsonl import training_records

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 3600
SPACE = ["objective.noise_magnitude=loguniform(1,1e4)", "density_ratio.optimiser.lr=loguniform(0.005,0.2)"]
RAYS_OWN = {"ray", "token"}  # its logs, and the key to a Ray of this environment
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Found:
    """What a sweep cost, and what it left."""

    trials: int
    seconds: float
    training_seconds: float  # of one process: as many trained at a time as there are cores
    memory: list[tuple[float, float]]  # (part of the trials that had ended, MiB)
    processes_left: int
    files_left: list[str]

    @property
    def beside(self) -> float:
        """Seconds a trial beyond its training."""
        return (self.seconds - self.training_seconds) / self.trials

    def memory_between(self, first: float, last: float) -> float:
        """The most MiB while such a part of the trials had ended."""
        return max((mib for done, mib in self.memory if first <= done <= last), default=float("nan"))


def sweep(trials: int, per_process: int, samples: int) -> Found:
    """Runs one, looking at it every second."""
    with processes.ray_environment() as settings, tempfile.TemporaryDirectory() as folder:
        settings["TMPDIR"] = settings["RAY_TMPDIR"]
        space = [f"sweep.space.{one}" for one in SPACE]
        words = ["sweep.strategy=random", f"sweep.trials={trials}", "sweep.seeds=[]", f"run.dir={folder}"]
        words += [f"sweep.per_process={per_process}", f"density_ratio.training.samples={samples}"]
        line = [sys.executable, "pipelines/density_ratio.py", *words, *space]
        start = time.perf_counter()
        with open(f"{folder}/said", "w") as said:
            driver = subprocess.Popen(
                line, cwd=REPOSITORY, env=processes.outside() | settings, stdout=said, stderr=subprocess.STDOUT
            )
            memory = watch(driver, settings[processes.MARK], Path(folder), trials)
        seconds = time.perf_counter() - start
        if driver.returncode:
            raise RuntimeError(Path(folder, "said").read_text()[-3000:])
        processes.wait_until(lambda: not processes.marked(settings[processes.MARK]), 30, "the end of all processes")
        trained = training_seconds(Path(folder), per_process)
        files = sorted(set(os.listdir(settings["TMPDIR"])) - RAYS_OWN)
        return Found(trials, seconds, trained, memory, len(processes.marked(settings[processes.MARK])), files)


def watch(driver: subprocess.Popen, mark: str, folder: Path, trials: int) -> list[tuple[float, float]]:
    """Memory over the part of the trials that have ended, until the driver has."""
    memory, deadline = [], time.monotonic() + TIMEOUT
    while driver.poll() is None:
        if time.monotonic() > deadline:
            driver.kill()
        done = sum(1 for _ in folder.glob("*/density_ratio/*/result.json")) / trials
        memory.append((done, sum(map(resident, [driver.pid, *processes.marked(mark)])) / 2**20))
        time.sleep(1)
    return memory


def resident(pid: int) -> float:
    """Bytes of a process in memory that it shares with nobody; 0 once it has gone."""
    try:
        _, all_pages, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(all_pages) - int(shared)) * PAGE


def training_seconds(folder: Path, per_process: int) -> float:
    """Seconds that each process spent in training: trials of a pack share theirs."""
    last = [training_records(path.parent)[-1] for path in folder.glob("*/density_ratio/*/result.json")]
    return sum(one["steps"] * one["step_seconds"] for one in last) / per_process / os.cpu_count()


def main() -> None:
    """Prints what was found, packed and not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--per-process", type=int, nargs="+", default=[25, 1])
    parser.add_argument("--samples", type=int, default=51200)
    options = parser.parse_args()
    print(f"{options.trials} trials of {options.samples:,} samples, {os.cpu_count()} cores")
    for per_process in options.per_process:
        found = sweep(options.trials, per_process, options.samples)
        early, late = found.memory_between(0.2, 0.5), found.memory_between(0.75, 1)
        print(
            f"{per_process} to a process: {found.seconds:.0f} s in all, {found.beside:.2f} s a trial beside training; "
            f"memory {early:.0f} MiB while 20 to 50 % had ended, {late:.0f} MiB after 75 %; left behind: "
            f"{found.processes_left} processes, {len(found.files_left)} files {found.files_left[:4]}; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
