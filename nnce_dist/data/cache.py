"""Local copies of whole shards: written beside, verified, fsynced, renamed; made once by the first process."""

import errno
import fcntl
import gzip
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .store import Blob, Store, local_path, scheme_of

MAX_EXPANSION = 100  # a .tar.gz that grows more than this is taken for a decompression bomb
_CHUNK = 1 << 20


def make_once(final: Path, write: Callable[[BinaryIO], None], deadline: float) -> None:
    """Makes the file `final` with `write`, unless it exists; safe against crashes and against other processes.

    The lock is on the unfinished file itself, so a crash leaves no lock and the next writer starts it afresh. Raises
    TimeoutError when another process has held it for `deadline` seconds.
    """
    unfinished = final.with_name(final.name + ".tmp")
    final.parent.mkdir(parents=True, exist_ok=True)
    while not final.exists():
        with os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:  # creates, never truncates
            _lock(file, unfinished, deadline)
            if not _is_at(file, unfinished):
                continue  # the process that held the lock has renamed or removed it: look again
            if final.exists():
                unfinished.unlink()
                continue
            _write_and_rename(file, unfinished, final, write)


def _write_and_rename(file: BinaryIO, unfinished: Path, final: Path, write: Callable[[BinaryIO], None]) -> None:
    try:
        file.truncate(0)
        write(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(unfinished, final)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space left for {final}; free some or set data.cache_dir elsewhere") from error
        raise
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _lock(file: BinaryIO, path: Path, deadline: float) -> None:
    end = time.monotonic() + deadline
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{path}: another process has been writing it for {deadline:.0f} s; is it stuck?"
                ) from None
            time.sleep(0.05)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


class ShardCache:
    """Makes shards local: plain files stay where they are, s3 objects and .gz files are copied into `folder`."""

    # Bounding the folder belongs here: `local` is the only place that adds to it.

    def __init__(self, folder: str | Path, store: Store, deadline: float):
        self.folder = Path(folder)
        self._store = store
        self._deadline = deadline  # seconds another process may take for a shard that we need too

    def local(self, blob: Blob) -> Path:
        """The path of a whole, uncompressed copy of the shard."""
        packed = blob.url.endswith((".gz", ".tgz"))
        if scheme_of(blob.url) == "file" and not packed:
            return Path(local_path(blob.url))
        final = self.entry(blob, ".tar")
        if final.exists() and not packed and final.stat().st_size != blob.size:
            final.unlink()  # damaged from outside: a finished entry had the right size
        make_once(final, lambda file: self._write(blob, packed, file), self._deadline)
        return final

    def entry(self, blob: Blob, suffix: str) -> Path:
        """The name in the cache of something made from this version of this object."""
        place = os.path.abspath(local_path(blob.url)) if scheme_of(blob.url) == "file" else blob.url
        identity = "\n".join((self._store.endpoint, place, blob.version, str(blob.size)))
        return self.folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix)

    def _write(self, blob: Blob, packed: bool, file: BinaryIO) -> None:
        if not packed:
            return self._store.fetch(blob, file)
        with tempfile.TemporaryFile(dir=self.folder) as compressed:
            self._store.fetch(blob, compressed)
            compressed.seek(0)
            _decompress(blob, compressed, file)
        return None


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
        raise ValueError(
            f"{blob.url}: the gzip stream is damaged or cut short ({error}); copy the shard again"
        ) from error
