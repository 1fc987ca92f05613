"""Where shards lie: `file` paths and `s3://` objects behind one small interface. Nothing else is ever opened or run."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from braceexpand import UnbalancedBracesError, braceexpand

from ..config.schema import S3

MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class Blob:
    """One version of one object."""

    url: str
    size: int  # bytes
    version: str  # changes with the content: the ETag on S3, the modification time on disk


class Store(Protocol):
    """What reading shards needs of a storage service. Errors are one line: what, where, what to do."""

    endpoint: str  # tells services apart that hold objects of the same name

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """The object's identity and at most its first `num_bytes` (at least 1)."""

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """Writes the whole object into an empty file, exactly `blob.size` bytes of exactly this version."""


class FileStore:
    """Files of this machine."""

    endpoint = "file"

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """See `Store.peek`; raises FileNotFoundError or PermissionError."""
        try:
            with open(local_path(url), "rb") as file:
                status = os.fstat(file.fileno())
                return Blob(url, status.st_size, str(status.st_mtime_ns)), file.read(num_bytes)
        except FileNotFoundError:
            raise FileNotFoundError(f"{url}: no such file; check the pattern in data.train or data.val") from None
        except IsADirectoryError:
            raise ValueError(
                f"{url}: a folder, not a shard; name the .tar files in it, e.g. {url}/a-{{000..012}}.tar"
            ) from None
        except PermissionError:
            raise PermissionError(f"{url}: this user may not read the file; check its permissions") from None

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """See `Store.fetch`."""
        with open(local_path(blob.url), "rb") as source:
            while chunk := source.read(1 << 20):
                file.write(chunk)
            if source.tell() != blob.size:
                raise ValueError(f"{blob.url}: changed while it was read; start again when its writer is done")


def expand(pattern: str) -> list[str]:
    """The shard URLs that a pattern with braces names, in order: `a-{000..012}.tar`, `{a,b}.tar`.

    Raises ValueError for anything that is not a path, `file://` or `s3://`, for wildcards and for repeated shards.
    """
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)  # the expander would hold a huge one in memory
    too_many = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MAX_SHARDS
    try:
        urls = [] if too_many else list(islice(braceexpand(pattern), MAX_SHARDS + 1))
    except UnbalancedBracesError as error:
        raise ValueError(f"{pattern!r}: the braces do not match ({error})") from None
    if too_many or len(urls) > MAX_SHARDS:
        raise ValueError(f"{pattern!r} names more than {MAX_SHARDS} shards")
    for url in urls:
        scheme_of(url)
    if len(set(urls)) < len(urls):
        raise ValueError(f"{pattern!r} names the same shard more than once")
    return urls


def scheme_of(url: str) -> str:
    """`file` or `s3`; raises ValueError for everything else."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    kind = scheme[1].lower() if scheme else "file"
    if kind not in ("file", "s3"):
        raise ValueError(f"shards are read from paths and s3:// only, not from {kind}: addresses")
    if not url or url.endswith("/"):
        raise ValueError(f"{url!r}: not the name of a shard")
    if "*" in url or "?" in url:
        raise ValueError(
            f"{url!r}: wildcards would change silently with the folder; write braces, e.g. a-{{000..012}}.tar"
        )
    return kind


def local_path(url: str) -> str:
    """The path that a `file://` URL or a bare path means."""
    if not url.lower().startswith("file:"):
        return url
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url!r}: a file on another host; copy it here or serve it over s3://")
    return unquote(parts.path)


def open_store(urls: Sequence[str], settings: S3) -> Store:
    """The store that holds all these shards. s3fs is loaded only where a shard needs it."""
    kinds = {scheme_of(url) for url in urls}
    if len(kinds) > 1:
        raise ValueError("a shard pattern may not mix paths and s3:// addresses")
    if kinds == {"file"}:
        return FileStore()
    from .s3 import S3Store

    return S3Store(settings)
