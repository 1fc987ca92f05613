"""Processes that tests start: told apart from others by a mark in their environment, which their children inherit."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "NNCE_TEST_MARK"


@contextmanager
def ray_environment() -> Iterator[dict[str, str]]:
    """An environment for a Ray of its own: its files, token and mark; the folder is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # short: unix sockets allow 107 characters
    environment = {
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parent),  # workers import the functions of the tests
        "OMP_NUM_THREADS": "1",
        MARK: uuid.uuid4().hex,
    }
    try:
        yield environment
    finally:
        shutil.rmtree(home, ignore_errors=True)


RAY = [str(Path(sys.executable).with_name("ray"))]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[dict[str, str]]:
    """A cluster of one node, started as an administrator would; gives the environment of a person who submits jobs.

    It listens on 127.0.0.1 alone, asks for a token, and ends with all its processes.
    """
    with ray_environment() as settings:
        settings |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where jobs find `python`
        }
        (Path(settings["RAY_TMPDIR"]) / "token").write_text("0" * 64)
        port, dashboard = free_port(), free_port()
        options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", "--block"]
        options += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        options += [f"--metrics-export-port={free_port()}", f"--object-store-memory={100 * 2**20}"]
        head = subprocess.Popen(
            [*RAY, "start", "--head", *options], env=os.environ | settings, stdout=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: accepts(dashboard) or head.poll() is not None, 60, "the head's start")
            yield settings | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        finally:
            head.kill()  # asked politely it would wait 30 s for its own node to drain
            head.wait(timeout=10)
            end(settings[MARK])


def accepts(port: int) -> bool:
    """Whether something listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def end(mark: str) -> None:
    """Kills the marked processes and waits until they are gone."""

    def none_left():
        for process in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not marked(mark)

    wait_until(none_left, 10, "the end of all processes")


def marked(mark: str) -> list[int]:
    """The living processes, other than this one, whose environment holds the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # gone meanwhile, or a zombie
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Returns when the condition is true; TimeoutError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
