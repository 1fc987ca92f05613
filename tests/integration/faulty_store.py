"""A proxy in front of an S3 server that fails the next GETs in a chosen way and counts what it is asked."""

import socket
import struct
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "internal": (500, "InternalError"),
    "unavailable": (503, "ServiceUnavailable"),
    "slow down": (503, "SlowDown"),
    "too many": (429, "TooManyRequests"),
    "timeout": (400, "RequestTimeout"),
    "denied": (403, "AccessDenied"),
    "signature": (403, "SignatureDoesNotMatch"),
    "expired": (400, "ExpiredToken"),
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

    def fail(self, fault: str, times: int = FOR_EVER, whole_only: bool = False) -> None:
        """The next `times` GETs fail (only those without a range if `whole_only`); counting starts again."""
        self.fault, self.times, self.whole_only, self.requests = fault, times, whole_only, 0

    def next_fault(self, has_range: bool) -> str:
        """The fault of a request, counted."""
        self.requests += 1
        if self.times <= 0 or (self.whole_only and has_range):
            return "nothing"
        self.times -= 1
        return self.fault

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
        fault = self.server.next_fault("Range" in self.headers)
        if fault in ANSWERS:
            return self._refuse(*ANSWERS[fault])
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if fault == "silent":
            return self._wait()
        return self._forward(fault)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, [], f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode())

    def _forward(self, fault: str) -> None:
        upstream = HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=20)
        upstream.request("GET", self.path, headers=dict(self.headers))
        reply = upstream.getresponse()
        body = reply.read()
        kept = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() in KEPT or name.lower().startswith("x-amz")
        ]
        upstream.close()
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
