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
from contextlib import closing, contextmanager, suppress
from pathlib import Path

MARK = "NNCE_TEST_MARK"
HERE = Path(__file__).parent


def outside() -> dict[str, str]:
    """The environment as a person's shell has it: without what `nnce_dist.on_ray` sets where it is imported."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}


@contextmanager
def ray_environment() -> Iterator[dict[str, str]]:
    """An environment for a Ray of its own: its files, token and mark; the folder is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # short: unix sockets allow 107 characters
    environment = {
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{HERE}:{HERE.parents[1]}",  # workers import the functions of the tests
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


DRAIN = """
import sys, time
import ray
from ray._raylet import GcsClient
ray.init(logging_level="ERROR", log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == "127.0.0.3"]
preempted, deadline = 2, int((time.time() + int(sys.argv[2])) * 1000)
print(GcsClient(sys.argv[1]).drain_node(node, preempted, "the owner wants it back", deadline))
"""


class Cluster:
    """Nodes of one cluster on loopback addresses, started as an administrator would; each ends with its processes."""

    def __init__(self, settings: dict[str, str]):
        self._settings = settings | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # of jobs' `python`
        (Path(settings["RAY_TMPDIR"]) / "token").write_text("0" * 64)
        self._address, self._dashboard = f"127.0.0.2:{free_port()}", free_port()
        self._nodes: dict[str, subprocess.Popen] = {}
        self.job = self._settings | {"RAY_ADDRESS": f"http://127.0.0.1:{self._dashboard}"}  # of who submits jobs
        self.driver = self._settings | {"RAY_ADDRESS": self._address}  # of a driver outside

    def start_head(self, num_cpus: int) -> str:
        """The head, perhaps in place of one that was killed; gives its mark."""
        ports = [f"--port={self._address.rpartition(':')[2]}", f"--dashboard-port={self._dashboard}"]
        return self._start(2, num_cpus, "--head", *ports, f"--ray-client-server-port={free_port()}")

    def add_node(self, num_cpus: int, **environment: str) -> str:
        """One more node; gives its mark."""
        return self._start(2 + len(self._nodes), num_cpus, f"--address={self._address}", **environment)

    def drain(self, seconds: int) -> None:
        """Tells Ray that the node beside the head will be taken away in so many seconds."""
        command = [sys.executable, "-c", DRAIN, self._address, str(seconds)]
        done = subprocess.run(command, env=outside() | self.driver, capture_output=True, text=True, timeout=60)
        if done.stdout.strip() != "(True, '')":
            raise RuntimeError(f"the node is not drained: {done.stdout} {done.stderr}")

    def _start(self, number: int, num_cpus: int, *words: str, **settings: str) -> str:
        options = [f"--node-ip-address=127.0.0.{number}", f"--num-cpus={num_cpus}", "--block"]
        options += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        options += [f"--object-store-memory={100 * 2**20}"]
        for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may exceed
            mark = uuid.uuid4().hex
            environment = outside() | self._settings | settings | {MARK: mark}
            self._nodes[mark] = subprocess.Popen(
                [*RAY, "start", *words, *options], env=environment, stdout=subprocess.PIPE, text=True
            )
            if any("Ray runtime started" in line for line in self._nodes[mark].stdout):
                return mark
            self.kill(mark)
        raise RuntimeError(f"node {number} does not start")

    def kill(self, node: str) -> None:
        """Ends all processes of a node at once; asked politely one would wait 30 s for its work to drain."""
        process = self._nodes.pop(node)
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()
        end(node)

    def close(self) -> None:
        """Ends every node."""
        for node in reversed(list(self._nodes)):
            self.kill(node)


@contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Cluster]:
    """A cluster that has a head; it asks for a token."""
    with ray_environment() as settings, closing(Cluster(settings)) as cluster:
        cluster.start_head(num_cpus)
        yield cluster


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


def command_line(pid: int) -> str:
    """A process's command line; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_until(condition: Callable[[], object], seconds: float, what: str, poll: float = 0.2) -> None:
    """Returns when the condition is true, asked every `poll` seconds; TimeoutError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(poll)
