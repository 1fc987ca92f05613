"""A training function on a group of Ray Train workers."""

import os
import shutil
import uuid
from collections.abc import Callable
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
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from ..config.schema import Workers
from ..training.runtime import Runtime
from . import resources
from .environment import ClusterError, one_line
from .runtime import RayRuntime

# Errors that a new worker group would only meet again; others (a lost peer, a broken device) are worth another try.
FINAL = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, FileNotFoundError)
TrainFn = Callable[[dict, Runtime], Any]


class FinalError(Exception):
    """A worker's error that ends the run at once: its line, and whether it is about the input."""

    @property
    def line(self) -> str:
        """What went wrong, in one line."""
        return self.args[0]

    def as_raised(self) -> Exception:
        """The error to raise in the driver."""
        return ValueError(self.line) if self.args[1] else ClusterError(self.line)


def describe(error: BaseException) -> str:
    """One line for an error: the message of our own ones and of a refused input, the type as well for anything else."""
    error = unwrapped(error)
    ours = isinstance(error, ClusterError) or is_bad_input(error)
    return one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"


def unwrapped(error: BaseException) -> BaseException:
    """The error inside the wrappers that Ray puts around what a worker raised."""
    for wrapping in ("_base_exc", "health_check_failure", "controller_failure", "cause"):
        if isinstance(inner := getattr(error, wrapping, None), BaseException):
            return unwrapped(inner)
    return error


def is_bad_input(error: BaseException) -> bool:
    """Whether an error is one that the project raises for what a person can put right."""
    return type(error) in (ValueError, FileNotFoundError)


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller) -> None:
        """Leaves Ctrl-C alone: Ray Train's handler would exit with status 0 and stay installed after the run."""


class _StopAtFinalError(UserCallback):
    """Ends the run at an error that would only come again, without the restarts that other errors get."""

    def after_exception(self, run_context, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller with the errors by rank; what it raises is not retried."""
        for error in worker_exceptions.values():
            if isinstance(cause := unwrapped(error), FinalError):
                raise cause


def run_on_workers(train_fn: TrainFn, payload: dict, workers: Workers, run_dir: Path, verbose: bool = False) -> Any:
    """Runs `train_fn(payload, runtime)` on every worker of a group and returns rank 0's value.

    `train_fn` is a function of an importable module; payload and value are plain data. After a crash a new group starts
    the function again, at most `workers.restarts` times; it goes on from its own checkpoints. `run_dir` must be one
    that all nodes share. Raises `ClusterError`, or ValueError when the function refused its input.
    """
    resources.require(workers)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(workers.start_timeout)  # read by `fit`
    bookkeeping = Path(run_dir).absolute() / ".ray" / uuid.uuid4().hex  # a name used again would be "resumed" by Ray
    trainer = _Trainer(
        partial(_work, train_fn, workers.threads),
        train_loop_config=payload,
        torch_config=TorchConfig(timeout_s=int(workers.collective_timeout)),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources.per_worker(workers)
        ),
        run_config=RunConfig(
            name=bookkeeping.name,
            storage_path=str(bookkeeping.parent),
            failure_config=FailureConfig(max_failures=workers.restarts, controller_failure_limit=workers.restarts),
            logging_config=LoggingConfig("INFO" if verbose else "ERROR"),
            callbacks=[_StopAtFinalError()],
        ),
    )
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise _explained(error, workers) from error
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)


def _work(train_fn: TrainFn, threads: int, payload: dict) -> Any:
    """What runs in a worker."""
    torch.set_num_threads(threads)
    runtime = RayRuntime()
    try:
        value = train_fn(payload, runtime)
    except FINAL as error:
        raise FinalError(describe(error), is_bad_input(error)) from error
    return value if runtime.rank == 0 else None


def _explained(error: TrainingFailedError, workers: Workers) -> Exception:
    """The driver's error for a failed run."""
    if isinstance(cause := unwrapped(error), FinalError):
        return cause.as_raised()
    if isinstance(error, WorkerGroupError):
        lines = (f"rank {rank}: {describe(failure)}" for rank, failure in sorted(error.worker_failures.items())[:3])
        return ClusterError(
            f"{'; '.join(lines)} (after {workers.restarts} restarts); use --verbose for the whole story"
        )
    return ClusterError(f"the workers could not be run: {describe(cause)}")
