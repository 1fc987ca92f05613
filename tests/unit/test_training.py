"""python -m pytest tests/unit/test_training.py"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from toys import SETTINGS, Numbers, Regression, Silent

from nnce_dist.config.schema import Training
from nnce_dist.metrics.jsonl import FILE_NAME, JsonlSink, training_records
from nnce_dist.metrics.recorder import Recorder
from nnce_dist.stages.goal import recorded
from nnce_dist.tasks.task import OptimiserSettings, Update
from nnce_dist.training.bookkeeping import crossed
from nnce_dist.training.loop import train
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.saver import Saver
from nnce_dist.training.seeding import SampleRandom, fold
from nnce_dist.training.state import TrainState, ema_decay, learning_rate_factor
from nnce_dist.training.step import GpuMemoryError, NonFiniteError, micro_batches


def run(folder, samples=128, task=None, **options) -> TrainState:
    training, runtime = Training(samples=samples, batch=8, **options), LocalRuntime("cpu")
    return train(task or Regression(), Numbers(), training, 5, runtime, Silent(), Saver(folder))


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole, parts = run(tmp_path / "a").tensors(), run(tmp_path / "b", micro_batch=3).tensors()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)
    assert micro_batches(8, 3) == [slice(0, 3), slice(3, 6), slice(6, 8)]


class Large(Regression):
    """A GPU's memory holds two samples of it at a time."""

    def updates(self, *arguments):
        for update in super().updates(*arguments):
            yield Update(update.network, partial(self.held, update.loss), update.num_samples)

    @staticmethod
    def held(loss, part):
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(part)


def test_a_full_gpu_is_told_with_the_next_smaller_micro_batch(tmp_path):
    with pytest.raises(GpuMemoryError, match=r"'a': out of GPU memory with 8 samples .*training\.micro_batch=4"):
        run(tmp_path / "a", task=Large())
    parts, whole = run(tmp_path / "b", task=Large(), micro_batch=2), run(tmp_path / "c")
    torch.testing.assert_close(parts.tensors(), whole.tensors(), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_moves_nothing_and_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="'a' is not finite at 16 samples"):
        run(tmp_path, task=Regression(spoil_at=16))


def test_tolerated_skips_are_counted_and_leave_the_network_as_it_was(tmp_path):
    task = Regression(spoil_at=0)
    before = task.networks["a"].weight.detach().clone()
    state = run(tmp_path, samples=8, task=task, max_skipped_steps=1)
    assert state.skipped_steps == 1
    assert torch.equal(task.networks["a"].weight, before)


def test_a_skipped_step_is_told_and_leaves_the_means_of_the_log_as_they_are(tmp_path):
    class Poisoned(Regression):
        def updates(self, batch, random, samples_seen, mean_over_ranks):
            batch.x[0] = float("nan") if samples_seen in (8, 32, 40) else batch.x[0]
            return super().updates(batch, random, samples_seen, mean_over_ranks)

    recorder = Recorder({}, 8, [JsonlSink(tmp_path / FILE_NAME)])
    training = Training(samples=48, batch=8, log_every=16, keep_best="a/loss", max_skipped_steps=6)
    train(Poisoned(), Numbers(), training, 5, LocalRuntime("cpu"), recorder, Saver(tmp_path / "checkpoints"))
    lines = training_records(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [2, 2, 6]  # of two networks
    means = [
        [line.get(f"{network}/{name}") for network in "ab" for name in ("loss", "gradient_norm")] for line in lines
    ]
    assert all(map(math.isfinite, means[0] + means[1])) and means[2] == [None] * 4
    assert recorded(tmp_path, "a/loss") == lines[1]["a/loss"]  # what a sweep judges by
    with pytest.raises(ValueError, match="keep_best='a/los' is no figure"):
        wrong = replace(training, keep_best="a/los")
        train(Poisoned(), Numbers(), wrong, 5, LocalRuntime("cpu"), Recorder({}, 8), Saver(tmp_path / "wrong"))


def test_a_skipped_step_leaves_the_average_as_it_was(tmp_path):
    whole = run(tmp_path / "a", samples=16)
    average = whole.trainees["a"].ema.weight.clone()
    spoilt = run(tmp_path / "b", samples=24, task=Regression(spoil_at=16), max_skipped_steps=1)
    assert torch.equal(spoilt.trainees["a"].ema.weight, average)
    assert not torch.equal(run(tmp_path / "c", samples=24).trainees["a"].ema.weight, average)


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(seen, 128, SETTINGS) for seen in (0, 8, 64, 96, 112, 127)]
    assert factors == pytest.approx([1 / 16, 9 / 16, 1, 1, 0.5, 1 / 32])


def test_ema_half_life_is_in_samples():
    settings = OptimiserSettings(lr=1, ema_half_life=64, ema_rampup=0)
    assert ema_decay(64, 10**9, settings) == pytest.approx(0.5)
    ramped = OptimiserSettings(lr=1, ema_half_life=10**9, ema_rampup=0.05)
    assert ema_decay(8, 1600, ramped) == pytest.approx(0.5 ** (8 / 80))


def test_intervals_are_crossed_once():
    assert [seen for seen in range(8, 129, 8) if crossed(seen, 8, 20)] == [24, 40, 64, 80, 104, 120]
    assert not crossed(8, 8, 0)


def test_draws_belong_to_the_sample_not_to_the_batch():
    whole = SampleRandom.at(3, range(10, 18)).normal(4, 2)
    part = SampleRandom.at(3, range(14, 18)).normal(4, 2)
    assert torch.equal(whole[4:], part)
    streams = SampleRandom.at(3, range(8))
    first = streams[2:4].normal(5)
    assert not torch.equal(first, streams[2:4].normal(5))  # the streams move on
    assert fold(1, 2, 3) != fold(1, 3, 2)
