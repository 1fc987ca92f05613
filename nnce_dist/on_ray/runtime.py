"""The runtimes of Ray's workers (see `training.runtime`): one rank of a group, or a trial alone in its process."""

import enum
import os
import signal
import threading
import time
from contextlib import suppress

import ray
import ray._private.state
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from ..training.runtime import LocalRuntime
from .stopping import WorkerSignals
from .waiting import Waiting
from .watchdog import Watchdog

_ASK_EVERY = 2.0  # seconds between two looks for a node's preemption notice


class NodeNotice:
    """Learns that this process's node will be taken away; its thread may wait for a head that is away, no step does."""

    def __init__(self):
        self.given = False
        threading.Thread(target=self._follow, name="node-notice", daemon=True).start()

    def _follow(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        while not self.given:
            with suppress(RuntimeError, ray.exceptions.RayError):  # the head is away; that is not decided here
                # Ray Train's own watcher asks so, but only for worker groups; there is no public way.
                self.given = node in ray._private.state.state.get_draining_nodes()
            time.sleep(_ASK_EVERY)


class TrialRuntime(LocalRuntime):
    """A trial alone in its process."""

    def __init__(self, device: str, signals: WorkerSignals, watchdog: Watchdog, notice: NodeNotice):
        super().__init__(device, signals)
        self._watchdog, self._notice = watchdog, notice

    def stop_signal(self) -> int | None:
        """The signal that this process or the run's driver got; SIGTERM, too, when its node will be taken away."""
        self._watchdog.alive()
        return super().stop_signal() or (signal.SIGTERM if self._notice.given else None)


class Leave(enum.Enum):
    """Why a group stops early."""

    RUN = "the run was asked to stop"
    PROCESS = "a worker's process was told to go"
    NODE = "a worker's node will be taken away"


class RayRuntime:
    """One rank of a worker group; Ray Train has set up the process group (gloo on CPUs, nccl on GPUs)."""

    def __init__(self, signals: WorkerSignals, watchdog: Watchdog):
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.leave: Leave | None = None
        self._waiting = Waiting(self.device)
        self._signals, self._watchdog, self._asked = signals, watchdog, time.monotonic()
        self._noticed = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over ranks, in place."""
        with self._waiting:
            torch.distributed.all_reduce(tensor)

    def barrier(self) -> None:
        """Returns when every rank has come here; fails after the process group's timeout."""
        with self._waiting:
            torch.distributed.barrier()

    def waited(self) -> float:
        """Seconds in collectives so far."""
        return self._waiting.seconds()

    def stop_signal(self) -> int | None:
        """The signal that any rank or the run's driver got; SIGTERM, too, when a rank's node will be taken away.

        What one rank knows all learn in one reduction, so that all stop after the same step.
        """
        self._watchdog.alive()
        mine = [self._signals.run or 0, self._signals.received or 0, self._time_to_ask()]
        flags = torch.tensor(mine, dtype=torch.int32, device=self.device)
        with self._waiting:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        run, received, ask = flags.tolist()
        if run or received:
            self.leave = Leave.RUN if run else Leave.PROCESS
        elif ask and ray.train.get_preemption_info():  # waits for all ranks, which `ask` sends here together
            self.leave, received = Leave.NODE, signal.SIGTERM
        return run or received or None

    def _time_to_ask(self) -> bool:
        """Rank 0's clock decides for all when to ask Ray about preemption."""
        if self.rank or not self._noticed or time.monotonic() - self._asked < _ASK_EVERY:
            return False
        self._asked = time.monotonic()
        return True
