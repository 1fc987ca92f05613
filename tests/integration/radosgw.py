"""A Ceph RADOS Gateway for tests: one monitor, one storage daemon in memory and the gateway, all on 127.0.0.1.

It needs neither root nor an installation: the packages radosgw, ceph-mon, ceph-osd and ceph-common of a distribution,
unpacked anywhere, are enough.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from processes import accepts, free_port, wait_until

SETTINGS = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v1:127.0.0.1:{monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 2147483648
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
keyring = {folder}/keyring
log_file = {folder}/$name.log
crash_dir = {folder}
run_dir = {folder}
admin_socket =
pid_file =
plugin_dir = {libraries}/ceph
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
"""


def program() -> Path | None:
    """The gateway's path, where one is installed or NNCE_RADOSGW names one."""
    found = os.environ.get("NNCE_RADOSGW") or shutil.which("radosgw")
    return Path(found) if found else None


class _Cluster:
    """Runs Ceph's programs in a folder, with its own libraries."""

    def __init__(self, gateway: Path, folder: Path, stack: ExitStack):
        self._root, self._folder, self._stack = gateway.parents[2], folder, stack
        self.libraries = next((path.parent for path in self._root.glob("usr/lib/*/ceph")), self._root / "usr/lib")
        places = (self.libraries, self.libraries / "ceph", self._root / "lib" / self.libraries.name)
        self._environment = os.environ | {
            "LD_LIBRARY_PATH": ":".join(map(str, places)),
            "PYTHONPATH": str(self._root / "usr/lib/python3/dist-packages"),
        }

    def run(self, name: str, *arguments: str) -> None:
        """One command to its end; RuntimeError with what it said."""
        line = [*self._line(name), *arguments]
        done = subprocess.run(
            line, env=self._environment, cwd=self._folder, capture_output=True, text=True, timeout=180
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")

    def start_surely(self, name: str, *arguments: str) -> None:
        """A daemon that may end at once: an OSD does ("wrong fsid") when its first word comes before the monitor's."""
        for _ in range(5):
            with suppress(subprocess.TimeoutExpired):
                self.start(name, *arguments).wait(timeout=3)
                continue
            return
        raise RuntimeError(f"{name} does not stay up; see its log in {self._folder}")

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        """A daemon that ends with the test."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        line = [*self._line(name), *arguments, "-f"]
        daemon = subprocess.Popen(line, env=self._environment, cwd=self._folder, **quiet)
        self._stack.callback(daemon.wait, timeout=10)
        self._stack.callback(daemon.kill)  # all it has is in memory
        return daemon

    def _line(self, name: str) -> list[str]:
        path = str(self._root / "usr/bin" / name)
        if name in ("ceph-authtool", "monmaptool"):
            return [path]
        system = ["/usr/bin/python3"] if name == "ceph" else []  # its bindings are for the distribution's own Python
        return [*system, path, "-c", "ceph.conf"]


@contextmanager
def radosgw_server(gateway: Path, folder: Path, users: dict[str, tuple[str, str]]) -> Iterator[int]:
    """The port of a gateway; `users` have a key id and a secret each."""
    monitor, port, disk = free_port(), free_port(), str(uuid.uuid4())
    with ExitStack() as stack:
        ceph = _Cluster(gateway, folder, stack)
        names = {"fsid": uuid.uuid4(), "monitor": monitor, "gateway": port}
        text = SETTINGS.format(folder=folder, libraries=ceph.libraries, **names)
        (folder / "ceph.conf").write_text(text)
        for part in ("mon", "osd", "rgw"):
            (folder / part).mkdir()
        capabilities = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        ceph.run("ceph-authtool", "keyring", "--create-keyring", "--gen-key", "-n", "client.rgw", *capabilities)
        at = f"[v1:127.0.0.1:{monitor}]"
        ceph.run("monmaptool", "--create", "--addv", "a", at, "--fsid", str(names["fsid"]), "monmap")
        ceph.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap")
        ceph.start("ceph-mon", "-i", "a")
        ceph.run("ceph", "--connect-timeout", "120", "osd", "new", disk)
        ceph.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        ceph.start_surely("ceph-osd", "-i", "0")
        for user, (key_id, secret) in users.items():
            keys = (f"--access-key={key_id}", f"--secret-key={secret}")
            ceph.run("radosgw-admin", "-n", "client.rgw", "user", "create", f"--uid={user}", "--display-name=x", *keys)
        ceph.start("radosgw", "-n", "client.rgw")
        wait_until(lambda: accepts(port), 60, "the gateway's start")
        yield port
