"""A read-only S3 server over a folder, `s3://bucket/key` being `folder/bucket/key`, with a delay before every answer.

Run: python tests/benchmarks/s3_files.py FOLDER [--delay 0.05]; it prints its port.

It does what readers of whole objects and of ranges ask, and lists, and little else: so it takes little of the cores
that the loaders share with it (a moto server needs several times as much per byte). An ETag is the MD5, as it is there.
"""

import argparse
import hashlib
import os
import re
import time
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000  # keys in one answer


@cache
def etag(path: Path, _size: int, _modified: int) -> str:
    """The MD5 of a file as it is now, in quotes; worked out once."""
    with open(path, "rb") as file:
        return f'"{hashlib.file_digest(file, "md5").hexdigest()}"'


def version(path: Path) -> tuple[int, str]:
    """Size and ETag."""
    status = path.stat()
    return status.st_size, etag(path, status.st_size, status.st_mtime_ns)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of objects, whole or one range."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, folder: Path, delay: float, *connection):
        self._folder, self._delay = folder, delay
        super().__init__(*connection)

    def log_message(self, *arguments) -> None:
        """Nothing is logged."""

    def do_HEAD(self) -> None:
        """Headers alone."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Headers and content."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(self._delay)
        address = urlsplit(self.path)
        path = self._folder / unquote(address.path).strip("/")
        if "list-type" in (asked := parse_qs(address.query)):
            return self._list(path, *(asked.get(name, [""])[0] for name in ("prefix", "continuation-token")))
        try:
            file = open(path, "rb")  # noqa: SIM115
        except (FileNotFoundError, IsADirectoryError):
            return self._refuse()
        with file:
            size, tag = version(path)
            first, last = self._range(size)
            self.send_response_only(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(last - first + 1))
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.flush()
            while body and first <= last:
                first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)
        return None

    def _range(self, size: int) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)

    def _list(self, bucket: Path, prefix: str, after: str) -> None:
        """A page of the keys with a prefix; the key after which it begins is its token."""
        found = ((path.relative_to(bucket).as_posix(), path) for path in bucket.rglob("*") if path.is_file())
        keys = sorted((key, path) for key, path in found if key.startswith(prefix) and key > after)
        items = [
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>{escape(tag)}</ETag></Contents>"
            for key, (size, tag) in ((key, version(path)) for key, path in keys[:PAGE])
        ]
        more = f"<NextContinuationToken>{escape(keys[PAGE - 1][0])}</NextContinuationToken>" if keys[PAGE:] else ""
        truncated = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        self._send(200, f"<ListBucketResult>{truncated}{more}{''.join(items)}</ListBucketResult>")

    def _refuse(self) -> None:
        self._send(404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")


class Server(ThreadingHTTPServer):
    """One thread per connection; clients that leave early are no error."""

    daemon_threads = True

    def handle_error(self, *request) -> None:
        """Nothing is printed."""


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    chosen = parser.parse_args()
    for path in chosen.folder.rglob("*"):
        if path.is_file():
            version(path)  # now, rather than while a loader waits
    server = Server(("127.0.0.1", 0), partial(Handler, chosen.folder, chosen.delay))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
