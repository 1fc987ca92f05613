"""One writer per run in a store: `<url>/lease/<epoch>.json`, made by whoever comes first, with a heart-beat.

The newest epoch is the owner. It is stale when its process is known to have ended, or when it was seen to miss three
beats; nobody's clock is compared with another's. A former owner finds a newer epoch before it commits.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..data.store import Store
from ..training.checkpoint import FencedError
from .owner import Owner

BEAT = 10.0  # seconds
_MISSED = 3  # beats until an owner counts as gone


@dataclass(frozen=True)
class RemoteGuard:
    """What a process knows of the right to write the copy of a run (see `training.checkpoint.Guard`)."""

    store: Store
    url: str  # of the run
    epoch: int

    def check(self) -> None:
        """Raises FencedError once the run has another owner."""
        newest = _newest(self.store, self.url)
        if newest and newest[0].epoch != self.epoch:
            raise FencedError(f"{self.url} was taken over by {newest[0]}; this job writes no more")


@contextmanager
def remote_lease(store: Store, url: str, after: int, say: Callable[[str], None], beat: float = BEAT) -> Iterator[int]:
    """The right to write the copy of a run for the time of the block; gives an epoch greater than `after`.

    Raises ValueError naming the owner when another job has it, as soon as that job gives a sign of life.
    """
    before = _newest(store, url)
    if before and not before[0].released:
        _require_stale(store, url, before, say, beat)
        say(f"taking over {url} from {before[0]}, which did not end well")
    mine = Owner.of_this_process(1 + max(after, before[0].epoch if before else 0))
    _create(store, url, mine)
    ended = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(store, url, mine, beat, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield mine.epoch
    finally:
        ended.set()
        thread.join(timeout=beat)
        with suppress(OSError):  # a store that does not answer: the next job will see no sign of life
            store.put(_place(url, mine.epoch), dataclasses.replace(mine, released=True).encode())


def _place(url: str, epoch: int) -> str:
    return f"{url}/lease/{epoch:06d}.json"


def _newest(store: Store, url: str) -> tuple[Owner, str] | None:
    """The owner with the greatest epoch, and the version of its record."""
    for blob in reversed(store.objects(f"{url}/lease")):
        if owner := Owner.decode(store.read(blob.url)):
            return owner, blob.version
    return None


def _require_stale(store: Store, url: str, before: tuple[Owner, str], say: Callable[[str], None], beat: float) -> None:
    """Returns once the owner is known to be gone; ValueError at its first sign of life."""
    if before[0].has_ended():
        return
    say(f"{url}: {before[0]}, has not released it; waiting up to {_MISSED * beat:g} s for a sign of life")
    end = time.monotonic() + _MISSED * beat
    while time.monotonic() < end:
        time.sleep(beat / 4)
        if (now := _newest(store, url)) != before:
            raise ValueError(f"{url}: {now[0]}, writes this run; wait, stop it, or choose another run.name")


def _create(store: Store, url: str, mine: Owner) -> None:
    try:
        store.create(_place(url, mine.epoch), mine.encode())
    except FileExistsError:
        raise ValueError(f"{url}: another job has just begun to write this run; choose another run.name") from None
    RemoteGuard(store, url, mine.epoch).check()
    for blob in store.objects(f"{url}/lease"):
        if blob.url < _place(url, mine.epoch):
            store.delete(blob.url)


def _keep_beating(store: Store, url: str, mine: Owner, beat: float, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(beat):
        number += 1
        with suppress(
            OSError
        ):  # tried again at the next beat; whoever takes over meanwhile is found at the next commit
            store.put(_place(url, mine.epoch), dataclasses.replace(mine, beat=number).encode())
