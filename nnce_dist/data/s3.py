"""Objects of an S3-compatible store through s3fs: whole objects, one retry loop with a deadline, errors told apart.

s3fs retries some faults, multiplies its tries with botocore's, and does not protect its chunked downloads against short
bodies. So both are told to try once, every object is one streamed GET that is checked against the object's size and
ETag, and the only retry loop is here. Credentials come from the standard chain only and are never read or held here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import aiohttp
import botocore.exceptions as boto
import s3fs
import tenacity
from fsspec.asyn import sync

from ..config.schema import S3
from .store import Blob

T = TypeVar("T")

_CHUNK = 1 << 20
_MISSING = {"NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_CHANGED = {"PreconditionFailed", "412"}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "ServiceUnavailable", "InternalError", "Throttling"}
_TRANSIENT_ERRORS = (
    TimeoutError,
    ConnectionError,
    aiohttp.ClientError,
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    boto.ResponseStreamingError,
)

_log = logging.getLogger(__name__)
logging.getLogger("botocore").setLevel(logging.INFO)  # its debug messages hold key ids and signatures


class _TryAgain(Exception):
    """A fault that may pass; its text says which."""


class _Expired(_TryAgain):
    """The credentials have run out; looking them up again may help."""


class _OneTry(s3fs.S3FileSystem):
    retries = 1


class S3Store:
    """Reads objects of one S3-compatible service. Safe to use from several threads, not after a fork."""

    def __init__(self, settings: S3):
        self.endpoint = _checked_endpoint(settings.endpoint_url)
        self._deadline = settings.timeout
        self._filesystem = _connect(settings)

    def peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        """See `Store.peek`. Raises FileNotFoundError, PermissionError, TimeoutError, or ValueError."""
        return self._persist(url, lambda: self._peek(url, num_bytes))

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """See `Store.fetch`. Raises as `peek`, and OSError when the object was overwritten meanwhile."""
        self._persist(blob.url, lambda: self._fetch(blob, file))

    async def _peek(self, url: str, num_bytes: int) -> tuple[Blob, bytes]:
        bucket, key = split(url)
        try:
            reply = await self._filesystem._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes=0-{num_bytes - 1}"
            )
        except OSError as error:
            if _code_and_status(error)[1] == 416:  # no first byte: an empty object
                return Blob(url, 0, ""), b""
            raise
        if "ContentRange" not in reply:
            raise ValueError(f"{url}: {self.endpoint} ignores byte ranges, so it is not compatible with S3")
        size = int(reply["ContentRange"].rpartition("/")[2])
        content = bytearray()
        await _copy(reply["Body"], content.extend, min(num_bytes, size))
        return Blob(url, size, reply.get("ETag", "")), bytes(content)

    async def _fetch(self, blob: Blob, file: BinaryIO) -> None:
        bucket, key = split(blob.url)
        file.seek(0)
        file.truncate()
        same = {"IfMatch": blob.version} if blob.version else {}
        reply = await self._filesystem._call_s3("get_object", Bucket=bucket, Key=key, **same)
        await _copy(reply["Body"], file.write, blob.size)

    def _persist(self, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt, repeated with full-jitter back-off while faults may pass and the deadline holds."""
        end = time.monotonic() + self._deadline
        renewed = False

        def once() -> T:
            nonlocal renewed
            try:
                return self._once(url, attempt, end)
            except _Expired as error:
                if renewed:
                    raise PermissionError(f"{url}: {error}; log in again, or check the role of this process") from None
                renewed = True
                self._filesystem.connect(refresh=True)
                raise

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TryAgain),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=30),
            stop=tenacity.stop_before_delay(self._deadline),
            before_sleep=lambda state: _log.info("%s: %s; trying again", url, state.outcome.exception()),
        )
        try:
            return tries(once)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise TimeoutError(
                f"{url}: no whole answer from {self.endpoint} within {self._deadline:g} s and "
                f"{last.attempt_number} tries (the last: {last.exception()}); check the store, or raise data.s3.timeout"
            ) from None

    def _once(self, url: str, attempt: Callable[[], Awaitable[T]], end: float) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(attempt(), max(end - time.monotonic(), 0.01))

        try:
            return sync(self._filesystem.loop, bounded)
        except _TryAgain:
            raise
        except Exception as error:
            raise self._told_apart(url, error) from error

    def _told_apart(self, url: str, error: Exception) -> Exception:
        """The error to raise: `_TryAgain`, or a final one of one line."""
        code, status = _code_and_status(error)
        bucket, key = split(url)
        asked = f"s3:GetObject on bucket {bucket!r}, key {key!r} at {self.endpoint}"
        if code in _EXPIRED:
            return _Expired(f"the credentials for {asked} have expired ({code})")
        if code in _CHANGED:
            return OSError(f"{url}: overwritten while it was read; shards must not change during a run")
        if code == "NoSuchBucket":
            return FileNotFoundError(f"{url}: no bucket {bucket!r} at {self.endpoint}; check data.s3.endpoint_url")
        if code in _MISSING:
            return FileNotFoundError(f"{url}: bucket {bucket!r} has no key {key!r}; check the shard pattern")
        if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
            return _TryAgain(f"{status} {code}")
        if status == 403:
            return PermissionError(
                f"{url}: denied ({code}): {asked}; check the key, and what the role or profile in use may read"
            )
        if code:
            return ValueError(f"{url}: refused ({status} {code}): {asked}; check region, endpoint and addressing")
        return _not_answered(url, asked, error)


def split(url: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; raises ValueError."""
    bucket, _, key = url[len("s3://") :].partition("/")
    if not bucket or not key or not url.lower().startswith("s3://"):
        raise ValueError(f"{url!r}: write s3://bucket/key")
    return bucket, key


def _not_answered(url: str, asked: str, error: Exception) -> Exception:
    """For errors without an answer of the service."""
    if isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, boto.SSLError):
        return _TryAgain(type(error).__name__)
    if isinstance(error, boto.NoCredentialsError):
        return PermissionError(
            f"{url}: no S3 credentials for {asked}; give the process a role, set AWS_PROFILE or data.s3.profile"
        )
    if isinstance(error, boto.BotoCoreError):
        return ValueError(f"{url}: {' '.join(str(error).split())} ({asked})")
    return error  # not of the store: the local disk, or a mistake in this program


def _code_and_status(error: Exception) -> tuple[str, int]:
    """S3's error code and the HTTP status, or ("", 0): s3fs gives its own errors and keeps botocore's as the cause."""
    answer = getattr(error if isinstance(error, boto.ClientError) else error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", "")), status


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
        raise _TryAgain(f"{copied} of {num_bytes} bytes")


def _connect(settings: S3) -> s3fs.S3FileSystem:
    patience = settings.timeout / 3  # a stalled connection leaves time for others
    return _OneTry(
        endpoint_url=settings.endpoint_url or None,
        config_kwargs={
            "connect_timeout": min(5.0, patience),
            "read_timeout": min(15.0, patience),
            "max_pool_connections": 32,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "s3": {"addressing_style": settings.addressing},
        },
        skip_instance_cache=True,
        **({"profile": settings.profile} if settings.profile else {}),
    )


def _checked_endpoint(endpoint_url: str) -> str:
    """How messages name the service."""
    if not endpoint_url:
        return "AWS S3"
    parts = urlsplit(endpoint_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("data.s3.endpoint_url must look like https://host:port")
    if parts.username or parts.password or parts.query:
        raise ValueError("data.s3.endpoint_url must not hold credentials; use the standard AWS credential chain")
    return endpoint_url
