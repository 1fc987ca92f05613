"""The index of a whole set in one file: what the indexes of its shards say, in one request and without parsing each.

What counts remain the indexes of the shards: the set's own one tells which ones it was made from, and is passed over
where others lie beside the shards now, or none. It lies beside the shards, as `set-<digest of their names>.npz`.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .files import FileStore
from .index import SUFFIX, ShardIndex
from .parallel import in_threads
from .store import Blob, Store

MANY = 32  # shards; the indexes of fewer are read at once
_VERSION = 1
_REQUESTS = 32  # at a time


def set_url(urls: Sequence[str]) -> str | None:
    """Where the index of a set lies; None for few shards, or shards in several folders."""
    parts = [url.rpartition("/") for url in urls]
    if len(urls) < MANY or len({folder for folder, _, _ in parts}) > 1:
        return None
    folder, slash, _ = parts[0]
    return f"{folder}{slash}set-{_digest([name for _, _, name in parts])[:16]}.npz"


def store_set(urls: Sequence[str], store: Store) -> None:
    """Makes the index of a set from those beside its shards, where `set_url` has a place for it."""
    if (url := set_url(urls)) is None:
        return
    contents = list(in_threads(lambda one: store.read(one + SUFFIX), urls, _REQUESTS))
    indexes = [ShardIndex.from_bytes(content) for content in contents]
    if all(indexes):
        sums = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in contents]
        store.put(url, to_bytes(indexes, _origin(urls, [index.stored_bytes for index in indexes], sums)))


def stored_set(shards: Sequence[Blob], sidecars: Sequence[Blob | None], store: Store) -> list[ShardIndex] | None:
    """The indexes of all shards from the file beside them, or None where it was not made from these sidecars.

    On S3 an object's ETag tells its MD5; on a disk the file must not be older than a shard or a sidecar.
    """
    if (url := set_url([blob.url for blob in shards])) is None or None in sidecars:
        return None
    on_disk = store.endpoint == FileStore.endpoint
    try:
        made_at = int(store.peek(url, 1)[0].version) if on_disk else 0
        made = from_file(io.BytesIO(store.read(url)))
    except FileNotFoundError:
        return None
    if made is None or [index.stored_bytes for index in made[1]] != [shard.size for shard in shards]:
        return None
    if on_disk:
        fits = made_at >= max(int(one.version) for one in (*shards, *sidecars))
    else:
        sums = [one.version.strip('"') for one in sidecars]
        fits = made[0] == _origin([one.url for one in shards], [one.size for one in shards], sums)
    return made[1] if fits else None


def load(path: Path, origin: str) -> list[ShardIndex] | None:
    """The indexes in a local file, or None when it is not there, damaged or of another origin."""
    try:
        with open(path, "rb") as file:
            made = from_file(file)
    except FileNotFoundError:
        return None
    return made[1] if made and made[0] == origin else None


def to_bytes(indexes: Sequence[ShardIndex], origin: str) -> bytes:
    """The indexes as one npz file (no pickle), uncompressed so that it is read quickly; its CRCs tell damage."""
    extensions = sorted({extension for index in indexes for extension in index.extensions})
    file = io.BytesIO()
    np.savez(
        file,
        version=_VERSION,
        origin=origin,
        counts=[len(index) for index in indexes],
        extensions=extensions,
        keys=np.concatenate([index.keys for index in indexes]),
        spans=_narrow(np.concatenate([_widened(index, extensions) for index in indexes])),
        labels=_narrow(np.concatenate([index.labels for index in indexes])),
        checksums=np.concatenate([index.checksums for index in indexes]),
        **{name: [getattr(index, name) for index in indexes] for name in ("sha256", "num_bytes", "stored_bytes")},
    )
    return file.getvalue()


def from_file(file: BinaryIO) -> tuple[str, list[ShardIndex]] | None:
    """The origin and the indexes, or None when the file is damaged or of another version."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION:
                return None
            return str(stored["origin"]), list(_split(stored))
    except Exception:  # damaged archives make zipfile and numpy raise almost anything
        return None


def _split(stored: Mapping[str, np.ndarray]) -> Iterator[ShardIndex]:
    ends = np.cumsum(stored["counts"])[:-1]
    extensions = stored["extensions"]
    keys, spans, labels, checksums = (
        np.split(values, ends)
        for values in (stored["keys"], stored["spans"], stored["labels"].astype(np.int64), stored["checksums"])
    )
    whole = zip(*(stored[name].tolist() for name in ("sha256", "num_bytes", "stored_bytes")), strict=True)
    for *rows, shard in zip(keys, spans, labels, checksums, whole, strict=True):
        has = (rows[1][:, :, 1] >= 0).any(0)
        here = rows[1] if has.all() else rows[1][:, has]
        yield ShardIndex(rows[0], tuple(extensions[has].tolist()), here, *rows[2:], *shard)


def _widened(index: ShardIndex, extensions: Sequence[str]) -> np.ndarray:
    """The spans with a column for every extension of the set."""
    spans = np.full((len(index), len(extensions), 2), (0, -1), np.int64)
    spans[:, [extensions.index(extension) for extension in index.extensions]] = index.spans
    return spans


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if np.abs(values).max() < 2**31 else values


def _origin(urls: Sequence[str], sizes: Sequence[int], sums: Sequence[str]) -> str:
    names = [url.rpartition("/")[2] for url in urls]
    return _digest([f"{name} {size} {md5}" for name, size, md5 in zip(names, sizes, sums, strict=True)])


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
