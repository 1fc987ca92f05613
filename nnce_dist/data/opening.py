"""What a shard set consists of, found without copying it: the identity and the index of every shard."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from . import set_index
from .cache import SET_SUFFIX, ShardCache, is_compressed, make_once
from .files import FileStore
from .index import SUFFIX, ShardIndex, index_shard
from .parallel import in_threads
from .set_index import MANY
from .shelf import OpenFile
from .sidecar import read_index, stored_index
from .store import Blob, Store

Say = Callable[[str], None]

_REQUESTS = 32  # small ones at a time
_READERS = 8  # shards read whole at a time
_PROGRESS = 5.0  # seconds between two lines


@dataclass(frozen=True)
class Found:
    """What lies in the store, or did when it last answered."""

    shards: list[Blob]
    sidecars: list[Blob | None]  # the indexes beside the shards; of small sets they are not looked for

    @cached_property
    def digest(self) -> str:
        """Another one whenever a shard or an index beside it is another one."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """To be read by `from_json`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Found":
        """What `to_json` has written."""
        stored = json.loads(content)
        return cls(*([one and Blob(**one) for one in stored[field.name]] for field in fields(cls)))


def identify(urls: Sequence[str], store: Store, folder: Path, say: Say) -> Found:
    """The shards as they are in the store now, or, while it does not answer, as they were when they were last used.

    Raises OSError or ValueError with one line for the first that is missing, denied or empty.
    """
    remembered = _kept(folder, urls, store, ".blobs.json")
    try:
        found = _find(urls, store)
    except TimeoutError as error:
        if not remembered.exists():
            raise
        say(f"{error}; going on with the copies in {folder}")
        return Found.from_json(remembered.read_bytes())
    if store.endpoint != FileStore.endpoint:
        FileStore().put(str(remembered), found.to_json())
    return found


def find_indexes(found: Found, store: Store, cache: ShardCache, say: Say) -> list[ShardIndex]:
    """The index of every shard: of many at once from the file of the set, or else one by one.

    Raises ValueError or OSError with one line.
    """
    if len(found.shards) < MANY:
        return _one_by_one(found.shards, store, cache, say)
    kept = _kept(cache.folder, [blob.url for blob in found.shards], store, SET_SUFFIX)
    if indexes := set_index.load(kept, found.digest):
        return indexes
    indexes = set_index.stored_set(found.shards, found.sidecars, store)
    if indexes and store.endpoint == FileStore.endpoint:
        return indexes
    indexes = indexes or _one_by_one(found.shards, store, cache, say)
    FileStore().put(str(kept), set_index.to_bytes(indexes, found.digest))
    return indexes


def _kept(folder: Path, urls: Sequence[str], store: Store, suffix: str) -> Path:
    """What the processes of a node remember of these shards."""
    return folder / f"{hashlib.sha256(repr((store.endpoint, *urls)).encode()).hexdigest()[:32]}{suffix}"


def _find(urls: Sequence[str], store: Store) -> Found:
    sidecars = [url + SUFFIX for url in urls]
    seen = store.find([*urls, *sidecars]) if len(urls) >= MANY else {}
    shards = in_threads(lambda url: _not_empty(seen.get(url) or store.peek(url, 1)[0]), urls, _REQUESTS)
    return Found(list(shards), [seen.get(url) for url in sidecars])


def _one_by_one(blobs: Sequence[Blob], store: Store, cache: ShardCache, say: Say) -> list[ShardIndex]:
    """From the cache, from beside the shard, or made by reading it once."""
    found = list(in_threads(lambda blob: _found_index(blob, store, cache), blobs, _REQUESTS))
    missing = [blob for blob, index in zip(blobs, found, strict=True) if index is None]
    made = in_threads(lambda blob: _made_index(blob, store, cache), missing, _READERS)
    fresh = _told(made, len(missing), say)
    return [index or next(fresh) for index in found]


def _not_empty(blob: Blob) -> Blob:
    if not blob.size:
        raise ValueError(f"{blob.url}: the shard is empty (0 bytes); copy or make it again")
    return blob


def _found_index(blob: Blob, store: Store, cache: ShardCache) -> ShardIndex | None:
    kept = cache.entry(blob, SUFFIX)
    if index := _readable(kept):
        return index
    index = stored_index(blob, store)
    if index and store.endpoint != FileStore.endpoint:
        _keep(index, kept)
    return index


def _made_index(blob: Blob, store: Store, cache: ShardCache) -> ShardIndex:
    if is_compressed(blob.url):
        index = read_index(blob, store)
    else:
        file = OpenFile(cache.hold(blob, blob.size))
        index = index_shard(Path(f"/proc/self/fd/{file.descriptor}"), blob.url)
    _keep(index, cache.entry(blob, SUFFIX))
    return index


def _readable(path: Path) -> ShardIndex | None:
    try:
        return ShardIndex.from_bytes(path.read_bytes())
    except FileNotFoundError:  # perhaps another process has just found it unreadable
        return None


def _keep(index: ShardIndex, path: Path) -> None:
    if not _readable(path):
        path.unlink(missing_ok=True)  # unreadable or of another version
    make_once(path, lambda file: file.write(index.to_bytes()), deadline=60.0)


def _told(made: Iterator[ShardIndex], total: int, say: Say) -> Iterator[ShardIndex]:
    """The same indexes, with a line now and then about how many are made."""
    told = time.monotonic()
    for number, index in enumerate(made, 1):
        if time.monotonic() - told > _PROGRESS or (number == total and total > 1):
            told = time.monotonic()
            say(f"indexed {number:,} of {total:,} shards")
        yield index
