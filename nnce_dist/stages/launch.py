"""Where jobs run: one after the other in this process, or as trials on Ray. `pipeline.py` cannot tell which."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ..config.schema import Config
from ..training.runtime import LocalRuntime
from ..training.stopping import StopSignal
from .folder import job_folder, read_result
from .jobs import run_job


class JobsFailedError(RuntimeError):
    """One or more jobs failed; the others are done."""


class Launcher(Protocol):
    """Runs jobs and returns their results in order."""

    def run(self, payloads: list[dict]) -> list[dict]:
        """Raises JobsFailedError, after the others ended, if any failed."""


class LocalLauncher:
    """One job after the other in this process."""

    def __init__(self, config: Config, stop: StopSignal):
        self._device, self._stop = "cuda" if config.workers.gpus else "cpu", stop

    def run(self, payloads: list[dict]) -> list[dict]:
        """Results in order; the first failure ends it."""
        return [run_job(payload, LocalRuntime(self._device, self._stop)) for payload in payloads]


class RayLauncher:
    """Jobs as trials of Ray Tune, each in its own process or worker group; Ray starts when one is not done yet."""

    def __init__(self, config: Config, root: Path, ray: ExitStack):
        self._config, self._root, self._ray = config, root, ray

    def run(self, payloads: list[dict]) -> list[dict]:
        """Results in order; a failed trial does not disturb the others."""
        done = [read_result(payload_folder(payload)) for payload in payloads]
        missing = [payload for payload, result in zip(payloads, done, strict=True) if result is None]
        fresh = iter(self._run(missing) if missing else [])
        return [next(fresh) if result is None else result for result in done]

    def _run(self, payloads: list[dict]) -> list[dict]:
        from ..on_ray.environment import ClusterError, session
        from ..on_ray.sweep import run_trials

        concurrent, verbose = self._config.sweep.concurrent, self._config.run.verbose
        try:
            self._ray.enter_context(session(verbose))  # within an outer one it is that one
            outcomes = run_trials(run_job, payloads, self._config.workers, self._root, concurrent, verbose=verbose)
        except ClusterError as error:
            raise JobsFailedError(str(error)) from error
        failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
        if failed:
            raise JobsFailedError("; ".join(failed))
        return [outcome.value for outcome in outcomes]


def payload_folder(payload: dict) -> Path:
    """Where a job keeps its results."""
    return job_folder(Path(payload["root"]), payload["stage"], payload["name"])


def uses_ray(config: Config) -> bool:
    """Whether the run's jobs go to Ray."""
    return config.workers.runtime == "ray"


@contextmanager
def launcher(config: Config, root: Path) -> Iterator[Launcher]:
    """The launcher that the configuration asks for; a Ray that it started ends here."""
    if uses_ray(config):
        with ExitStack() as ray:
            yield RayLauncher(config, root, ray)
    else:
        with StopSignal() as stop:
            yield LocalLauncher(config, stop)
