"""python -m pytest tests/unit/test_pace.py

How long each rank works for a step, and who holds the others up.
"""

import statistics
import time

import pytest
import torch
from toys import Numbers, Regression, Silent, on_ranks

from nnce_dist.config.schema import Training
from nnce_dist.on_ray.waiting import Waiting
from nnce_dist.training.loop import train
from nnce_dist.training.saver import Saver

STEPS, BATCH, PAUSE = 6, 9, 0.2  # seconds; a step itself takes 2 ms on an idle machine


class Kept(Silent):
    """Keeps the scalars of every record."""

    def __init__(self):
        self.records = []

    def flush(self, samples_seen, **scalars):
        self.records.append(scalars)
        return {}


def trained(folder, pauses):
    """What rank 0 said, and rank 0's records, of a training in which each rank pauses so long in every step."""
    said, kept = [], [Kept() for _ in pauses]

    class Slow(Numbers):
        def batches(self, seed, start_samples_seen, global_batch, rank, world_size, micro_batch):
            for batch in super().batches(seed, start_samples_seen, global_batch, rank, world_size, micro_batch):
                time.sleep(pauses[rank])
                yield batch

    def work(runtime):
        training = Training(samples=BATCH * STEPS, batch=BATCH, log_every=BATCH, checkpoint_every=0)
        return train(Regression(), Slow(), training, 3, runtime, kept[runtime.rank], Saver(folder), said.append)

    for state in on_ranks(len(pauses), work):
        assert state.samples_seen == BATCH * STEPS
    return said, kept[0].records


def test_a_slow_rank_is_named_once_and_its_own_time_tells_it_from_those_that_wait(tmp_path):
    said, records = trained(tmp_path, [0, PAUSE, 0])
    (line,) = [line for line in said if "slow" in line]
    assert line.startswith("rank 1 is slow: ")
    seconds = [statistics.median(record[f"rank_step_seconds/{rank}"] for record in records) for rank in range(3)]
    assert seconds[1] >= PAUSE > 2.5 * sorted(seconds)[1]  # the others waited as long as it worked


def test_ranks_that_are_all_slow_are_told_of_by_nobody(tmp_path):
    said, records = trained(tmp_path, [PAUSE] * 3)
    assert len(records) == STEPS and not [line for line in said if "slow" in line]


def test_a_rank_alone_has_no_others(tmp_path):
    said, records = trained(tmp_path, [PAUSE])
    assert not [line for line in said if "slow" in line]
    assert not any(key.startswith("rank_step_seconds") for record in records for key in record)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_passes_in_a_reduction_is_waiting_on_cpus_and_on_gpus(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    waiting = Waiting(torch.device(device))
    pause = {"cpu": lambda: time.sleep(PAUSE), "cuda": lambda: torch.cuda._sleep(10**8)}[device]
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    pause()
    finish()
    start = time.perf_counter()
    for _ in range(10):
        pause()  # work
    for _ in range(2):
        with waiting:
            pause()
    finish()
    whole = time.perf_counter() - start
    seconds = waiting.seconds()
    assert seconds == waiting.seconds()
    assert 0.08 * whole < seconds < 0.5 * whole  # 2 of 12 pauses
