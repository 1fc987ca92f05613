"""A small task, its data, and runtimes that tests hold in their hands: ranks in threads, stops at a step."""

import threading
import time
from itertools import count

import torch
from torch import nn

from nnce_dist.data.shards import rank_share
from nnce_dist.tasks.task import Batch, OptimiserSettings, Update
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom
from nnce_dist.training.stopping import Stopped

SETTINGS = OptimiserSettings(lr=0.01, ema_half_life=32, warmup_samples=16, decay_fraction=0.25)


class Regression:
    """Fits two linear networks, the second through the first, with noise of each sample's own."""

    def __init__(self, spoil_at: int = -1):
        torch.manual_seed(0)
        self.networks = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 1)}
        self.optimisers = {"a": SETTINGS, "b": OptimiserSettings(lr=0.01)}
        self.count, self.spoil_at = torch.zeros(()), spoil_at

    def updates(self, batch, random, samples_seen, mean_over_ranks):
        noise = random.normal(3)
        self.count = self.count + mean_over_ranks(batch.x.mean())

        def a_loss(part):
            error = (self.networks["a"](batch.x[part]) - noise[part]).square().sum(1)
            return error * (float("nan") if samples_seen == self.spoil_at else 1), {"loss": error}

        def b_loss(part):
            error = self.networks["b"](self.networks["a"](batch.x[part])).square().sum(1)
            return error, {"loss": error}

        yield Update("a", a_loss, len(batch))
        yield Update("b", b_loss, len(batch))

    def extra_state(self):
        return {"count": self.count}

    def load_extra_state(self, state):
        self.count = state["count"]


class Numbers:
    """Vectors that follow from their global position alone."""

    def batches(self, seed, start_samples_seen, global_batch, rank, world_size, micro_batch):
        for position in count(start_samples_seen, global_batch):
            ids = rank_share(position, global_batch, rank, world_size, micro_batch)
            yield Batch(SampleRandom.at(seed + 1, ids).normal(3), None)


class Silent:
    """A recorder that keeps nothing."""

    def resume(self, samples_seen, pending): ...

    def observe(self, prefix, observations): ...

    def pending(self):
        return {}

    def flush(self, samples_seen, **scalars):
        return {}


class Meeting:
    """Where ranks in threads meet to sum."""

    def __init__(self, size: int):
        self.barrier, self.parts = threading.Barrier(size, timeout=60), [None] * size

    def sum(self, rank: int, tensor: torch.Tensor) -> None:
        self.parts[rank] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(sum(self.parts))
        self.barrier.wait()


class StopAfter(LocalRuntime):
    """Asks for the end after some steps; never after -1."""

    def __init__(self, steps: int):
        super().__init__("cpu")
        self.steps = steps

    def stop_signal(self):
        self.steps -= 1
        return 15 if self.steps == 0 else None


class ThreadRuntime(StopAfter):
    """One of several ranks in one process."""

    def __init__(self, rank: int, meeting: Meeting, steps: int = -1):
        super().__init__(steps)
        self.rank, self.world_size, self._meeting = rank, len(meeting.parts), meeting
        self._waited = 0.0

    def all_reduce(self, tensor):
        start = time.perf_counter()
        self._meeting.sum(self.rank, tensor)
        self._waited += time.perf_counter() - start

    def waited(self):
        return self._waited

    def barrier(self):
        self._meeting.barrier.wait()


def on_ranks(world_size: int, work, steps: int = -1) -> list:
    """What `work(runtime)` returns on each rank, or the exception that it raises."""
    meeting, results = Meeting(world_size), [None] * world_size

    def run_rank(rank: int) -> None:
        try:
            results[rank] = work(ThreadRuntime(rank, meeting, steps))
        except Exception as error:
            results[rank] = error
            meeting.barrier.abort() if not isinstance(error, Stopped) else None

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results
