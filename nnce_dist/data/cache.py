"""Local copies of whole shards: written beside, verified, fsynced, renamed; made once by the first process."""

import errno
import fcntl
import gzip
import hashlib
import logging
import os
import random
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

from . import counters
from .index import SUFFIX
from .locks import try_lock
from .room import NoRoomError, ask_for_room, asked_at, evict, hold_copy, make_room, sweep
from .store import Blob, Store, local_path, scheme_of

MAX_EXPANSION = 100  # a .tar.gz that grows more than this is taken for a decompression bomb
SET_SUFFIX = ".set.npz"  # what is remembered of the indexes of a whole set
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


class DamagedShardError(ValueError):
    """A shard whose bytes are not those that were indexed."""


def make_once(final: Path, write: Callable[[BinaryIO], None], deadline: float) -> None:
    """Makes the file `final` with `write`, unless it exists; safe against crashes and against other processes.

    The lock is on the unfinished file itself, so a crash leaves no lock and the next writer starts it afresh. Raises
    TimeoutError when another process has held it for `deadline` seconds and written nothing.
    """
    unfinished = final.with_name(final.name + ".tmp")
    final.parent.mkdir(parents=True, exist_ok=True)
    waiting = _Waiting(unfinished, deadline)
    while not final.exists():
        with os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:  # creates, never truncates
            if not try_lock(file.fileno(), fcntl.LOCK_EX):
                waiting.wait(file)
                continue  # never on this file: finished and held by its readers, it stays locked
            if not _is_at(file, unfinished):
                continue  # the process that held the lock has renamed or removed it: look again
            if final.exists():
                unfinished.unlink()
                continue
            _write_and_rename(file, unfinished, final, write)


class _Waiting:
    """Waits for another process as long as the file that it writes changes: a large shard may take hours."""

    def __init__(self, path: Path, deadline: float):
        self._path, self._deadline = path, deadline
        self._seen, self._end = None, 0.0

    def wait(self, file: BinaryIO) -> None:
        """A moment; TimeoutError after `deadline` seconds without a change."""
        status = os.fstat(file.fileno())
        if (seen := (status.st_ino, status.st_size, status.st_mtime_ns)) != self._seen:
            self._seen, self._end = seen, time.monotonic() + self._deadline
        if time.monotonic() > self._end:
            raise TimeoutError(
                f"{self._path}: another process has been writing it, but nothing for {self._deadline:g} s; is it stuck?"
            )
        time.sleep(0.05)


def _write_and_rename(file: BinaryIO, unfinished: Path, final: Path, write: Callable[[BinaryIO], None]) -> None:
    try:
        file.truncate(0)
        write(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(unfinished, final)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno in _FULL:
            told = f"no space left for {final}; free some or set data.cache_dir elsewhere"
            raise OSError(error.errno, told) from error
        raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


class ShardCache:
    """Copies of shards in a folder that the processes of a node share: s3 objects and .gz files, whole and verified.

    The copies, those being made included, have at most `max_bytes` (0: no bound); what was not used for longest goes
    first: the order of the samples is done with a shard for the rest of an epoch. A copy that is held is never removed.
    Several readers may want more than there is room for: who waits for room asks the others, in any process, to let go
    of what they hold ahead (`is_asked`), so that all go on, though copies are made again.
    """

    def __init__(self, folder: str | Path, store: Store, deadline: float, max_bytes: int = 0):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._store = store
        self._deadline = deadline  # seconds others may write nothing of a shard that we need, or hold all the room
        self._asked = asked_at(self.folder)
        sweep(self.folder)

    def hold(
        self, blob: Blob, num_bytes: int, sha256: str | None = None, let_go: Callable[[], None] = lambda: None
    ) -> int:
        """An open file, for reading, of the uncompressed shard; it stays in the cache until the file is closed.

        `num_bytes` and `sha256` are those of the uncompressed shard; the latter is checked when a copy is made. Where
        there is no room `let_go` is called as long as that is so. Raises DamagedShardError when the stored shard
        differs, OSError or TimeoutError with one line.
        """
        if not is_copied(blob):
            return os.open(local_path(blob.url), os.O_RDONLY)
        final, end = self.copy_path(blob, num_bytes), None
        if (file := hold_copy(final, num_bytes)) is not None:
            counters.add("cache_hits")
            return file
        while (file := hold_copy(final, num_bytes)) is None:
            try:
                self._make(final, blob, num_bytes, sha256)
            except NoRoomError:
                end = end or time.monotonic() + self._deadline
                if time.monotonic() > end:
                    raise
                ask_for_room(self.folder)
                let_go()
                _tell_of_thrift(self.folder, self.max_bytes)
                time.sleep(random.uniform(0.05, 0.2))  # the others are at the same point
        return file

    def is_asked(self) -> bool:
        """Whether somebody has asked for room since this was last so."""
        before, self._asked = self._asked, asked_at(self.folder)
        return self._asked != before

    def copy_path(self, blob: Blob, num_bytes: int) -> Path:
        """Where the copy of an uncompressed shard of `num_bytes` lies; its name tells its size."""
        return self.entry(blob, f"-{num_bytes}.tar")

    def entry(self, blob: Blob, suffix: str) -> Path:
        """The name in the cache of something made from this version of this object."""
        place = os.path.abspath(local_path(blob.url)) if scheme_of(blob.url) == "file" else blob.url
        identity = "\n".join((self._store.endpoint, place, blob.version, str(blob.size)))
        return self.folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix)

    def _make(self, final: Path, blob: Blob, num_bytes: int, sha256: str | None) -> None:
        def make() -> None:
            make_once(final, lambda file: self._write(blob, num_bytes, sha256, file), self._deadline)

        try:
            make()
        except OSError as error:
            needed = num_bytes + (blob.size if is_compressed(blob.url) else 0)
            if error.errno not in _FULL or not evict(self.folder, needed):
                raise
            make()

    def _write(self, blob: Blob, num_bytes: int, sha256: str | None, file: BinaryIO) -> None:
        make_room(self.folder, num_bytes, self.max_bytes)
        try:
            copy_uncompressed(blob, self._store, file, self.folder, sha256)
        except DamagedShardError:
            self._forget_index(blob)
            raise

    def _forget_index(self, blob: Blob) -> None:
        """Perhaps the index is wrong: the next start looks again at the one beside the shard."""
        for kept in (self.entry(blob, SUFFIX), *self.folder.glob(f"*{SET_SUFFIX}")):
            kept.unlink(missing_ok=True)


@cache
def _tell_of_thrift(folder: Path, max_bytes: int) -> None:
    """Says once what a cache that is too small costs."""
    _log.warning(
        f"{folder}: its readers want more shards at a time than data.cache_bytes={max_bytes} has room for, so that "
        "some are copied again and again; raise it, lower data.shuffle_bytes, or run fewer jobs at a time"
    )


def is_copied(blob: Blob) -> bool:
    """Whether a shard is read from a copy: plain files stay where they are."""
    return scheme_of(blob.url) == "s3" or is_compressed(blob.url)


def is_compressed(url: str) -> bool:
    """Whether a shard is stored as .tar.gz."""
    return url.endswith((".gz", ".tgz"))


def copy_uncompressed(
    blob: Blob, store: Store, file: BinaryIO, scratch: Path | None = None, sha256: str | None = None
) -> None:
    """Writes a shard as plain tar into a file; one that is damaged is fetched once more.

    `scratch` is a folder with room for a compressed copy, `sha256` the digest that the plain tar must have. Raises
    DamagedShardError when it is damaged again.
    """
    try:
        _copy(blob, store, file, scratch, sha256)
    except DamagedShardError:  # on the way, or where it lies?
        _copy(blob, store, file, scratch, sha256)


def _copy(blob: Blob, store: Store, file: BinaryIO, scratch: Path | None, sha256: str | None) -> None:
    file.seek(0)
    file.truncate()
    counters.add("fetched_bytes", blob.size)
    if is_compressed(blob.url):
        with tempfile.TemporaryFile(dir=scratch) as compressed:
            store.fetch(blob, _Scratch(compressed, file))
            compressed.seek(0)
            _decompress(blob, compressed, file)
    else:
        store.fetch(blob, file)
    file.seek(0)
    if sha256 is not None and sha256 != hashlib.file_digest(file, "sha256").hexdigest():
        raise DamagedShardError(
            f"{blob.url}: its content is not what its index tells; copy the shard again, or run `nnce index` on it"
        )


class _Scratch:
    """A file without a name; what is written to it shows as a change of the file that other processes wait for."""

    def __init__(self, file: BinaryIO, shown: BinaryIO):
        self._file, self._shown = file, shown

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, chunk: bytes) -> int:
        os.utime(self._shown.fileno())
        return self._file.write(chunk)


def _decompress(blob: Blob, compressed: BinaryIO, file: BinaryIO) -> None:
    limit = MAX_EXPANSION * max(blob.size, _CHUNK)
    try:
        with gzip.GzipFile(fileobj=compressed) as stream:
            while chunk := stream.read(_CHUNK):
                if file.tell() + len(chunk) > limit:
                    raise ValueError(f"{blob.url}: grows more than {MAX_EXPANSION} times when decompressed; refused")
                file.write(chunk)
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the data
        raise DamagedShardError(
            f"{blob.url}: the gzip stream is damaged or cut short ({error}); copy the shard again"
        ) from error
