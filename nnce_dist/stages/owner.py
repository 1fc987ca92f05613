"""Who may write a run: a process, named so that another one, here or elsewhere, can tell whether it still lives."""

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RECORD_BYTES = 1024  # every record's size: one can be overwritten in place, which works on a full disk too


@dataclass(frozen=True)
class Owner:
    """The process that may write a run."""

    epoch: int
    host: str
    machine: str  # tells whether process numbers can be compared
    pid: int
    started: str  # with the number it names a process for good
    since: str
    beat: int = 0  # counts the signs of life, where there are any
    released: bool = False  # it ended well

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def of_this_process(cls, epoch: int) -> "Owner":
        """This process as the owner."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(epoch, socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()), now)

    @classmethod
    def decode(cls, content: bytes) -> "Owner | None":
        """The owner that a record names; None for an empty or foreign one."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def encode(self) -> bytes:
        """The record: JSON, always of the same size."""
        return json.dumps(dataclasses.asdict(self)).ljust(RECORD_BYTES).encode()

    def has_ended(self) -> bool:
        """Whether the owner is a process of this machine that is no more."""
        return self.machine == _machine() and self.started != _started(self.pid)


def _machine() -> str:
    """One boot of one kernel, and the space of process numbers in it."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none, or nothing of it but its exit status."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]
