"""Pictures into WebDataset shards with their indexes: the same bytes every time, shard by shard, in several processes.

A set is described by `dataset.json`, which is stored first; an index is stored after its shard. So a pack that was
killed goes on with the shards that have no index, and only with the source and the settings it began with.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config.schema import S3
from .images import fit
from .index import SUFFIX, index_shard
from .locks import lock
from .parallel import spread
from .set_index import set_url, store_set
from .source import DESCRIPTION, Sample, Samples, Source
from .store import Store, local_path, open_store, scheme_of
from .tar import write_tar

_PATIENCE = 300.0  # seconds to wait for another process that packs into the same folder


def pack(
    source: Source,
    out: str | Path,
    shard_size: int,
    image_size: int = 0,
    processes: int = 1,
    settings: S3 | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Writes a source as shards of `shard_size` samples into a folder or under an s3:// prefix; gives their pattern.

    Pictures stay as they are, or are brought to `image_size` as `data.resize` does it; each is decoded once, so that
    damaged ones are found now. `on_progress` hears how many samples are done, first those of an earlier run. Raises
    ValueError or OSError with one line, among others where `out` holds something else.
    """
    folder, total = _folder(str(out)), len(source.samples)
    firsts = range(0, total, shard_size)
    pattern = f"shard-{{{0:06d}..{len(firsts) - 1:06d}}}.tar"
    write = _ShardWriter(folder, image_size, settings or S3())
    store = open_store([f"{folder}/{DESCRIPTION}"], write.settings)
    _claim(store, folder, _description(source, pattern, shard_size, image_size))
    with _alone(folder):
        there = {blob.url for blob in store.objects(folder)}
        missing = [first for first in firsts if write.url(first // shard_size) + SUFFIX not in there]
        done = total - sum(min(shard_size, total - first) for first in missing)
        on_progress(done)
        jobs = ((first // shard_size, first, source.samples[first : first + shard_size]) for first in missing)
        for num_samples in spread(write, jobs, min(processes, max(len(missing), 1))):
            on_progress(done := done + num_samples)
        urls = [write.url(number) for number in range(len(firsts))]
        if missing or set_url(urls) not in there | {None}:
            store_set(urls, store)
    return f"{folder}/{pattern}"


@dataclass(frozen=True)
class _ShardWriter:
    """What each process does."""

    folder: str
    image_size: int
    settings: S3

    @cached_property
    def _store(self) -> Store:
        return open_store([self.url(0)], self.settings)

    def url(self, number: int) -> str:
        return f"{self.folder}/shard-{number:06d}.tar"

    def __call__(self, job: tuple[int, int, Samples]) -> int:
        number, first, part = job
        url = self.url(number)
        with tempfile.TemporaryFile() as file:  # it has no name, so that nothing of it stays after a kill
            write_tar(file, ((f"{key:08d}", self._members(sample)) for key, sample in enumerate(part, first)))
            path = Path(f"/proc/self/fd/{file.fileno()}")
            index = index_shard(path, url)
            self._store.put(url, path)
        self._store.put(url + SUFFIX, index.to_bytes())
        return len(index)

    def _members(self, sample: Sample) -> dict[str, bytes]:
        picture = fit(sample.picture, self.image_size, sample.name)
        return {"png" if picture.startswith(b"\x89PNG") else "jpg": picture, **sample.others}


def _folder(out: str) -> str:
    if "{" in out or "}" in out:
        raise ValueError(f"{out!r}: shards go to one folder or prefix; its name may have no braces")
    out = out.rstrip("/") or "/"
    if scheme_of(out) == "file":
        return os.path.abspath(local_path(out))
    if not out.lower().startswith("s3://"):
        raise ValueError(f"{out!r}: write s3://bucket/prefix")
    return out


def _description(source: Source, pattern: str, shard_size: int, image_size: int) -> dict:
    return {
        "source": source.identity,
        "shards": pattern,
        "shard_size": shard_size,
        "num_samples": len(source.samples),
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
        "image_size": image_size,
    }


def _claim(store: Store, folder: str, description: dict) -> None:
    """Stores the description, or finds the same one there; raises ValueError for any other."""
    url = f"{folder}/{DESCRIPTION}"
    try:
        found = store.read(url)
    except FileNotFoundError:
        strange = [blob.url for blob in store.objects(folder) if blob.url.endswith((".tar", ".tar.gz", ".tgz"))]
        if strange:
            raise ValueError(
                f"{folder}: holds shards ({strange[0]}) but no {DESCRIPTION}, so they may be of another source; "
                "pack into another folder"
            ) from None
        return store.create(url, (json.dumps(description, indent=1) + "\n").encode())
    other = [key for key, value in description.items() if json.loads(found).get(key) != value]
    if other:
        raise ValueError(
            f"{folder}: holds shards of another source or other settings ({', '.join(other)} in {DESCRIPTION}); "
            "pack into another folder, or remove this one"
        )
    return None


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """On a disk one process packs into a folder, others wait; what killed ones left unfinished is cleared away."""
    if scheme_of(folder) != "file":
        yield
        return
    with open(f"{folder}/{DESCRIPTION}", "rb") as file:
        lock(file, Path(file.name), _PATIENCE)
        for unfinished in Path(folder).glob("shard-*.tmp"):
            unfinished.unlink()
        yield
