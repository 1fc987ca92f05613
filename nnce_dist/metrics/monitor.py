"""What the process that a person started shows of a run: the Prometheus endpoint and the progress lines."""

from pathlib import Path

from rich.console import Console

from .follower import Follower
from .progress import progress_lines
from .prometheus import Endpoint, LatestValues


class Monitor:
    """Watches a run's directory and everything below it until closed.

    Every process of the run, trials and workers alike, only writes its metrics.jsonl; all appear at `url` and as
    progress lines here. Use it as a context manager.
    """

    def __init__(self, run_dir: Path, host: str = "127.0.0.1", port: int = 0, console: Console | None = None):
        values = LatestValues()
        self._endpoint = Endpoint(values, host, port)
        self.url = self._endpoint.url
        self._follower = Follower(run_dir, [values], [progress_lines(console)])

    def close(self) -> None:
        """Shows the last records and frees the port."""
        self._follower.close()
        self._endpoint.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_) -> None:
        self.close()
