"""One S3-compatible service as it is asked: one retry loop with a deadline around requests that are tried once each.

s3fs retries some faults, multiplies its tries with botocore's, and does not protect its chunked downloads against short
bodies. So both are told to try once, and the only retry loop is here (aiohttp alone asks again where a connection that
was kept turns out to be closed). Credentials come from the standard chain only and are never read or held here.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import s3fs
import tenacity
from fsspec.asyn import sync

from ..config.checks import endpoint_problem
from ..config.schema import S3
from . import counters
from .s3_errors import Call, Expired, TryAgain

T = TypeVar("T")

_log = logging.getLogger(__name__)
logging.getLogger("botocore").setLevel(logging.INFO)  # its debug messages hold key ids and signatures


class _OneTry(s3fs.S3FileSystem):
    retries = 1


class S3Client:
    """Sends requests to one service, from any thread of any process."""

    def __init__(self, settings: S3):
        self.endpoint = _checked_endpoint(settings.endpoint_url)
        self._settings, self._deadline = settings, settings.timeout
        self._connect()

    def _connect(self) -> None:
        self._process, self._filesystem = os.getpid(), _connect(self._settings)

    def call(self, method: str, **request) -> Awaitable[dict]:
        """One try of one request, by the name of botocore's method."""
        return self._filesystem._call_s3(method, **request)

    def persist(self, action: str, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt, repeated with full-jitter back-off while faults may pass and the deadline holds.

        `action` is its name in access policies. Raises what `Call.told_apart` makes of errors, or TimeoutError.
        """
        if self._process != os.getpid():
            self._connect()  # the thread that moves the bytes did not follow a fork
        call = Call(action, url, self.endpoint)
        end = time.monotonic() + self._deadline
        renewed = False

        def once() -> T:
            nonlocal renewed
            try:
                return self._once(call, attempt, end)
            except Expired as error:
                if renewed:
                    raise PermissionError(f"{url}: {error}; log in again, or check the role of this process") from None
                self._renew(call, end)
                renewed = True
                raise

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=30),
            stop=tenacity.stop_before_delay(self._deadline),
            before_sleep=lambda state: _count_retry(url, state.outcome.exception()),
        )
        try:
            return tries(once)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise TimeoutError(
                f"{url}: no whole answer from {self.endpoint} within {self._deadline:g} s and "
                f"{last.attempt_number} tries (the last: {last.exception()}); check the store, or raise data.s3.timeout"
            ) from None

    def _once(self, call: Call, attempt: Callable[[], Awaitable[T]], end: float) -> T:
        try:  # beyond its timeout, `sync` leaves what blocks the loop, too
            return sync(self._filesystem.loop, attempt, timeout=max(end - time.monotonic(), 0.01))
        except TryAgain:
            raise
        except Exception as error:
            raise call.told_apart(error) from error

    def _renew(self, call: Call, end: float) -> None:
        """Looks the credentials up again; their source may be a program or a service that has faults of its own."""
        try:
            self._once(call, lambda: self._filesystem.set_session(refresh=True), end)
        except Exception as error:
            if type(error) is TryAgain:  # what has expired again will not pass
                raise TryAgain(error.cause, f"no new credentials in place of expired ones: {error}") from error
            raise PermissionError(
                f"{call.url}: the credentials for {call} have expired and their source gives no new ones "
                f"({' '.join(str(error).split())}); log in again, or check the role of this process"
            ) from error


def _count_retry(url: str, fault: TryAgain) -> None:
    counters.add(f"retries/{fault.cause}")
    _log.info("%s: %s (%s); trying again", url, fault, fault.cause)


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
            "request_checksum_calculation": "when_required",  # its newer default is refused by older services
        },
        skip_instance_cache=True,
        **({"profile": settings.profile} if settings.profile else {}),
    )


def _checked_endpoint(endpoint_url: str) -> str:
    """How messages name the service."""
    if problem := endpoint_problem(endpoint_url):
        raise ValueError(problem)
    return endpoint_url or "AWS S3"
