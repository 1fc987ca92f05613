"""Three loaders of the same pictures with the same decoder, and what one pass with one of them takes.

`data_loading.py` runs this file, once per measurement, in a process of its own: python loaders.py '{"loader": ...}'.
"""

import importlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnce_dist.config.schema import S3, Data
from nnce_dist.data import pictures
from nnce_dist.data.images import decode
from nnce_dist.data.pictures import to_unit
from nnce_dist.data.stream import open_stream

SIZE = 64
Batch = tuple[Tensor, Tensor]  # float32 (B, 3, 64, 64) in [-1, 1], int64 (B,)


@dataclass(frozen=True)
class Task:
    """One measurement."""

    loader: str
    shards: str  # the pattern of the tars, a path or s3://
    mds: str  # the folder or prefix of the same pictures in MosaicML's format
    endpoint: str  # of the S3 server; empty on disk
    scratch: str  # an empty folder for local copies
    num_samples: int  # of an epoch
    num_classes: int
    start: int  # the position to begin at
    workers: int
    batch: int = 256


def ours(task: Task) -> Iterator[Batch]:
    """`workers` threads decode ahead."""
    settings = S3(endpoint_url=task.endpoint, addressing="path")
    data = Data(num_classes=task.num_classes, image_size=SIZE, flip=False, loader_workers=task.workers, s3=settings)
    source = open_stream(task.shards, data, task.scratch, train=True)
    for batch in source.batches(0, task.start, task.batch):
        yield batch.x, batch.labels


def webdataset(task: Task) -> Iterator[Batch]:
    """Shards in random order, a shuffle buffer, decoding in `workers` processes; s3:// through s3fs."""
    import webdataset as wds

    wds.gopen_schemes["s3"] = lambda url, *_, **__: _filesystem(os.getpid(), task.endpoint).open(url)
    dataset = wds.WebDataset(task.shards, shardshuffle=1000, seed=0, empty_check=False).shuffle(1000)
    batches = dataset.map(_decoded_members).batched(task.batch, collation_fn=collate)
    for pixels, labels in wds.WebLoader(batches, batch_size=None, num_workers=task.workers):
        yield torch.from_numpy(to_unit(pixels.numpy())), labels


def webdataset_curl(task: Task) -> Iterator[Batch]:
    """The same from addresses that need no key, through webdataset's own opener: one curl per shard, streaming."""
    return webdataset(replace(task, shards=task.shards.replace("s3:/", task.endpoint)))


def mosaicml(task: Task) -> Iterator[Batch]:
    """StreamingDataset with its default shuffle, decoding in `workers` processes."""
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of an earlier process that was killed

    class Pictures(StreamingDataset):
        def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
            sample = super().__getitem__(number)
            return decode(sample["picture"], SIZE, False, "sample"), sample["label"]

    os.environ["S3_ENDPOINT_URL"] = task.endpoint
    place = {"remote": task.mds, "local": task.scratch} if task.endpoint else {"local": task.mds}
    dataset = Pictures(**place, shuffle=True, batch_size=task.batch)
    for part in dataset.streams:  # or forked workers share a connection of its S3 client, and mix up what they read
        part._downloader.clean_up()
    loader = StreamingDataLoader(dataset, batch_size=task.batch, num_workers=task.workers, collate_fn=collate)
    if task.start:
        loader.load_state_dict(dataset.state_dict(task.start, from_beginning=True) | {"epoch": 0})
    for pixels, labels in loader:
        yield torch.from_numpy(to_unit(pixels.numpy())), labels


LOADERS: dict[str, tuple[str, Callable[[Task], Iterator[Batch]]]] = {
    "ours": ("nnce_dist.data.s3", ours),
    "webdataset": ("webdataset", webdataset),
    "webdataset, curl": ("webdataset", webdataset_curl),
    "mosaicml": ("streaming", mosaicml),
}


@cache
def _filesystem(process: int, endpoint: str):
    """An S3 client of this process: it does not survive a fork."""
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=endpoint, config_kwargs={"s3": {"addressing_style": "path"}})


def _decoded_members(sample: dict) -> tuple[np.ndarray, int]:
    return decode(sample.get("jpg") or sample["png"], SIZE, False, sample["__key__"]), int(sample["cls"])


def collate(samples: list[tuple[np.ndarray, int]]) -> Batch:
    """Pixels uint8 (B, 3, 64, 64) and labels (B,)."""
    pixels, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


@dataclass(frozen=True)
class Measured:
    """What one pass took."""

    first_batch: float  # seconds from nothing but imports
    images: int
    seconds: float  # from the first batch to the last
    cpu_seconds: float  # of all its processes, over the same time
    peak_bytes: int  # of all its processes, shared pages counted once


def measure(task: Task, limit: int) -> Measured:
    """Runs a loader over `limit` samples at most; a first batch alone with limit 1."""
    module, load = LOADERS[task.loader]
    importlib.import_module(module)
    peak = Peak()
    start = time.perf_counter()
    seen = 0
    for pixels, _ in load(task):
        if not seen:
            first, first_cpu, first_seen = time.perf_counter(), cpu_seconds(), len(pixels)
        seen += len(pixels)
        if seen >= limit:
            break
    end = time.perf_counter()
    end_cpu = max(cpu_seconds() for _ in range(3))  # one that ends while it is looked for is in the next
    return Measured(first - start, seen - first_seen, end - first, end_cpu - first_cpu, peak.stop())


def processes() -> list[Path]:
    """This process and all that descend from it, in /proc."""
    found, waiting = [], [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            for children in process.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
            found.append(process)
        except OSError:  # it ended meanwhile
            continue
    return found


def cpu_seconds() -> float:
    """Of this process and all its descendants, the ended ones too."""
    ticks = 0
    for process in processes():
        with suppress(OSError):  # it ended meanwhile, and counts where it was waited for
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Peak:
    """Watches the memory of all processes (proportional set size) four times a second."""

    def __init__(self) -> None:
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The largest sum that was seen, bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, sum(map(_proportional_bytes, processes())))
            if self._ended.wait(0.25):
                return


def _proportional_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    pictures.MEMORY_BOUND = 0  # as with a set that does not fit: what is decoded is not kept
    task, limit = json.loads(sys.argv[1])
    print(json.dumps(asdict(measure(Task(**task), limit))), flush=True)
    for worker in multiprocessing.active_children():  # a loader that is stopped in mid-epoch would wait for them
        worker.kill()
    os._exit(0)
