"""What Ray Train's controller and workers do for us beside their own work."""

import time
from collections.abc import Callable
from pathlib import Path

from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, RunningState
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from ..config.schema import Workers
from . import resources
from .environment import ClusterError
from .failures import FinalError, keep_hang, unwrapped, why_restarted
from .stopping import worker_signals

OnRestart = Callable[[dict, str, str], None]  # (payload, cause, line); a function of an importable module


class StopAtFinalError(UserCallback):
    """Ends the run at an error that would only come again, without the restarts that other errors get."""

    def after_exception(self, run_context, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller with the errors by rank; what it raises is not retried."""
        for error in worker_exceptions.values():
            if isinstance(cause := unwrapped(error), FinalError):
                raise cause


class TellRestarts(WorkerGroupCallback, ControllerCallback):
    """Tells why workers are started again."""

    def __init__(self, payload: dict, workers: Workers, run_dir: Path, bookkeeping: Path, on_restart: OnRestart):
        self._payload, self._workers, self._run_dir, self._on_restart = payload, workers, run_dir, on_restart
        self._bookkeeping = bookkeeping  # of Ray Train, gone after the run
        self._failures: dict[int, Exception] = {}

    def after_worker_group_poll_status(self, worker_group_status) -> None:
        """Called in the controller, several times a second."""
        self._failures = worker_group_status.errors

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        """Called in the controller after a failure."""
        hang = keep_hang(self._bookkeeping, self._run_dir)
        if failure_decision == FailureDecision.RETRY and (hang or self._failures):
            self._on_restart(self._payload, *why_restarted(self._failures, self._workers, self._run_dir, hang))
        self._failures = {}


class SeeSignals(WorkerCallback):
    """Lets a worker see the signals sent to its own process."""

    def after_init_train_context(self) -> None:
        """Called in the worker's main thread, the only one that may handle signals; training has another."""
        worker_signals()


class GiveUp(ControllerCallback):
    """Ends the run when for too long there were not enough workers; Ray itself would wait for ever."""

    def __init__(self, workers: Workers):
        self._workers, self._waiting_since = workers, time.monotonic()

    def after_controller_state_update(self, previous_state, current_state) -> None:
        """Called in the controller after each of its rounds; what it raises is not retried."""
        if isinstance(current_state, RunningState | PreemptingState):
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self._workers.start_timeout:
            raise ClusterError(resources.refusal(self._workers))
