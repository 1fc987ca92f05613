"""Many training runs at a time with Ray Tune, each an ordinary run in its own directory."""

import logging
import math
import os
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from ..config.schema import Workers
from ..training.stopping import Stopped
from . import resources
from .callbacks import OnRestart
from .environment import ClusterError
from .failures import HOST_MEMORY, cause, describe, why_restarted
from .runtime import NodeNotice, TrialRuntime
from .stopping import worker_signals
from .train import TrainFn, bookkeeping, clear_bookkeeping, no_tale, run_on_workers
from .watchdog import Watchdog

# Tune would put the driver's S3 keys into the description of its actors, which Ray logs for everyone to read. A Ray of
# our own inherits them; nodes of a cluster have their own.
class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
if not os.environ.get("RAY_ADDRESS"):  # what a Ray of our own has started already is as good as a process of Tune's own
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    class_cache.DEFAULT_ENV_VARS.clear()

# A trial that only waits for its worker group takes next to nothing, and nothing that the group needs: on the head.
_ON_HEAD = {"node:__internal_head__": 0.001}
NOT_BEGUN = "its start"  # where a trial stopped that had no time to begin


class _NodeTaken(RayActorError):
    """A trial has saved and left a node that will be taken away; Tune counts no failure, as for a process lost so."""

    def __init__(self):
        super().__init__(error_msg="its node will be taken away", preempted=True)


@dataclass(frozen=True)
class TrialOutcome:
    """What became of one trial: the value of its function, one line about its failure, or why and where it stopped."""

    name: str
    value: Any = None
    error: str | None = None
    traceback: str = ""
    stopped: Stopped | None = None


class Feed(Protocol):
    """Where trials come from while others run, and where their outcomes go; both are called in the driver."""

    def next(self) -> dict | None:
        """The payload of a trial that can begin; None if there is none now, which is the end if none is running."""

    def done(self, payload: dict, outcome: TrialOutcome) -> None:
        """A trial has ended."""


@dataclass(frozen=True)
class _Sweep:
    """What a driver and its trials' processes know of a sweep."""

    trial_fn: TrainFn
    workers: Workers
    run_dir: Path
    on_restart: OnRestart

    def tell_restart(self, payload: dict, error: Exception) -> None:
        """A trial's process was lost by an error and is started again."""
        self.on_restart(payload, *why_restarted({0: error}, self.workers, self.run_dir))


@dataclass(frozen=True, repr=False)
class _Payload:
    """Plain data that Tune is not to look into: it would put every value into the trial's name."""

    content: dict

    def __repr__(self) -> str:
        return str(self.content["name"])


class _FromFeed(Searcher):
    """Gives Tune as many trials as the cluster holds, which may grow meanwhile."""

    def __init__(self, feed: Feed, room: Callable[[], int]):
        super().__init__()
        self._feed, self._room = feed, room
        self.at_work: dict[str, dict] = {}  # payloads by Tune's names of the trials
        self._again: list[dict] = []

    def suggest(self, trial_id: str) -> dict | str | None:
        """Called by Tune several times a second."""
        if len(self.at_work) >= self._room():
            return None
        payload = self._again.pop() if self._again else self._feed.next()
        if payload is None:
            return None if self.at_work else Searcher.FINISHED
        self.at_work[trial_id] = payload
        return {"payload": _Payload(payload)}

    def end(self, trial_id: str, outcome: TrialOutcome) -> None:
        """A trial has an outcome."""
        self._feed.done(self.at_work.pop(trial_id), outcome)

    def begin_again(self) -> list[dict]:
        """Tune itself has given up: what was at work is given to the next one. Returns it."""
        lost = list(self.at_work.values())
        self.at_work.clear()
        self._again += reversed(lost)
        return lost

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Called by Tune before it knows all of a failure; `_Watch` has the outcome."""

    def __getstate__(self) -> dict:
        """Tune writes itself down, with all it has: what is to be kept is the feed's."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """As above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class _Watch(tune.Callback):
    """Hands outcomes on, and tells why trials are started again. Tune calls it in the driver."""

    def __init__(self, sweep: _Sweep, searcher: _FromFeed):
        self._sweep, self._searcher = sweep, searcher

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """A trial has ended by itself."""
        self._searcher.end(trial.trial_id, TrialOutcome(**trial.last_result["outcome"]))

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """A trial's process was lost, and not for the first time."""
        error = _newest_error(trial)
        name = self._searcher.at_work[trial.trial_id]["name"]
        self._searcher.end(trial.trial_id, TrialOutcome(name, error=describe(error), traceback=str(error)))

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        """A trial's process was lost, or has left its node, which is no failure to tell of."""
        if not isinstance(error := _newest_error(trial), _NodeTaken):
            self._sweep.tell_restart(self._searcher.at_work[trial.trial_id], error)


def _newest_error(trial) -> Exception:
    """Why a trial's process was lost, from Tune's files here; those that it gives by itself it has only later."""
    if trial.pickled_error_file:
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return RuntimeError(Path(trial.error_file).read_text())


@dataclass
class _Room:
    """How many trials may run at a time: as many as the cluster holds now, at most `concurrent` unless that is 0."""

    workers: Workers
    concurrent: int
    _asked: float = field(default=-math.inf)
    _groups: int = 0

    def __call__(self) -> int:
        if time.monotonic() - self._asked > 1:
            self._groups, self._asked = resources.room(self.workers), time.monotonic()
        return min(self.concurrent or self._groups, self._groups)


def run_feed(
    trial_fn: TrainFn,
    feed: Feed,
    workers: Workers,
    run_dir: Path,
    concurrent: int = 0,
    on_restart: OnRestart = no_tale,
    verbose: bool = False,
) -> None:
    """Runs `trial_fn(payload, runtime)` for every payload (plain data with a 'name') of a feed, until it has no more.

    A trial of one worker runs in its own process, a larger one on a worker group. At most `concurrent` run at a time,
    0 for as many as the cluster holds. A trial that fails disturbs no other; one whose process dies is started again up
    to `workers.restarts` times, and `on_restart` told. Trials that are at work when Tune itself gives up, which it does
    when memory runs out, are begun again. Raises `ClusterError` when that happens too often, or when there is no room.
    """
    resources.require(workers)
    clear_bookkeeping(run_dir)
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failure is told once, by its outcome
    sweep = _Sweep(trial_fn, workers, Path(run_dir), on_restart)
    searcher, restarts_left = _FromFeed(feed, _Room(workers, concurrent)), workers.restarts
    while True:
        try:
            return _fit(sweep, searcher, verbose)
        except RuntimeError as error:
            if cause(error) != HOST_MEMORY:
                raise
            if not restarts_left:
                raise ClusterError(describe(error)) from error
            restarts_left -= 1
            for payload in searcher.begin_again():
                sweep.tell_restart(payload, error)


def _fit(sweep: _Sweep, searcher: _FromFeed, verbose: bool) -> None:
    """Returns when the feed has no more and all trials have ended."""
    alone = sweep.workers.count == 1
    with bookkeeping(sweep.run_dir) as folder:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_Trial, sweep=sweep), resources.per_worker(sweep.workers) if alone else _ON_HEAD
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,  # until the searcher has no more
                reuse_actors=True,  # safe: a trial's randomness comes from its seed; saves a second and torch's import
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=tune.FailureConfig(max_failures=sweep.workers.restarts),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Watch(sweep, searcher)],
                verbose=2 if verbose else 0,
            ),
        ).fit()


class _Trial(tune.Trainable):
    """A trial's process; when the trial is done the next one may use it."""

    def setup(self, config: dict, sweep: _Sweep) -> None:
        """Called by Tune in the process's main thread, the only one that may handle signals."""
        self._sweep, self._signals, self._notice = sweep, worker_signals(), NodeNotice()
        self._signals.follow_run()

    def reset_config(self, new_config: dict) -> bool:
        """Called by Tune for the next trial; nothing of the one before is left."""
        return True

    def step(self) -> dict:
        """The whole trial. A failure is its outcome, so that Tune need not know; only a lost process is tried again."""
        payload = self.config["payload"].content
        try:
            outcome = {"value": self._run(payload)}
        except Stopped as stopped:
            if self._sweep.workers.count == 1 and not self._signals.run:
                # this process alone was told to go: the trial goes on in another
                raise (_NodeTaken() if self._notice.given else stopped) from None
            outcome = {"stopped": stopped}
        except Exception as error:
            outcome = {"error": describe(error), "traceback": traceback.format_exc()}
        return {"outcome": {"name": payload["name"], **outcome}, "done": True}

    def _run(self, payload: dict) -> Any:
        if self._signals.run:
            raise Stopped(self._signals.run, NOT_BEGUN)
        sweep, workers = self._sweep, self._sweep.workers
        if workers.count > 1:
            return run_on_workers(sweep.trial_fn, payload, workers, sweep.run_dir, sweep.on_restart)
        torch.set_num_threads(workers.threads)
        with closing(Watchdog(workers.stall_timeout, sweep.run_dir)) as watchdog:
            device = "cuda" if workers.gpus else "cpu"
            return sweep.trial_fn(payload, TrialRuntime(device, self._signals, watchdog, self._notice))
