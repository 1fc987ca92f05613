"""A proxy in front of an S3 server that fails the next requests in a chosen way and counts what it is asked."""

import socket
import struct
import threading
from collections.abc import Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

ANSWERS = {
    "internal": (500, "InternalError"),
    "unavailable": (503, "ServiceUnavailable"),
    "slow down": (503, "SlowDown"),
    "too many": (429, "TooManyRequests"),
    "timeout": (400, "RequestTimeout"),
    "denied": (403, "AccessDenied"),
    "signature": (403, "SignatureDoesNotMatch"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "elsewhere": (301, "PermanentRedirect"),
    "overwritten": (412, "PreconditionFailed"),
}
BODIES = ("cut", "short", "flipped", "stalled")
FOR_EVER = 10**9


class FaultyStore(ThreadingHTTPServer):
    """`with FaultyStore(port) as store: store.fail("cut", times=2)`; it answers at `store.url`."""

    daemon_threads = True

    def __init__(self, upstream_port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()
        self.fail("nothing", 0)

    def fail(self, fault: str | Sequence[str], times: int = FOR_EVER, whole_only: bool = False) -> None:
        """The next `times` requests fail (only those for whole shards if `whole_only`), in these ways by turns.

        Counting starts again.
        """
        self._faults = cycle([fault] if isinstance(fault, str) else fault)
        self.times, self.whole_only = times, whole_only
        self.requests = self.whole_shards = 0

    def next_fault(self, is_whole: bool) -> str:
        """The fault of a request, counted."""
        self.requests += 1
        self.whole_shards += is_whole
        if self.times <= 0 or (self.whole_only and not is_whole):
            return "nothing"
        self.times -= 1
        return next(self._faults)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault("Range" not in self.headers and ".tar?" in f"{self.path}?")
        if fault in ANSWERS:
            return self._refuse(*ANSWERS[fault])
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if fault == "gateway":
            return self._answer(502, [("Content-Type", "text/html")], b"<html><h1>502 Bad Gateway</h1>")
        if fault == "silent":
            return self._wait()
        return self._forward(fault)

    do_PUT = do_POST = do_DELETE = do_GET

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, [], f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode())

    def _forward(self, fault: str) -> None:
        """The server's own answer; all of it but for the faults of answers on their way."""
        upstream = HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=20)
        upstream.request(self.command, self.path, self.content, dict(self.headers))
        reply = upstream.getresponse()
        body = reply.read()
        kept = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() in KEPT or name.lower().startswith("x-amz")
        ]
        upstream.close()
        if fault == "unanswered":
            self.close_connection = True
            return None
        if fault == "short":  # consistent with itself: only the object's size tells
            return self._answer(reply.status, kept, body[: len(body) // 2])
        if fault == "flipped":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self._answer(reply.status, kept, body, sent=len(body) // 2 if fault in ("cut", "stalled") else len(body))
        if fault == "stalled":
            self._wait()
        return None

    def _answer(self, status: int, headers: list, body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.wfile.flush()
        if sent is not None and sent < len(body):
            self.close_connection = True

    def _wait(self) -> None:
        self.close_connection = True
        self.server.closing.wait(30)


KEPT = ("etag", "content-range", "content-type", "last-modified")
