"""Where jobs run: one after the other in this process, or as trials on Ray. `pipeline.py` cannot tell which."""

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ..config.load import from_dict
from ..config.schema import Config
from ..metrics.jsonl import FILE_NAME, append, read
from ..training.checkpoint import FencedError
from ..training.errors import describe
from ..training.runtime import LocalRuntime
from ..training.stopping import Stopped, StopSignal
from .failed_state import release_failed
from .folder import job_folder, read_result, write_error
from .jobs import JobsFailedError, run_job
from .trials import swept_settings


class Feed(Protocol):
    """Where jobs come from while others run, and where their results go."""

    def next(self) -> dict | None:
        """The payload of a job that can begin; None if there is none now, which is the end if none is running."""

    def done(self, payload: dict, result: dict) -> None:
        """A job has ended."""


class Launcher(ABC):
    """Runs jobs. The result of one that failed is its name, stage and `error`; it disturbs no other.

    Both raise `Stopped` when the run was asked to end, JobsFailedError when there is nowhere to run.
    """

    @abstractmethod
    def follow(self, feed: Feed) -> None:
        """Runs jobs until the feed has no more."""

    def run(self, payloads: list[dict]) -> list[dict]:
        """The results of jobs in order; what is done already is not done again."""
        results = {payload["name"]: read_result(payload_folder(payload)) for payload in payloads}
        if missing := [payload for payload in payloads if results[payload["name"]] is None]:
            self.follow(_Listed(missing, results))
        return [results[payload["name"]] for payload in payloads]


class _Listed:
    """A feed of jobs that are all known beforehand; their results go into `results`, by name."""

    def __init__(self, payloads: list[dict], results: dict[str, dict]):
        self._waiting, self._results = iter(payloads), results

    def next(self) -> dict | None:
        return next(self._waiting, None)

    def done(self, payload: dict, result: dict) -> None:
        self._results[payload["name"]] = result


class LocalLauncher(Launcher):
    """One job after the other in this process."""

    def __init__(self, config: Config, epoch: int, stop: StopSignal):
        self._epoch = epoch
        self._runtime = LocalRuntime("cuda" if config.workers.gpus else "cpu", stop)

    def follow(self, feed: Feed) -> None:
        """Whatever the feed gives next."""
        while (payload := feed.next()) is not None:
            feed.done(payload, self._run(payload | {"epoch": self._epoch}))

    def _run(self, payload: dict) -> dict:
        try:
            return run_job(payload, self._runtime)
        except Stopped as stopped:
            raise Stopped.together({payload["name"]: stopped}) from stopped
        except FencedError:
            raise  # the run is another job's now
        except Exception as error:  # whatever it is, it ends this job alone
            return failed(payload, describe(error), traceback.format_exc())


class RayLauncher(Launcher):
    """Jobs as trials of Ray Tune, each in its own process or worker group; Ray starts when one is not done yet."""

    def __init__(self, config: Config, root: Path, epoch: int, ray: ExitStack):
        self._config, self._root, self._epoch, self._ray = config, root, epoch, ray

    def follow(self, feed: Feed) -> None:
        """As many at a time as the cluster holds."""
        from ..on_ray.environment import ClusterError, session
        from ..on_ray.resources import TooLargeError

        workers, verbose = self._config.workers, self._config.run.verbose
        trials = _Trials(feed, self._epoch)
        try:
            alone = "" if workers.count > 1 else run_job.__module__
            self._ray.enter_context(session(verbose, grace=workers.grace, alone=alone))  # or the outer one
            from ..on_ray.sweep import run_feed  # takes a second, in which Ray's workers start

            concurrent = self._config.sweep.concurrent
            run_feed(run_job, trials, workers, self._root, concurrent, tell_restart, verbose)
        except TooLargeError:
            raise  # bad input, which is known only now
        except ClusterError as error:
            raise JobsFailedError(str(error)) from error
        if trials.stopped:
            raise Stopped.together(trials.stopped)


class _Trials:
    """Jobs of a feed as trials of `on_ray.sweep`, under the epoch of the run's lease; no more once one was stopped."""

    def __init__(self, feed: Feed, epoch: int):
        self._feed, self._epoch = feed, epoch
        self.stopped: dict[str, Stopped] = {}

    def next(self) -> dict | None:
        payload = None if self.stopped else self._feed.next()
        return payload and payload | {"epoch": self._epoch}

    def done(self, payload: dict, outcome) -> None:
        if outcome.stopped:
            self.stopped[outcome.name] = outcome.stopped
        else:
            error = outcome.error
            self._feed.done(payload, failed(payload, error, outcome.traceback) if error else outcome.value)


def failed(payload: dict, error: str, story: str) -> dict:
    """The result of a job that failed: one line about it; the whole story is kept in its folder.

    With a pack failed those of its trials that have no result.
    """
    for one in (payload, *payload.get("trials", ())):
        if not read_result(payload_folder(one)):
            config = from_dict(one["config"])
            write_error(payload_folder(one), story)
            release_failed(config, payload_folder(one), one["stage"])
            if "trials" not in one:
                _tell(one, event=f"failed: {error}", settings=swept_settings(config, one["stage"]))
    return {"name": payload["name"], "stage": payload["stage"], "error": error}


def tell_restart(payload: dict, cause: str, line: str) -> None:
    """Counts a restart of a job's workers where metrics go; all trials of a pack are told of, but it is one restart."""
    path, key = Path(payload["root"]) / FILE_NAME, f"restarts/{cause}"
    first, *others = payload.get("trials", [payload])
    earlier = [one for one in read(path) if _identity(first).items() <= one.items()] if path.exists() else []
    _tell(first, event=f"started again: {line}", **{key: sum(key in one for one in earlier) + 1})
    for one in others:
        _tell(one, event=f"started again: {line}")


def _tell(payload: dict, **values: float | str) -> None:
    """Sends a record about a job where metrics go; in the run's own file, which no resumed job cuts back."""
    append(Path(payload["root"]) / FILE_NAME, {**_identity(payload), "time": time.time(), **values})


def _identity(payload: dict) -> dict[str, str]:
    return {"run": Path(payload["root"]).name, "stage": payload["stage"], "trial": payload["name"]}


def payload_folder(payload: dict) -> Path:
    """Where a job keeps its results."""
    return job_folder(Path(payload["root"]), payload["stage"], payload["name"])


def uses_ray(config: Config) -> bool:
    """Whether the run's jobs go to Ray."""
    return config.workers.runtime == "ray"


@contextmanager
def launcher(config: Config, root: Path, epoch: int) -> Iterator[Launcher]:
    """The launcher that the configuration asks for; a Ray that it started ends here. Jobs commit under the epoch."""
    if uses_ray(config):
        with ExitStack() as ray:
            yield RayLauncher(config, root, epoch, ray)
    else:
        with StopSignal() as stop:
            yield LocalLauncher(config, epoch, stop)
