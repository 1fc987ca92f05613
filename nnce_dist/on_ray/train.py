"""A training function on a group of Ray Train workers."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from ..config.schema import Workers
from ..training.errors import is_bad_input
from ..training.runtime import Runtime
from ..training.stopping import Stopped
from . import resources
from .callbacks import GiveUp, OnRestart, SeeSignals, StopAtFinalError, TellRestarts
from .failures import FINAL, FinalError, describe, explained
from .runtime import Leave, RayRuntime
from .stopping import worker_signals
from .watchdog import Watchdog

TrainFn = Callable[[dict, Runtime], Any]
_RESIZE_PATIENCE = 20.0  # seconds
# Seconds in which Ray Train takes the stacks of ranks that hang, before torch ends them; hanging saves are told before.
_EVIDENCE = 30.0


def _all_bookkeeping(run_dir: Path) -> Path:
    return Path(run_dir).absolute() / ".ray"


def clear_bookkeeping(run_dir: Path) -> None:
    """Removes what a killed driver has left; only for the one driver that the run has now."""
    shutil.rmtree(_all_bookkeeping(run_dir), ignore_errors=True)


@contextmanager
def bookkeeping(run_dir: Path) -> Iterator[Path]:
    """A folder for what Ray writes about one run of its own; a name used again would be "resumed". Gone afterwards."""
    folder = _all_bookkeeping(run_dir) / uuid.uuid4().hex
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others are still at work there
            folder.parent.rmdir()


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller) -> None:
        """Leaves Ctrl-C alone: Ray Train's handler would exit with status 0 and stay installed after the run."""


@dataclass(frozen=True)
class _Left:
    """What a group returns that stopped early, with its state saved: why, by which signal, and where."""

    why: Leave
    signal_number: int
    where: str


def no_tale(payload: dict, cause: str, line: str) -> None:
    """An `OnRestart` for those who need not know."""


def run_on_workers(
    train_fn: TrainFn,
    payload: dict,
    workers: Workers,
    run_dir: Path,
    on_restart: OnRestart = no_tale,
    verbose: bool = False,
) -> Any:
    """Runs `train_fn(payload, runtime)` on every worker of a group and returns rank 0's value.

    `train_fn` is a function of an importable module; payload and value are plain data. After a crash a new group starts
    the function again, at most `workers.restarts` times, and after a preemption as often as it takes; it goes on from
    its own checkpoints. `run_dir` must be one that all nodes share; `on_restart` is called on one of them. Raises
    `ClusterError`, ValueError when the function refused its input, or `Stopped` when the run was asked to end.
    """
    resources.require(workers)
    while isinstance(value := _fit(train_fn, payload, workers, Path(run_dir), on_restart, verbose), _Left):
        if value.why is Leave.RUN:
            raise Stopped(value.signal_number, value.where)
    return value


def _detect_hangs(workers: Workers) -> None:
    """Ray Train's own detector of collectives that stand still, which asks NCCL for each rank's; read by `fit`.

    It names the ranks and takes their stacks, before torch's own watchdog gives up the collective. A stopped process
    and what happens outside of collectives it does not see (see `watchdog.py`). Where the program `ncclras` of NCCL
    2.28 or newer is missing it turns itself off. A value that is set already stays.
    """
    seconds = max(workers.collective_timeout - _EVIDENCE, workers.collective_timeout / 2)
    wanted = {"ENABLE_NCCL_HANG_DETECTOR": "1", "NCCL_RAS_ACTION": "fail", "NCCL_RAS_CONFIRM_DURATION_S": str(seconds)}
    for name, value in wanted.items() if workers.gpus and workers.count > 1 else ():
        os.environ.setdefault(f"RAY_TRAIN_{name}", value)


def _fit(
    train_fn: TrainFn, payload: dict, workers: Workers, run_dir: Path, on_restart: OnRestart, verbose: bool
) -> Any:
    # A group that may be smaller is tried again soon with what there is: Ray's first view of lost nodes is stale.
    patience = min(_RESIZE_PATIENCE, workers.start_timeout) if workers.min else workers.start_timeout
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience)  # read by `fit`
    _detect_hangs(workers)
    with bookkeeping(run_dir) as folder:
        trainer = _Trainer(
            partial(_work, train_fn, workers, run_dir),
            train_loop_config=payload,
            torch_config=TorchConfig(timeout_s=int(workers.collective_timeout)),
            scaling_config=ScalingConfig(
                num_workers=(workers.min, workers.count) if workers.min else workers.count,
                use_gpu=workers.gpus > 0,
                resources_per_worker=resources.per_worker(workers),
            ),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=FailureConfig(
                    max_failures=workers.restarts,
                    controller_failure_limit=workers.restarts + int(workers.start_timeout // patience),
                ),
                logging_config=LoggingConfig("INFO" if verbose else "ERROR"),
                callbacks=[
                    StopAtFinalError(),
                    TellRestarts(payload, workers, run_dir, folder, on_restart),
                    SeeSignals(),
                    GiveUp(workers),
                ],
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise explained(error, workers) from error


def _work(train_fn: TrainFn, workers: Workers, run_dir: Path, payload: dict) -> Any:
    """What runs in a worker."""
    torch.set_num_threads(workers.threads)
    signals, watchdog = worker_signals(), Watchdog(workers.stall_timeout, run_dir)
    runtime = RayRuntime(signals, watchdog)
    if runtime.rank == 0:
        signals.follow_run()
    try:
        value = train_fn(payload, runtime)
    except Stopped as stopped:
        if runtime.leave is Leave.PROCESS:
            raise  # the run goes on in a new group
        return _Left(runtime.leave, stopped.signal_number, stopped.where)
    except FINAL as error:
        raise FinalError(describe(error), is_bad_input(error)) from error
    finally:
        watchdog.close()
    return value if runtime.rank == 0 else None
