"""One writer per run: a lock on the run's folder, whose record names the owner, and an epoch that every commit carries.

The kernel frees the lock when its owner ends, however it ends. What an ended owner's workers may still try to write is
refused by the epoch, which grows with every owner.
"""

import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..training.checkpoint import FencedError
from .mirror import OWNER, RunMirror
from .owner import RECORD_BYTES, Owner
from .remote_lease import remote_lease


@contextmanager
def lease(root: Path, mirror: RunMirror | None, say: Callable[[str], None]) -> Iterator[int]:
    """The right to write a run and its mirror for the time of the block; gives the epoch.

    Raises ValueError naming the owner when another job has it. The lease of one that did not end well is taken over.
    Where the run went on elsewhere since it was written here, its files are brought here first.
    """
    root.mkdir(parents=True, exist_ok=True)
    file = os.open(root / OWNER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, root)
        before = Owner.decode(os.pread(file, RECORD_BYTES, 0))
        if before and not before.released:
            say(f"taking over {root} from {before}, which did not end well")
        after = before.epoch if before else 0
        there = remote_lease(mirror.lease_store, mirror.url, after, say) if mirror else nullcontext(after + 1)
        with there as epoch:
            if mirror and epoch > after + 1:
                mirror.pull(say)
            with _recorded(file, Owner.of_this_process(epoch)):
                yield epoch
    finally:
        os.close(file)


@contextmanager
def _recorded(file: int, mine: Owner) -> Iterator[None]:
    os.pwrite(file, mine.encode(), 0)
    try:
        yield
    finally:
        os.pwrite(file, dataclasses.replace(mine, released=True).encode(), 0)


def _lock(file: int, root: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = Owner.decode(os.pread(file, RECORD_BYTES, 0)) or "another job"
        raise ValueError(f"{root}: {owner}, writes this run; wait, stop it, or choose another run.name") from None
    except OSError as error:
        raise ValueError(f"{root}: this file system has no locks ({error.strerror}); choose another run.dir") from error


@dataclass(frozen=True)
class RunGuard:
    """What a job's process knows of the right to write its run (see `training.checkpoint.Guard`)."""

    root: Path
    epoch: int  # of the job; 0: of a run that nobody leases

    def check(self) -> None:
        """Raises FencedError once the run has another owner."""
        if not self.epoch:
            return
        owner = Owner.decode((self.root / OWNER).read_bytes())
        if owner is None or owner.epoch != self.epoch:
            raise FencedError(f"{self.root} was taken over by {owner or 'another job'}; this one writes no more")
