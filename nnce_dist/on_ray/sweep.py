"""Many training runs at a time with Ray Tune, each an ordinary run in its own directory."""

import logging
import shutil
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from ..config.schema import Workers
from ..training.runtime import LocalRuntime
from . import resources
from .environment import one_line
from .train import TrainFn, describe, run_on_workers

# A trial that only waits for its worker group takes next to nothing, and nothing that the group needs: on the head.
_ON_HEAD = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class TrialOutcome:
    """What became of one trial: the value of its function, or one line about its failure."""

    name: str
    value: Any = None
    error: str | None = None
    traceback: str = ""


class _OnDone(tune.Callback):
    """Hands each outcome over as soon as its trial has ended."""

    def __init__(self, trials: list[dict], on_done: Callable[[TrialOutcome], None]):
        self._trials, self._on_done = trials, on_done

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """Called by Tune in the driver."""
        self._on_done(TrialOutcome(**trial.last_result["outcome"]))

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """Called by Tune in the driver when a trial's process died."""
        self._on_done(_died(self._trials[trial.config["index"]], trial.get_error()))


def run_trials(
    trial_fn: TrainFn,
    trials: list[dict],
    workers: Workers,
    run_dir: Path,
    concurrent: int = 0,
    on_done: Callable[[TrialOutcome], None] = lambda outcome: None,
    verbose: bool = False,
) -> list[TrialOutcome]:
    """Runs `trial_fn(payload, runtime)` for every payload (plain data with a 'name'); outcomes in the payloads' order.

    A trial of one worker runs in its own process, a larger one on a worker group. At most `concurrent` run at a time,
    0 for as many as the cluster holds. A trial that fails disturbs no other; one whose process dies is started again up
    to `workers.restarts` times. `on_done` is called in the driver as trials end.
    """
    groups = resources.require(workers)
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failure is told once, by its outcome
    bookkeeping = Path(run_dir).absolute() / ".ray" / uuid.uuid4().hex
    tuner = tune.Tuner(
        tune.with_resources(
            _trainable(trial_fn, trials, workers, run_dir),
            resources.per_worker(workers) if workers.count == 1 else _ON_HEAD,
        ),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=min(concurrent or groups, groups),
            reuse_actors=True,  # safe: a trial's randomness comes from its seed; saves a second and torch's import each
        ),
        run_config=tune.RunConfig(
            name=bookkeeping.name,
            storage_path=str(bookkeeping.parent),
            failure_config=tune.FailureConfig(max_failures=workers.restarts),
            callbacks=[_OnDone(trials, on_done)],
            verbose=2 if verbose else 0,
        ),
    )
    try:
        results = {result.config["index"]: result for result in tuner.fit()}
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)
    return [_outcome(payload, results[index]) for index, payload in enumerate(trials)]


def _trainable(trial_fn: TrainFn, trials: list[dict], workers: Workers, run_dir: Path) -> Callable[[dict], dict]:
    """The function that Tune runs in a trial's process."""

    def run_trial(config: dict) -> dict:
        payload = trials[config["index"]]
        try:
            if workers.count > 1:
                value = run_on_workers(trial_fn, payload, workers, run_dir)
            else:
                torch.set_num_threads(workers.threads)
                value = trial_fn(payload, LocalRuntime("cuda" if workers.gpus else "cpu"))
        except Exception as error:  # the trial's failure is its outcome; Tune need not know
            failure = {"error": describe(error), "traceback": traceback.format_exc()}
            return {"outcome": {"name": payload["name"], **failure}}
        return {"outcome": {"name": payload["name"], "value": value}}

    return run_trial


def _outcome(payload: dict, result: tune.Result) -> TrialOutcome:
    if result.error:
        return _died(payload, result.error)
    return TrialOutcome(**result.metrics["outcome"])


def _died(payload: dict, error: BaseException) -> TrialOutcome:
    return TrialOutcome(payload["name"], error=f"the trial's process died: {one_line(error)}", traceback=str(error))
