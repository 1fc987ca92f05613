"""Where jobs run: one after the other in this process, or as trials on Ray. `pipeline.py` cannot tell which."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ..config.schema import Config
from ..training.runtime import LocalRuntime
from ..training.stopping import StopSignal
from .jobs import run_job


class JobsFailedError(RuntimeError):
    """One or more jobs failed; the others are done."""


class Launcher(Protocol):
    """Runs jobs and returns their results in order."""

    def run(self, payloads: list[dict]) -> list[dict]:
        """Raises JobsFailedError, after the others ended, if any failed."""


class LocalLauncher:
    """One job after the other in this process."""

    def __init__(self, stop: StopSignal):
        self._stop = stop

    def run(self, payloads: list[dict]) -> list[dict]:
        """Results in order; the first failure ends it."""
        return [run_job(payload, LocalRuntime(stop=self._stop)) for payload in payloads]


class RayLauncher:
    """Jobs as trials of Ray Tune, each in its own process or worker group."""

    def __init__(self, config: Config, root: Path):
        self._config, self._root = config, root

    def run(self, payloads: list[dict]) -> list[dict]:
        """Results in order; a failed trial does not disturb the others."""
        from ..on_ray.environment import ClusterError
        from ..on_ray.sweep import run_trials

        concurrent, verbose = self._config.sweep.concurrent, self._config.run.verbose
        try:
            outcomes = run_trials(run_job, payloads, self._config.workers, self._root, concurrent, verbose=verbose)
        except ClusterError as error:
            raise JobsFailedError(str(error)) from error
        failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
        if failed:
            raise JobsFailedError("; ".join(failed))
        return [outcome.value for outcome in outcomes]


def uses_ray(config: Config) -> bool:
    """Whether the run's jobs go to Ray."""
    return config.workers.runtime != "local"


@contextmanager
def launcher(config: Config, root: Path) -> Iterator[Launcher]:
    """The launcher that the configuration asks for; Ray is started here and ended here."""
    if not uses_ray(config):
        with StopSignal() as stop:
            yield LocalLauncher(stop)
        return
    from ..on_ray.environment import ClusterError, session

    with ExitStack() as stack:
        try:
            stack.enter_context(session(config.run.verbose))
        except ClusterError as error:
            raise JobsFailedError(str(error)) from error
        yield RayLauncher(config, root)
