"""Objects as files of this machine: written beside, fsynced, renamed."""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from .locks import try_lock
from .store import Blob, local_path

_UNFINISHED = ".tmp"


class FileStore:
    """Files of this machine, or of a file system that it shares."""

    endpoint = "file"

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """See `Store.peek`; raises FileNotFoundError or PermissionError."""
        try:
            with open(local_path(url), "rb") as file:
                return _blob(url, os.fstat(file.fileno())), file.read(num_bytes)
        except FileNotFoundError:
            raise FileNotFoundError(f"{url}: no such file; check the pattern in data.train or data.val") from None
        except IsADirectoryError:
            raise ValueError(
                f"{url}: a folder, not a shard; name the .tar files in it, e.g. {url}/a-{{000..012}}.tar"
            ) from None
        except PermissionError:
            raise PermissionError(f"{url}: this user may not read the file; check its permissions") from None

    def find(self, urls: Sequence[str]) -> dict[str, Blob]:
        """See `Store.find`; raises as `peek`."""
        found = {}
        for url in urls:
            with suppress(FileNotFoundError):
                found[url], _ = self.peek(url, 1)
        return found

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """See `Store.fetch`."""
        with open(local_path(blob.url), "rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
            if source.tell() != blob.size:
                raise ValueError(f"{blob.url}: changed while it was read; start again when its writer is done")

    def read(self, url: str) -> bytes:
        """See `Store.read`."""
        return Path(local_path(url)).read_bytes()

    def stored_at(self, url: str) -> datetime:
        """See `Store.stored_at`."""
        return datetime.fromtimestamp(Path(local_path(url)).stat().st_mtime, UTC)

    def put(self, url: str, source: bytes | Path) -> None:
        """See `Store.put`; the folder is made where there is none. Raises OSError, of a full disk with the bytes."""
        final = Path(local_path(url))
        with _written_beside(final, source) as unfinished:
            os.replace(unfinished, final)

    def create(self, url: str, content: bytes) -> None:
        """See `Store.create`."""
        final = Path(local_path(url))
        with _written_beside(final, content) as unfinished:
            try:
                os.link(unfinished, final)
            except FileExistsError:
                if self.read(url) != content:
                    raise FileExistsError(f"{url}: exists already") from None

    def delete(self, url: str) -> None:
        """See `Store.delete`."""
        Path(local_path(url)).unlink(missing_ok=True)

    def objects(self, folder: str) -> list[Blob]:
        """See `Store.objects`; leaves out what is being written."""
        paths = (path for path in Path(local_path(folder)).rglob("*") if not path.name.endswith(_UNFINISHED))
        return [_blob(str(path), path.stat()) for path in sorted(paths) if path.is_file()]


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blob(url: str, status: os.stat_result) -> Blob:
    return Blob(url, status.st_size, str(status.st_mtime_ns))


@contextmanager
def _written_beside(final: Path, source: bytes | Path) -> Iterator[Path]:
    """A copy of the source in the folder of `final`, on the disk for good, as is the name that the caller gives it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f"{final.name}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            with suppress(OSError):  # of a file system without locks
                try_lock(file.fileno(), fcntl.LOCK_EX)  # tells `room.sweep` that we live
            _copy(source, file)
            file.flush()
            os.fsync(file.fileno())
            yield unfinished
        sync_folder(final.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        raise OSError(error.errno, f"no space left for {size} bytes; free some", str(final)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(source: bytes | Path, file: BinaryIO) -> None:
    if isinstance(source, bytes):
        file.write(source)
        return
    with open(source, "rb") as content:
        shutil.copyfileobj(content, file, 1 << 20)
