"""Where objects lie: `file` paths and `s3://` objects behind one small interface. Nothing else is opened or run."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
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
    """What shards and checkpoints need of a storage service. Errors are one line: what, where, what to do.

    An object appears whole or not at all, and its replacement is seen by everyone who asks after `put` has returned.
    """

    endpoint: str  # tells services apart that hold objects of the same name

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """The object's identity and at most its first `num_bytes` (at least 1)."""

    def find(self, urls: Sequence[str]) -> dict[str, Blob]:
        """The identities, by URL, of those of many objects that can be told at once: others may be there, too."""

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """Writes the whole object into an empty file, exactly `blob.size` bytes of exactly this version."""

    def read(self, url: str) -> bytes:
        """The content of a small object; FileNotFoundError when there is none."""

    def stored_at(self, url: str) -> datetime:
        """When an object was stored, by the clock of the storage service; FileNotFoundError when there is none."""

    def put(self, url: str, source: bytes | Path) -> None:
        """Stores these bytes, or the content of a local file, in place of what was there."""

    def create(self, url: str, content: bytes) -> None:
        """Stores a small object that nobody has stored yet; of several writers one wins, others get FileExistsError.

        Creating the same content again is no error (an answer may get lost on its way), so it should name its writer.
        """

    def delete(self, url: str) -> None:
        """Removes an object; none there is no error."""

    def objects(self, folder: str) -> list[Blob]:
        """The objects under `folder/`, at any depth, sorted by URL; none where there is no such folder."""


def expand(pattern: str) -> list[str]:
    """The shard URLs that a pattern with braces names, in order: `a-{000..012}.tar`, `{a,b}.tar`.

    Raises ValueError for anything that is not a path, `file://` or `s3://`, for wildcards and for repeated shards.
    """
    _kind(pattern)  # first, because the other messages repeat the pattern
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
    kind = _kind(url)
    if not url or url.endswith("/"):
        raise ValueError(f"{url!r}: not the name of a shard")
    if "*" in url or "?" in url:
        raise ValueError(
            f"{url!r}: wildcards would change silently with the folder; write braces, e.g. a-{{000..012}}.tar"
        )
    return kind


def _kind(url: str) -> str:
    """The scheme; the errors do not repeat the address, which may hold a secret."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    kind = scheme[1].lower() if scheme else "file"
    if kind not in ("file", "s3"):
        raise ValueError(f"shards are read from paths and s3:// only, not from {kind}: addresses")
    if kind == "s3" and re.match("/*[^/]*[:@]", url[len("s3:") :]):
        raise ValueError("an s3:// address must not hold credentials; use the standard AWS credential chain")
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
        from .files import FileStore

        return FileStore()
    from .s3 import S3Store

    return S3Store(settings)
