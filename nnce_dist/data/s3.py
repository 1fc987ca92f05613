"""Objects of an S3-compatible store: whole or not at all, of the size and version that were asked for.

Every request moves at most `_PART` bytes and has the whole deadline of `S3Client.persist` for itself.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..config.schema import S3
from .s3_client import S3Client
from .s3_errors import TryAgain, bucket_and_key, code_and_status
from .store import Blob

T = TypeVar("T")

_CHUNK = 1 << 20
_PART = 64 * 2**20  # bytes of one request
_STRANGERS = 4  # a listing of so many times what is looked for is not read on
_ACTIONS = {  # botocore's methods as access policies name what they need
    "put_object": "PutObject",
    "create_multipart_upload": "PutObject",
    "upload_part": "PutObject",
    "complete_multipart_upload": "PutObject",
    "abort_multipart_upload": "AbortMultipartUpload",
    "delete_object": "DeleteObject",
}


class S3Store:
    """The objects of one S3-compatible service. Safe to use from any thread of any process.

    All methods raise PermissionError (denied), TimeoutError (no answer within the deadline), FileNotFoundError or
    ValueError with one line that names bucket, key and action.
    """

    def __init__(self, settings: S3):
        self._client = S3Client(settings)
        self.endpoint = self._client.endpoint

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """See `Store.peek`."""
        return self._client.persist("GetObject", url, lambda: self._peek(url, num_bytes))

    def find(self, urls: Sequence[str]) -> dict[str, Blob]:
        """See `Store.find`; nothing where listing is not allowed, or tells mostly of other objects."""
        wanted, last, start = set(urls), max(urls), os.path.commonprefix(list(urls))
        found = {}
        with suppress(PermissionError, FileNotFoundError, ValueError):  # the latter two: of several buckets
            for blob in islice(self._pages(start), _STRANGERS * len(wanted)):
                if blob.url > last:  # services list in the order of the keys
                    break
                if blob.url in wanted:
                    found[blob.url] = blob
        return found

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """See `Store.fetch`; OSError when the object was overwritten meanwhile."""
        for start in range(0, blob.size, _PART) or [0]:
            part = (start, min(_PART, blob.size - start))
            self._client.persist("GetObject", blob.url, lambda part=part: self._fetch(blob, *part, file))

    def read(self, url: str) -> bytes:
        """See `Store.read`."""
        return self._client.persist("GetObject", url, lambda: self._read(url))

    def stored_at(self, url: str) -> datetime:
        """See `Store.stored_at`; services tell seconds."""
        return self._client.persist("GetObject", url, lambda: self._stored_at(url))

    def put(self, url: str, source: bytes | Path) -> None:
        """See `Store.put`. A file of more than `_PART` bytes goes up in parts, and appears when all are there."""
        if isinstance(source, bytes):
            return self._put(url, source)
        if source.stat().st_size <= _PART:
            return self._put(url, source.read_bytes())
        return self._put_parts(url, source)

    def create(self, url: str, content: bytes) -> None:
        """See `Store.create`."""
        try:
            self._send("put_object", url, Body=content, ContentMD5=_md5(content), IfNoneMatch="*")
        except FileExistsError:
            if self.read(url) != content:  # else it may be ours: an earlier try arrived, its answer did not
                raise

    def delete(self, url: str) -> None:
        """See `Store.delete`."""
        self._send("delete_object", url)

    def objects(self, folder: str) -> list[Blob]:
        """See `Store.objects`."""
        return sorted(self._pages(folder.rstrip("/") + "/"), key=lambda blob: blob.url)

    def _pages(self, start: str) -> Iterator[Blob]:
        """The objects whose URL begins so."""
        bucket, prefix = bucket_and_key(start)
        request = {"Bucket": bucket, "Prefix": prefix}
        while True:
            reply = self._client.persist("ListBucket", start, lambda: self._client.call("list_objects_v2", **request))
            for found in reply.get("Contents", []):
                if not found["Key"].endswith("/"):  # consoles make such objects to show folders
                    yield Blob(f"s3://{bucket}/{found['Key']}", found["Size"], found["ETag"])
            if not reply.get("IsTruncated"):
                return
            request["ContinuationToken"] = reply["NextContinuationToken"]

    def _put(self, url: str, content: bytes) -> None:
        self._send("put_object", url, Body=content, ContentMD5=_md5(content))

    def _put_parts(self, url: str, path: Path) -> None:
        upload = {"UploadId": self._send("create_multipart_upload", url)["UploadId"]}
        try:
            with open(path, "rb") as file:
                parts = [self._put_part(url, upload, number, file.read(_PART)) for number in _part_numbers(path)]
            self._send("complete_multipart_upload", url, MultipartUpload={"Parts": parts}, **upload)
        except Exception:
            with suppress(OSError):  # the first failure is the one to tell
                self._send("abort_multipart_upload", url, **upload)
            raise

    def _put_part(self, url: str, upload: dict, number: int, content: bytes) -> dict:
        part = {"PartNumber": number, "Body": content, "ContentMD5": _md5(content), **upload}
        return {"PartNumber": number, "ETag": self._send("upload_part", url, **part)["ETag"]}

    def _send(self, method: str, url: str, **request) -> dict:
        return self._client.persist(_ACTIONS[method], url, lambda: self._ask(method, url, **request))

    async def _peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        try:
            reply = await self._ask("get_object", url, Range=f"bytes=0-{num_bytes - 1}")
        except OSError as error:
            if code_and_status(error)[1] == 416:  # no first byte: an empty object
                return Blob(url, 0, ""), b""
            raise
        if "ContentRange" not in reply:
            raise ValueError(f"{url}: {self.endpoint} ignores byte ranges, so it is not compatible with S3")
        size = int(reply["ContentRange"].rpartition("/")[2])
        content = bytearray()
        await _copy(reply["Body"], content.extend, min(num_bytes, size))
        return Blob(url, size, reply.get("ETag", "")), bytes(content)

    async def _fetch(self, blob: Blob, start: int, size: int, file: BinaryIO) -> None:
        file.seek(start)
        file.truncate()
        same = {"IfMatch": blob.version} if blob.version else {}
        part = {"Range": f"bytes={start}-{start + size - 1}"} if size < blob.size else {}  # a whole GET checks its CRC
        reply = await self._ask("get_object", blob.url, **same, **part)
        await _copy(reply["Body"], file.write, size)

    async def _read(self, url: str) -> bytes:
        reply = await self._ask("get_object", url)
        content = bytearray()
        await _copy(reply["Body"], content.extend, reply["ContentLength"])
        return bytes(content)

    async def _stored_at(self, url: str) -> datetime:
        reply = await self._ask("get_object", url, Range="bytes=0-0")
        reply["Body"].close()
        return reply["LastModified"]

    def _ask(self, method: str, url: str, **request) -> Awaitable[dict]:
        bucket, key = bucket_and_key(url)
        if not key:
            raise ValueError(f"{url!r}: write s3://bucket/key")
        return self._client.call(method, Bucket=bucket, Key=key, **request)


def _md5(content: bytes) -> str:
    """What the service compares with what arrived; of all checksums, the one that every service knows."""
    return b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _part_numbers(path: Path) -> range:
    return range(1, 1 + -(-path.stat().st_size // _PART))


async def _copy(body, write: Callable[[bytes], object], num_bytes: int) -> None:
    """Streams exactly `num_bytes` of a reply; fewer or more are a fault of the transfer."""
    copied = 0
    try:
        while chunk := await body.read(_CHUNK):
            copied += len(chunk)
            write(chunk)
    finally:
        body.close()
    if copied != num_bytes:
        raise TryAgain("truncated", f"{copied} of {num_bytes} bytes")
