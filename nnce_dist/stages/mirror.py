"""A copy of a run's folder in a store, under the same names: a machine that has nothing goes on from it."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from ..config.schema import Config
from ..data.store import Blob, Store, open_store
from ..metrics.jsonl import FILE_NAME
from ..training.checkpoint import CheckpointError
from ..training.mirror import FOLDER, Mirror
from .folder import RESULT, run_root
from .owner import Owner
from .remote_lease import BEAT, RemoteGuard

OWNER = "owner.json"  # the run's lease on this machine


class RunMirror:
    """The copy at `<run.mirror>/<run.name>`. Errors are those of the store, one line each."""

    def __init__(self, config: Config):
        self.root, self.url = run_root(config), f"{config.run.mirror.rstrip('/')}/{config.run.name}"
        s3 = config.data.s3
        self._store = open_store([self.url], s3)
        self.lease_store = open_store([self.url], dataclasses.replace(s3, timeout=min(s3.timeout, BEAT)))

    def pull(self, say: Callable[[str], None]) -> None:
        """Brings the run's files here as another machine left them; checkpoints follow when their jobs go on."""
        start = len(self.url) + 1
        there = {blob.url[start:]: blob for blob in self._store.objects(self.url)}
        names = [name for name in there if not self._is_special(name)]
        for name in sorted(names, key=lambda name: name.endswith(RESULT)):  # which makes a job done
            _fetch(self._store, there[name], self.root / name)
            if name.endswith(FILE_NAME):  # a log and checkpoints of one history belong together
                shutil.rmtree((self.root / name).parent / FOLDER, ignore_errors=True)
        if names:
            say(f"the run went on elsewhere: {len(names)} files come from {self.url}")

    def push(self, folder: Path) -> None:
        """Copies the files of a folder of the run, what makes a job done last."""
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RESULT):
            if path.is_file() and not self._is_special(path.relative_to(self.root).as_posix()):
                self._store.put(self._url_of(path), path)

    def check(self) -> None:
        """Raises FencedError once another machine writes the run; on this one none can while the lease is held."""
        if owner := Owner.decode((self.root / OWNER).read_bytes()):
            self.guard(owner.epoch).check()

    def forget(self, folder: Path) -> None:
        """Deletes the copy of a job's folder, which is to be made anew."""
        for blob in self._store.objects(self._url_of(folder)):
            self._store.delete(blob.url)

    def complete(self) -> None:
        """The last copy: finished jobs whose own failed, and the report. Raises CheckpointError when it fails, too."""
        try:
            self.check()
            there = {blob.url for blob in self._store.objects(self.url)}
            for result in self.root.rglob(RESULT):
                if self._url_of(result) not in there:
                    self.push(result.parent)
            self.push(self.root)
        except OSError as error:
            raise CheckpointError(f"the copy of the run is not complete ({error}); run again to complete it") from error

    def of_job(self, folder: Path, epoch: int) -> Mirror:
        """The copies of a job's checkpoints."""
        return Mirror(self._store, self._url_of(folder), self.guard(epoch), folder / FILE_NAME)

    def guard(self, epoch: int) -> RemoteGuard:
        """The right of a job to write here."""
        return RemoteGuard(self._store, self.url, epoch)

    def _url_of(self, path: Path) -> str:
        return f"{self.url}/{path.relative_to(self.root).as_posix()}"

    def _is_special(self, name: str) -> bool:
        """What is not copied as it is: checkpoints, leases, files that are being written."""
        *folders, file = name.split("/")
        unfinished = file.startswith(".") or file.endswith(".tmp")
        return FOLDER in folders or folders[:1] == ["lease"] or file == OWNER or unfinished


def run_mirror(config: Config) -> RunMirror | None:
    """The copy that the configuration asks for."""
    return RunMirror(config) if config.run.mirror else None


def _fetch(store: Store, blob: Blob, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    with open(unfinished, "wb") as file:
        store.fetch(blob, file)
    unfinished.replace(path)
