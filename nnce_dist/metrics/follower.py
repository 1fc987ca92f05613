"""Reads the metrics.jsonl files of a run while others write them.

Trials and workers are other processes, on other machines perhaps; each writes its records to its own directory below
the run's. Following those files needs no connection to any of them and shows finished trials after a restart as well.
"""

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from .jsonl import FILE_NAME, decode
from .recorder import FanOut, Sink

logger = logging.getLogger(__name__)


class Follower:
    """Sends the records of every metrics.jsonl below `root` to the sinks, new ones every `interval` seconds.

    Records that exist at the start go to `sinks` only; later ones go to `live_sinks` as well.
    """

    def __init__(self, root: Path, sinks: Iterable[Sink] = (), live_sinks: Iterable[Sink] = (), interval: float = 0.5):
        self._root, self._interval = Path(root), interval
        sinks = list(sinks)
        self._fan_out = FanOut(sinks)
        self._positions: dict[Path, int] = {}
        self._stop = threading.Event()
        self.poll()
        self._fan_out = FanOut([*sinks, *live_sinks])
        self._thread = threading.Thread(target=self._run, name="metrics-follower", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Passes on what the files hold beyond the last poll."""
        for path in self._files():
            try:
                self._poll_file(path)
            except OSError as error:
                logger.warning("metrics: cannot read %s: %s", path, error)

    def _files(self) -> list[Path]:
        """As `rglob`, which ends with an error when a folder goes meanwhile: checkpoints do."""
        return sorted(Path(folder, FILE_NAME) for folder, _, files in os.walk(self._root) if FILE_NAME in files)

    def close(self) -> None:
        """Passes on the rest, then stops and closes the sinks."""
        self._stop.set()
        self._thread.join()
        self.poll()
        self._fan_out.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.poll()

    def _poll_file(self, path: Path) -> None:
        position = self._positions.get(path, 0)
        size = path.stat().st_size
        if size < position:  # cut back by a resumed run
            position = size
        with path.open("rb") as file:
            file.seek(position)
            whole_lines, newline, _ = file.read().rpartition(b"\n")
        self._positions[path] = position + len(whole_lines) + len(newline)
        for line in whole_lines.splitlines():
            self._pass_on(path, line)

    def _pass_on(self, path: Path, line: bytes) -> None:
        try:
            record = decode(line)
        except ValueError:
            logger.warning("metrics: %s holds a line that is no record; it is left out", path)
            return
        self._fan_out.write(record)
