"""Loading pictures: this project's stream beside webdataset's own loader and MosaicML Streaming, from disk and S3.

Run: make bench-data ARGS='[--shards PATTERN] [--png] [--mosaicml PYTHON] [--repeats 3]'

The same pictures, the same decoder, the same cores: every measurement is one pass over an epoch in a process of its own
with empty caches, and a second process that begins in mid-epoch with the caches of the first. The loaders take turns in
random order within each repeat; a ratio is the median over repeats. A measurement waits for a calm machine, and is made
again if other processes took more than a tenth of it. Images per CPU-second count all processes of a loader, and depend
least on what else goes on. S3 is a server on this machine (`s3_files.py`).
webdataset has no opener for s3://: it gets s3fs, and in another row addresses that its own curl reads without a key.

MosaicML Streaming is no dependency of the project. It runs with another Python that sees this one's packages:

    python -m venv /tmp/mosaicml
    echo $PWD/.venv/lib/python3.*/site-packages > /tmp/mosaicml/lib/python3.*/site-packages/project.pth
    /tmp/mosaicml/bin/pip install mosaicml-streaming==0.13.0 'torchvision==0.28.*'

PyPI's torchvision needs PyPI's torch with CUDA. Beside a CPU build it cannot be imported (streaming does, and uses none
of its kernels) unless `torch.library.define` has named "torchvision::nms" and "torchvision::qnms" before.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from calm import calm
from loaders import SIZE, Measured, Task

from nnce_dist.config.schema import S3
from nnce_dist.data import synthetic
from nnce_dist.data.images import decode, encode_png
from nnce_dist.data.pack import pack
from nnce_dist.data.source import Sample, Source
from nnce_dist.data.sources import open_source

HERE = Path(__file__).parent
SHARD_SIZE = 1000
DELAYS = {"S3": 0.0, "S3, 50 ms": 0.05}  # seconds before every answer
SECONDS = 300  # for one process
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
}


@dataclass(frozen=True)
class Place:
    """Where the pictures lie."""

    name: str
    folder: str  # a path or s3://
    endpoint: str


def pictures(chosen: argparse.Namespace) -> Source:
    """`chosen.samples` pictures: those of the shards, repeated where they are fewer, or made ones."""
    found = open_source(chosen.shards, None, S3()) if chosen.shards else synthetic.source(range(chosen.samples), 0)
    read = list(found.samples[: chosen.samples])
    if chosen.png:
        read = [Sample(one.name, _as_png(one), one.others) for one in read]
    repeated = (read * -(-chosen.samples // len(read)))[: chosen.samples]
    return Source(repeated, "benchmark", found.num_classes)


def _as_png(sample: Sample) -> bytes:
    return encode_png(decode(sample.picture, SIZE, False, sample.name).transpose(1, 2, 0).copy())


@contextmanager
def places(folder: Path) -> Iterator[list[Place]]:
    """The disk, and servers over the same folder."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_server(folder, delay)) for name, delay in DELAYS.items()}
        yield [Place("disk", str(folder / "bucket"), "")] + [
            Place(name, "s3://bucket", endpoint) for name, endpoint in servers.items()
        ]


@contextmanager
def _server(folder: Path, delay: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "s3_files.py"), str(folder), "--delay", str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(timeout=10)


def run(python: str, task: Task, limit: int) -> Measured:
    """One measurement in a process of its own."""
    words = [python, str(HERE / "loaders.py"), json.dumps([asdict(task), limit])]
    finished = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    return Measured(**json.loads(finished.stdout.splitlines()[-1]))


def both(python: str, task: Task, scratch: Path, picture_bytes: float, limits: tuple[int, float]) -> dict[str, float]:
    """A whole pass with empty caches, then the first batch in mid-epoch with those that it left."""

    def whole_pass() -> Measured:
        shutil.rmtree(task.scratch, ignore_errors=True)
        os.mkdir(task.scratch)
        return run(python, task, task.num_samples)

    task = replace(task, scratch=str(scratch / "copies"))
    whole, others = calm(whole_pass, *limits)
    middle = replace(task, start=task.num_samples // 2 // task.batch * task.batch)
    resumes = not task.loader.startswith("webdataset")
    return {
        "images/s": whole.images / whole.seconds,
        "MB/s": whole.images / whole.seconds * picture_bytes / 1e6,
        "images/CPU-s": whole.images / whole.cpu_seconds,
        "first batch, s": whole.first_batch,
        "resume, s": calm(lambda: run(python, middle, 1), *limits)[0].first_batch if resumes else math.nan,
        "peak MB": whole.peak_bytes / 1e6,
        "others, %": others,
    }


Figures = dict[tuple[str, str], list[dict[str, float]]]  # of a place and a loader, by repeat
COLUMNS = ("images/s", "MB/s", "images/CPU-s", "first batch, s", "resume, s", "peak MB", "others, %")


def report(figures: Figures) -> None:
    """Prints a table of medians; the ratios are ours over theirs, repeat by repeat."""
    print(f"| from | loader | {' | '.join(COLUMNS)} | ours / theirs, images/s | images/CPU-s |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 2))
    for (place, loader), repeats in figures.items():
        cells = [_written(statistics.median(one[name] for one in repeats)) for name in COLUMNS]
        cells += [_ratio(figures[place, "ours"], repeats, name) for name in ("images/s", "images/CPU-s")]
        print(f"| {place} | {loader} | {' | '.join(cells)} |")


def _written(figure: float) -> str:
    if math.isnan(figure):
        return "cannot"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> str:
    """The median over repeats, and the range."""
    if ours is theirs:
        return ""
    ratios = [us[name] / them[name] for us, them in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Makes the sets, measures in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="pattern of 64x64 pictures; made ones if not given")
    parser.add_argument("--png", action="store_true", help="encode the pictures as PNG")
    parser.add_argument("--samples", type=int, default=34_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--tries", type=int, default=5, help="measurements until one is undisturbed; 1 takes it as it is"
    )
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a calm machine, each time")
    parser.add_argument("--mosaicml", default=sys.executable, help="Python that has mosaicml-streaming")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
        measure_all(chosen, Path(scratch))


def measure_all(chosen: argparse.Namespace, scratch: Path) -> None:
    """See `main`."""
    bucket = scratch / "store" / "bucket"
    source = pictures(chosen)
    picture_bytes = statistics.mean(len(sample.picture) for sample in source.samples)
    pattern = Path(pack(source, bucket / "tar", SHARD_SIZE)).name
    pythons = dict.fromkeys(("ours", "webdataset", "webdataset, curl"), sys.executable)
    if subprocess.run([chosen.mosaicml, "-c", "import streaming"], capture_output=True).returncode == 0:
        pythons["mosaicml"] = chosen.mosaicml
        copy = [chosen.mosaicml, str(HERE / "mds.py"), str(bucket / "tar" / pattern), str(bucket / "mds")]
        subprocess.run(copy, env=ENVIRONMENT, check=True, timeout=SECONDS)
    else:
        print("MosaicML Streaming: not installed")
    num_samples, num_classes = len(source.samples), source.num_classes
    print(f"{num_samples:,} pictures of {picture_bytes:,.0f} bytes, {chosen.workers} workers, {os.cpu_count()} cores")
    del source
    figures: Figures = {}
    with places(bucket.parent) as there:
        turns = [(place, loader) for place in there for loader in pythons if place.endpoint or "curl" not in loader]
        for _ in range(chosen.repeats):
            for place, loader in random.sample(turns, len(turns)):
                shards, mds = f"{place.folder}/tar/{pattern}", f"{place.folder}/mds"
                task = Task(
                    loader, shards, mds, place.endpoint, "", num_samples, num_classes, 0, workers=chosen.workers
                )
                measured = both(pythons[loader], task, scratch, picture_bytes, (chosen.tries, chosen.patience))
                print(f"{place.name}, {loader}: {json.dumps(measured)}", file=sys.stderr)
                figures.setdefault((place.name, loader), []).append(measured)
        report({(place.name, loader): figures[place.name, loader] for place, loader in turns})


if __name__ == "__main__":
    main()
