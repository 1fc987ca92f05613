"""What the process that a person started shows of a run: the Prometheus endpoint and the progress lines."""

import logging
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from .follower import Follower
from .progress import progress_lines
from .prometheus import Endpoint, LatestValues

logger = logging.getLogger(__name__)


class Monitor:
    """Watches a run's directory and everything below it until closed.

    Every process of the run, trials and workers alike, only writes its metrics.jsonl; all appear at `url` and as
    progress lines here. Use it as a context manager. `metric` is what trials are judged
    by. No training ends because its port is taken: `url` is empty then.
    """

    def __init__(
        self, run_dir: Path, host: str = "127.0.0.1", port: int = 0, console: Console | None = None, metric: str = ""
    ):
        values = LatestValues()
        self._served = ExitStack()
        self.url = self._serve(values, host, port)
        self._follower = Follower(run_dir, [values], [progress_lines(console, metric)])

    def _serve(self, values: LatestValues, host: str, port: int) -> str:
        try:
            endpoint = Endpoint(values, host, port)
        except ValueError as error:
            logger.warning("%s; going on without", error)
            return ""
        self._served.callback(endpoint.close)
        return endpoint.url

    def close(self) -> None:
        """Shows the last records and frees the port."""
        self._follower.close()
        self._served.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_) -> None:
        self.close()
