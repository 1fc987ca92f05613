"""What an error of an S3 call means: a fault that may pass, or a refusal of one line that says what to do."""

from dataclasses import dataclass

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

_MISSING = {"NoSuchKey", "NoSuchVersion", "404"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_CONFLICT = {"PreconditionFailed", "412"}
_SKEWED = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_PASSING_CODES = {
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "RequestTimeout": "stalled",
    "BadDigest": "damaged",
    "InternalError": "unavailable",
    "ServiceUnavailable": "unavailable",
    "OperationAborted": "unavailable",  # this one and the next: another writer at the same moment
    "ConditionalRequestConflict": "unavailable",
}
_PASSING_STATUS = {408: "stalled", 429: "throttled", **dict.fromkeys((500, 502, 503, 504), "unavailable")}
_PASSING_ERRORS = (  # the first that fits
    ("stalled", (TimeoutError, boto.ReadTimeoutError, boto.ConnectTimeoutError)),
    ("truncated", (aiohttp.ClientPayloadError, boto.IncompleteReadError, boto.ResponseStreamingError)),
    ("damaged", (boto.FlexibleChecksumError, ResponseParserError)),  # the latter: a gateway's page instead of XML
    ("disconnected", (ConnectionError, aiohttp.ClientError, boto.HTTPClientError, boto.ConnectionError)),
)


class TryAgain(Exception):
    """A fault that may pass: what happened, and the cause to count it under (`metrics/names.py: RETRY_CAUSES`)."""

    def __init__(self, cause: str, what: str):
        super().__init__(what)
        self.cause = cause


class Expired(TryAgain):
    """The credentials have run out; looking them up again may help."""


@dataclass(frozen=True)
class Call:
    """What was asked of which service."""

    action: str  # as access policies name it: GetObject
    url: str
    endpoint: str

    def __str__(self) -> str:
        bucket, key = bucket_and_key(self.url)
        return f"s3:{self.action} on bucket {bucket!r}, key {key!r} at {self.endpoint}"

    def told_apart(self, error: Exception) -> Exception:
        """The error to raise instead: `TryAgain`, or a final one of one line."""
        code, status = code_and_status(error)
        if not code:
            return self._not_answered(error)
        if code in _EXPIRED:
            return Expired("expired", f"the credentials for {self} have expired ({code})")
        if cause := _PASSING_CODES.get(code) or _PASSING_STATUS.get(status):
            return TryAgain(cause, f"{status} {code}")
        return self._refused(code, status)

    def _refused(self, code: str, status: int) -> Exception:
        url, (bucket, _) = self.url, bucket_and_key(self.url)
        if code in _CONFLICT and self.action == "PutObject":
            return FileExistsError(f"{url}: exists already")
        if code in _CONFLICT:
            return OSError(f"{url}: overwritten while it was read; shards must not change during a run")
        if code == "NoSuchBucket":
            return FileNotFoundError(f"{url}: no bucket {bucket!r}: {self}; check data.s3.endpoint_url")
        if code in _MISSING:
            return FileNotFoundError(f"{url}: no such key: {self}; check the name")
        if code in _SKEWED:
            return PermissionError(f"{url}: refused ({code}): {self}; set this machine's clock, e.g. by NTP")
        if status == 403:
            return PermissionError(
                f"{url}: denied ({code}): {self}; check the key, and what the role or profile in use may do"
            )
        return ValueError(f"{url}: refused ({status} {code}): {self}; check region, endpoint and addressing")

    def _not_answered(self, error: Exception) -> Exception:
        """For errors without an answer of the service."""
        cause = next((cause for cause, kinds in _PASSING_ERRORS if isinstance(error, kinds)), None)
        if cause and not isinstance(error, boto.SSLError):
            return TryAgain(cause, type(error).__name__)
        if isinstance(error, boto.NoCredentialsError):
            return PermissionError(
                f"{self.url}: no S3 credentials for {self}; give the process a role, set AWS_PROFILE or data.s3.profile"
            )
        if isinstance(error, boto.BotoCoreError):
            return ValueError(f"{self.url}: {' '.join(str(error).split())} ({self})")
        return error  # not of the store: the local disk, or a mistake in this program


def bucket_and_key(url: str) -> tuple[str, str]:
    """The parts of `s3://bucket/key`; the key may be empty. Raises ValueError."""
    bucket, _, key = url[len("s3://") :].partition("/")
    if not bucket or not url.lower().startswith("s3://"):
        raise ValueError(f"{url!r}: write s3://bucket/key")
    return bucket, key


def code_and_status(error: Exception) -> tuple[str, int]:
    """S3's error code and the HTTP status, or ("", 0): s3fs gives its own errors and keeps botocore's as the cause."""
    answer = getattr(error if isinstance(error, boto.ClientError) else error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", "")), status
