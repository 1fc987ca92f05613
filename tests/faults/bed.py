"""A short run of the laptop preset in processes of its own, to which one fault is done.

Every process carries a mark in its environment and a key of AWS that must never be seen again. What they print is kept
in files. When a bed is closed its processes are dead and its folder is gone.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "integration"))

import processes  # noqa: E402 - lies in the folder named above
from witness import Witness  # noqa: E402

CANARY_ID, CANARY_SECRET = "AKIACANARYCANARY0000", "canary/secret+canary/secret+canary/secre"
SAMPLES, BATCH, INTERVAL = 1024, 32, 128  # of the run: its length, a step, from checkpoint to checkpoint
SETTINGS = [
    "run.stages=[teacher]",
    "teacher.weights=",
    "teacher.steps=2",
    f"teacher.training.samples={SAMPLES}",
    f"teacher.training.batch={BATCH}",
    "teacher.training.micro_batch=16",  # the share of one of two workers: one worker adds up in the same order
    f"teacher.training.checkpoint_every={INTERVAL}",
    f"teacher.training.log_every={BATCH}",
    "data.made.train=512",
    "data.made.val=64",
    "data.made.shard_size=64",
    "evaluation.num_samples=16",
    "evaluation.draws=1",
    "evaluation.batch=16",
]
DEADLINE = 300.0  # seconds in which every start must have ended, one way or the other; the machine may be busy


class Attempt:
    """One start of the command."""

    def __init__(self, command: list[str], environment: dict[str, str], said: Path, witness: Witness):
        self._out, self._err, self._witness = said.with_suffix(".out"), said.with_suffix(".err"), witness
        self._mark = environment[processes.MARK]
        self.started = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=err)

    @property
    def said(self) -> str:
        """What it has printed as errors so far."""
        return self._err.read_text(errors="replace")

    @property
    def printed(self) -> str:
        """What it has printed as results so far."""
        return self._out.read_text(errors="replace")

    def reach(self, samples_seen: int) -> None:
        """Returns when the run's log has come to that many samples."""

        def arrived() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before:\n{self.said}"
            return self._witness.position >= samples_seen

        processes.wait_until(arrived, DEADLINE, f"{samples_seen} samples")

    def trained(self, job: Path) -> None:
        """Returns when the job has its result; what would follow is killed, with all that the command has started.

        That is the measuring of samplers, on Ray each by a new group of workers: a minute that shows little.
        """
        done = lambda: (job / "result.json").exists() or self.process.poll() is not None  # noqa: E731
        processes.wait_until(done, DEADLINE, "the job's result")
        processes.end(self._mark)
        self.finish(0, -signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sends a signal to the process that a person started."""
        self.process.send_signal(number)

    def finish(self, *codes: int, within: float = DEADLINE) -> str:
        """Waits for the end and gives what was said on standard error (invariant I1).

        AssertionError when it does not end in time, ends with another code than these (0 when none is given), shows a
        stack trace, or fails without a line that begins with "error: ".
        """
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"I1: not ended after {within:.0f} s; said: {self.said[-800:]}") from None
        said = self.said
        assert code in (codes or (0,)), f"I1: ended with {code}; said: {said[-1500:]}"
        assert "Traceback (most recent call last)" not in said, f"I1: a stack trace: {said[-1500:]}"
        if code in (1, 2):
            assert any(line.startswith("error: ") for line in said.splitlines()), f"I1: no cause: {said[-800:]}"
        return said

    def refused(self, *words: str, code: int = 2) -> str:
        """The line of the refusal, which must hold all these words."""
        said = self.finish(code)
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        for word in words:
            assert any(word in line for line in lines), f"{word!r} is not in the refusal: {said}"
        return next(line for line in lines if words[0] in line).removeprefix("error: ")


class Bed:
    """One run that is started as often as the fault asks for. Use as a context manager."""

    def __init__(self, cache: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="nnce-fault-"))
        self.runs = self.folder / "runs"
        self.attempts: list[Attempt] = []
        self.cache = cache
        self.settings = [*SETTINGS, f"data.cache_dir={cache}"]
        self._ended = ExitStack()

    def __enter__(self) -> "Bed":
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through all that clears up
        self._ended.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.environment = processes.outside() | self._ended.enter_context(processes.ray_environment())
        self._ended.callback(self.kill_all)
        for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "NNCE_FAULT"):
            self.environment.pop(name, None)
        self.environment |= {
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(HERE / "injected"))),
            "AWS_ACCESS_KEY_ID": CANARY_ID,
            "AWS_SECRET_ACCESS_KEY": CANARY_SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }
        self.witness = self._ended.enter_context(Witness(self.job, BATCH))
        return self

    def __exit__(self, *error) -> None:
        self._ended.close()

    @property
    def job(self) -> Path:
        """The folder of the job that is watched."""
        return self.runs / "imagenet64-laptop" / "teacher"

    @property
    def mark(self) -> str:
        """The mark of all processes of this bed."""
        return self.environment[processes.MARK]

    @property
    def ray(self) -> Path:
        """Where its Ray writes to."""
        return Path(self.environment["RAY_TMPDIR"])

    @property
    def homes(self) -> list[Path]:
        """Everywhere that a process of this bed may have written to."""
        return [self.folder, self.ray]

    def start(self, *settings: str, workers: int = 0, fault: str = "") -> Attempt:
        """Starts the command: in one process, or with so many Ray workers; `fault` is one of `injected/`."""
        where = [f"workers.count={workers}"] if workers else ["workers.runtime=local"]
        words = [*self.settings, f"run.dir={self.runs}", *where, *settings]
        command = [sys.executable, "pipelines/imagenet64.py", *words]
        said = self.folder / f"said-{len(self.attempts)}"
        environment = self.environment | ({"NNCE_FAULT": fault} if fault else {})
        self.attempts.append(Attempt(command, environment, said, self.witness))
        return self.attempts[-1]

    def fault(self) -> None:
        """The moment of the fault; the run has recovered when its log goes beyond where it was now."""
        self.witness.fault()

    def kill(self, attempt: Attempt, number: int = signal.SIGKILL) -> None:
        """The fault is a signal to the command's process."""
        self.fault()
        attempt.signal(number)

    def kill_all(self) -> None:
        """Ends every process of this bed."""
        processes.end(self.mark)

    def pids(self, *words: str) -> list[int]:
        """Living processes of this bed whose command line holds one of the words."""
        lines = {pid: processes.command_line(pid) for pid in processes.marked(self.mark)}
        return [pid for pid, line in lines.items() if any(word in line for word in words)]

    def checkpoints(self) -> list[Path]:
        """Committed checkpoints of the job, the oldest first."""
        return sorted((self.job / "checkpoints").glob("[0-9]" * 12))
