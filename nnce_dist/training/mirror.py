"""Copies of a job's checkpoints in a store: committed there once their manifest is, which goes up last."""

import json
import math
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from ..config import schema
from ..data.store import Blob, Store
from . import checkpoint, retention
from .checkpoint import MANIFEST, CheckpointError, FencedError, Guard

FOLDER = "checkpoints"
_PAUSE = 10.0  # seconds between an upload that failed, its own retries included, and the next attempt


class Mirror:
    """The checkpoints under `<url>/checkpoints/`, as they lie in a job's folder, and the log beside them."""

    def __init__(self, store: Store, url: str, guard: Guard, log: Path):
        self.url, self._store, self._guard, self._log = url, store, guard, log
        self._damaged: set[int] = set()  # positions whose copies were found to be useless
        self._figures: dict[int, float] = {}  # of copies, by position

    def positions(self) -> set[int]:
        """Positions of all checkpoints, half-uploaded ones among them."""
        return set(self._objects())

    def push(self, path: Path, training: schema.Training) -> None:
        """Commits copies of the newest checkpoint and of the best one, then drops what the settings do not keep.

        Raises OSError or ValueError of the store, FencedError when another job has taken the run over.
        """
        self._commit(path)
        best = retention.best({each: retention.figure_of(each) for each in checkpoint.committed(path.parent)})
        try:
            if best and best < path:  # when it was the newest another one may have overtaken it
                self._commit(best)
        except FileNotFoundError:
            if best.exists():
                raise  # else there is a better one now
        self._drop_surplus(checkpoint.position(path), training)

    def _commit(self, path: Path) -> None:
        if self._is_there(path):
            return
        for file in sorted(path.iterdir()):
            if file.name != MANIFEST:
                self._store.put(self._place(path.name, file.name), file)
        if self._log.exists():
            self._store.put(f"{self.url}/{self._log.name}", self._log)
        self._guard.check()
        self._store.put(self._place(path.name, MANIFEST), path / MANIFEST)
        self._damaged.discard(checkpoint.position(path))
        self._figures.pop(checkpoint.position(path), None)

    def fetch(self, samples_seen: int, directory: Path) -> str | None:
        """Commits a checkpoint of the store here. Why it cannot be used, or None."""
        reason = self._fetch(checkpoint.at(directory, samples_seen))
        if reason:
            self._damaged.add(samples_seen)
        return reason

    def _fetch(self, final: Path) -> str | None:
        temporary = final.parent / f"{checkpoint.UNFINISHED}{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            self._download(final.name, temporary)
            if reason := checkpoint.problem(temporary):
                return reason
            temporary.rename(final)
        except (FileNotFoundError, ValueError, KeyError) as error:
            return f"not uploaded whole ({type(error).__name__})"
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return None

    def _download(self, name: str, folder: Path) -> None:
        manifest = self._store.read(self._place(name, MANIFEST))
        for file in json.loads(manifest)["sha256"]:
            blob, _ = self._store.peek(self._place(name, file), 1)
            with open(folder / Path(file).name, "wb") as target:
                self._store.fetch(blob, target)
        (folder / MANIFEST).write_bytes(manifest)

    def _is_there(self, path: Path) -> bool:
        if checkpoint.position(path) in self._damaged:
            return False
        try:
            return self._store.read(self._place(path.name, MANIFEST)) == (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return False

    def _place(self, name: str, file: str) -> str:
        return f"{self.url}/{FOLDER}/{name}/{file}"

    def _objects(self) -> dict[int, list[Blob]]:
        """The objects of each checkpoint, by its position."""
        found: dict[int, list[Blob]] = {}
        for blob in self._store.objects(f"{self.url}/{FOLDER}"):
            name = blob.url.split("/")[-2]
            if name.isdecimal():
                found.setdefault(int(name), []).append(blob)
        return found

    def _drop_surplus(self, newest: int, training: schema.Training) -> None:
        """Drops copies as checkpoints are dropped here, and what is not whole or lies beyond the newest: damaged."""
        found = self._objects()
        whole = {n for n, blobs in found.items() if n <= newest and any(blob.url.endswith(MANIFEST) for blob in blobs)}
        sizes = {n: sum(blob.size for blob in found[n]) for n in whole - self._damaged}
        kept = retention.staying(sizes, {n: self._figure(n) for n in sizes}, training)
        self._guard.check()  # only now: what was found beyond the newest may be the next owner's
        for number in found.keys() - set(kept):
            for blob in sorted(found[number], key=lambda blob: not blob.url.endswith(MANIFEST)):  # what makes it whole
                self._store.delete(blob.url)

    def _figure(self, number: int) -> float:
        """What `training.keep_best` compares of a copy, asked for once; inf where it cannot be told."""
        if number not in self._figures:
            place = self._place(checkpoint.at(Path(), number).name, checkpoint.SCALARS)
            try:
                self._figures[number] = retention.figure(json.loads(self._store.read(place)))
            except (FileNotFoundError, ValueError):
                return math.inf
        return self._figures[number]


class Uploads:
    """Copies commits to the mirror in the background; one that is overtaken while it waits is left out."""

    def __init__(self, mirror: Mirror, say: Callable[[str], None]):
        self._mirror, self._say = mirror, say
        self._changed = threading.Condition()
        self._wanted: tuple[Path, schema.Training] | None = None
        self._error: Exception | None = None  # of the last attempt
        self._thread: threading.Thread | None = None
        self.uploading: Path | None = None  # must not be removed

    def offer(self, path: Path, training: schema.Training) -> None:
        """Has the newest checkpoint copied; returns at once."""
        with self._changed:
            self._wanted = (path, training)
            self._changed.notify_all()
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()

    def raise_failure(self) -> None:
        """Raises FencedError once another job has taken the mirror over. Other failures are tried again."""
        if isinstance(self._error, FencedError):
            raise self._error

    def wait(self, seconds: float) -> None:
        """Returns when the newest commit has been copied. Raises CheckpointError after the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted or isinstance(self._error, FencedError), seconds)
            self.raise_failure()
            if self._wanted:
                told = f" ({' '.join(str(self._error).split())})" if self._error else ""
                raise CheckpointError(
                    f"{self._mirror.url}: {self._wanted[0]} could not be copied there within {seconds:.0f} s{told}; "
                    "run again on this machine, and it will be"
                )

    def close(self) -> None:
        """Begins no other upload."""
        with self._changed:
            self._wanted = None
            self._changed.notify_all()

    def _work(self) -> None:
        while wanted := self._next():
            try:
                self._mirror.push(*wanted)
            except Exception as error:
                self._failed(error)
                if isinstance(error, FencedError):
                    return
            else:
                self._done(wanted)

    def _next(self) -> tuple[Path, schema.Training] | None:
        with self._changed:
            if not self._wanted:
                self._thread = self.uploading = None
                return None
            self.uploading = self._wanted[0]
            return self._wanted

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
        if isinstance(error, FencedError):
            return
        self._say(f"checkpoint not copied yet: {' '.join(str(error).split())}; training goes on, it is tried again")
        with self._changed:
            if self._wanted:
                self._changed.wait(_PAUSE)  # or until there is a newer one

    def _done(self, wanted: tuple[Path, schema.Training]) -> None:
        with self._changed:
            self._error = None
            if self._wanted == wanted:
                self._wanted = None
            self._changed.notify_all()
