"""Connecting to Ray: as a job's driver on a cluster, or with a small Ray of our own on this machine."""

import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import ray._private.worker
from ray._common.utils import get_default_system_temp_dir

from .stopping import StopOnSignal
from .versions import differences

CONNECT_TIMEOUT = 120.0  # seconds; a loaded laptop needs up to 25 to start Ray
_LOOPBACK = "127.0.0.1"  # where a Ray of our own listens, and nowhere else (see this folder's __init__)
_OBJECT_STORE_BYTES = 100 * 2**20  # payloads and return values are small; the default takes 30 % of the memory


class ClusterError(RuntimeError):
    """Ray cannot be reached or started, has too little to offer, or lost what was running; one line says which."""


_MOST_BEFOREHAND = 16  # processes, which then have 250 MB each to themselves


@contextmanager
def session(verbose: bool = False, num_cpus: int | None = None, grace: float = 0, alone: str = "") -> Iterator[None]:
    """Ray for the time of the block; after SIGINT or SIGTERM its workers have `grace` seconds to save (`StopOnSignal`).

    Without RAY_ADDRESS a Ray of our own starts, with `num_cpus` CPUs (all of the machine's by default), and is gone
    afterwards with all its processes and their temporary files; Ray's own logs stay where Ray puts them. It starts
    faster for jobs that run `alone` in their processes, given as their module, and has no worker groups then. Within an
    outer session this is that session.
    """
    if ray.is_initialized():
        yield
        return
    with nullcontext("") if os.environ.get("RAY_ADDRESS") else _temporary_folder() as temporary:
        connect(temporary, verbose, num_cpus, alone)
        try:
            if os.environ.get("RAY_ADDRESS") and (line := differences()):
                raise ClusterError(line)
            with StopOnSignal(grace):
                yield
        finally:
            _end()


def _end() -> None:
    """Leaves a cluster, or ends a Ray of our own; asked politely, its autoscaler takes the second that Ray gives it."""
    node = ray._private.worker._global_node
    if node and node.is_head():
        node.kill_monitor(check_alive=False)  # it has no nodes to start, no processes and no files
    ray.shutdown()


def _temporary_folder() -> TemporaryDirectory:
    """Beside the sessions of a Ray of our own: sockets are made in it, whose paths must be short."""
    place = get_default_system_temp_dir()
    os.makedirs(place, exist_ok=True)
    return TemporaryDirectory(prefix="nnce-", dir=place, ignore_cleanup_errors=True)


def connect(temporary: str, verbose: bool = False, num_cpus: int | None = None, alone: str = "") -> None:
    """Connects to the cluster at RAY_ADDRESS, or starts a Ray of our own; raises `ClusterError` if that fails.

    The processes of our own Ray put their temporary files into the folder `temporary`.
    """
    level = logging.INFO if verbose else logging.ERROR
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
    hint = "does it ask for a token (export RAY_AUTH_MODE=token)?" if address else "run with --verbose to see why"
    try:
        with _exit_after(CONNECT_TIMEOUT, f"error: {where} did not answer within {CONNECT_TIMEOUT:.0f} s; {hint}"):
            if address:
                _reach(address)
                ray.init(logging_level=level, log_to_driver=verbose)
            else:
                _make_token()
                _start(temporary, level, verbose, num_cpus, alone)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:400]  # Ray lists differing versions line by line
        raise ClusterError(f"cannot connect to {where}: {reason or type(error).__name__}; {hint}") from error


def _start(temporary: str, level: int, verbose: bool, num_cpus: int | None, alone: str) -> None:
    """Starts a Ray of our own.

    Its processes get its address in RAY_ADDRESS: Ray's own cleaners ask the state API without saying which cluster they
    mean, fail where a second Ray runs on the machine, and then never give back a dead run's resources. In TMPDIR the
    dashboard and torch leave files; by itself it would move Ray's sessions, too.
    """
    with socket.create_server((_LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    address = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{_LOOPBACK}:{port}"}
    places = {"TMPDIR": temporary, "RAY_TMPDIR": os.path.dirname(temporary)}
    with _environment(address | places | _imported_beforehand(alone, num_cpus or os.cpu_count())):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=not alone,  # ten processes; Ray Train's cleaners ask the state API, which is one of them
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=level,
            log_to_driver=verbose,
        )


def _imported_beforehand(module: str, processes: int) -> dict[str, str]:
    """Has the processes that Ray starts first, one per CPU, import what trials need; not where they are many."""
    if not module or processes > _MOST_BEFOREHAND:
        return {}
    return {"RAY_preload_python_modules": f"{__package__}.sweep,{module}"}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _reach(address: str) -> None:
    """Raises in seconds when nothing listens at host:port, where Ray itself would try for a minute."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise ValueError("this is a job server's address: use `ray job submit`, or unset RAY_ADDRESS to run here")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ValueError("expected host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _make_token() -> None:
    """Makes the token that guards a new cluster readable by its owner only; Ray's own would be world-readable."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


@contextmanager
def _exit_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with `message` if the block hangs: a call inside Ray's C++ core cannot be interrupted."""

    def give_up():
        print(message, file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
