"""The time from imports to the first batch of a set as large as ImageNet, wherever in the epoch a run goes on.

Run: python tests/benchmarks/resume.py [--shards 1282] [--shard-size 1000] [--repeats 3]; it needs 150 MB of disk.

The indexes are those of a set of 1,282,000 samples; all samples of a shard are one picture, so that a shard has 14 kB
and takes no time to fetch: what is measured is what grows with the set, and the first batch of 256. Every start is a
process of its own: the first one with an empty cache folder, the others with the copies of all shards.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from data_loading import ENVIRONMENT, SECONDS, places

from nnce_dist.config.schema import S3, Data
from nnce_dist.data import synthetic
from nnce_dist.data.files import FileStore
from nnce_dist.data.index import SUFFIX, index_shard
from nnce_dist.data.set_index import set_url, store_set
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream
from nnce_dist.data.tar import write_tar

BATCH = 256


def make_set(folder: Path, num_shards: int, shard_size: int) -> str:
    """Shards of one picture each whose indexes tell of `shard_size` samples; gives their pattern."""
    folder.mkdir(parents=True)
    for shard, sample in enumerate(synthetic.source(range(num_shards), 0).samples[:]):
        path = folder / f"shard-{shard:06d}.tar"
        with open(path, "w+b") as file:
            write_tar(file, [("0", {"png": sample.picture, "cls": b"0"})])
        index = index_shard(path, path.name)
        rows = {name: np.repeat(getattr(index, name), shard_size, 0) for name in ("spans", "labels", "checksums")}
        keys = np.array([f"{shard * shard_size + row:08d}".encode() for row in range(shard_size)])
        Path(f"{path}{SUFFIX}").write_bytes(replace(index, keys=keys, **rows).to_bytes())
    return f"shard-{{000000..{num_shards - 1:06d}}}.tar"


def start(pattern: str, endpoint: str, cache: str, position: int, shard_size: int, fetch_all: bool) -> dict[str, float]:
    """Seconds and CPU-seconds until the first batch, in this process; then a sample of every shard, if so asked."""
    if endpoint:
        import nnce_dist.data.s3  # noqa: F401 (imports are not counted)
    data = Data(num_classes=8, loader_workers=2, s3=S3(endpoint_url=endpoint, addressing="path"))
    began, cpu = time.perf_counter(), time.process_time()
    source = open_stream(pattern, data, cache, train=True)
    next(source.batches(0, position // BATCH * BATCH, BATCH))
    took = {"seconds": time.perf_counter() - began, "CPU-seconds": time.process_time() - cpu}
    if fetch_all:
        source.raw(range(0, len(source), shard_size))
    return took


def measured(*task) -> dict[str, float]:
    """`start` in a process of its own."""
    words = [sys.executable, __file__, "--task", json.dumps(task)]
    finished = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def row(name: str, starts: list[dict[str, float]]) -> str:
    """Median and range of both figures."""
    cells = []
    for key in ("seconds", "CPU-seconds"):
        figures = [one[key] for one in starts]
        cells.append(f"{statistics.median(figures):.2f} ({min(figures):.2f} to {max(figures):.2f})")
    return f"| {name} | {' | '.join(cells)} |"


def measure_all(num_shards: int, shard_size: int, repeats: int, scratch: Path) -> None:
    """Prints the table."""
    bucket, cache = scratch / "store" / "bucket", scratch / "cache"
    pattern = make_set(bucket / "set", num_shards, shard_size)
    urls, total = expand(f"{bucket / 'set'}/{pattern}"), num_shards * shard_size

    def first(place, position: int = 0) -> dict[str, float]:
        shutil.rmtree(cache, ignore_errors=True)
        return measured(f"{place.folder}/set/{pattern}", place.endpoint, str(cache), position, shard_size, True)

    print(f"{total:,} samples in {num_shards:,} shards, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| from | start | seconds to the first batch | CPU-seconds |\n|---|---|---|---|")
    for own_index in (False, True):
        if own_index:
            store_set(urls, FileStore())
        with places(bucket.parent) as there:
            for place in there:
                what = "with the set's index" if own_index else "with the shards' indexes alone"
                print(row(f"{place.name} | first, {what}", [first(place) for _ in range(repeats)]), flush=True)
                for share in (0.0, 0.5, 0.999) if own_index else ():
                    task = (
                        f"{place.folder}/set/{pattern}",
                        place.endpoint,
                        str(cache),
                        int(share * total),
                        shard_size,
                        False,
                    )
                    later = [measured(*task) for _ in range(repeats)]
                    print(row(f"{place.name} | later, at {share:.1%} of the epoch", later), flush=True)
    Path(set_url(urls)).unlink()


def main() -> None:
    """Makes the set and measures, or, as its own child, starts once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1282)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.task:
        print(json.dumps(start(*chosen.task)), flush=True)
        os._exit(0)  # fetching ahead goes on
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as scratch:
        measure_all(chosen.shards, chosen.shard_size, chosen.repeats, Path(scratch))


if __name__ == "__main__":
    main()
