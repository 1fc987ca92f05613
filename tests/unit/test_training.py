"""python -m pytest tests/unit/test_training.py"""

import json

import pytest
import torch
from torch import nn

from nnce_dist.config.schema import Training
from nnce_dist.tasks.task import Batch, OptimiserSettings, Update
from nnce_dist.training import checkpoint
from nnce_dist.training.loop import crossed, train
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom, fold
from nnce_dist.training.state import TrainState, ema_decay, learning_rate_factor
from nnce_dist.training.step import NonFiniteError, micro_batches
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

    def batches(self, seed, start_samples_seen, global_batch, rank, world_size):
        position, share = start_samples_seen, global_batch // world_size
        while True:
            first = position + rank * share
            yield Batch(SampleRandom.at(seed + 1, range(first, first + share)).normal(3), None)
            position += global_batch


class Silent:
    def __init__(self):
        self.flushed = []

    def resume(self, samples_seen): ...

    def observe(self, prefix, observations): ...

    def flush(self, samples_seen, **scalars):
        self.flushed.append(samples_seen)


class StopAfter(LocalRuntime):
    """Asks for the end after some steps."""

    def __init__(self, steps: int):
        super().__init__("cpu")
        self.steps = steps

    def stop_signal(self):
        self.steps -= 1
        return 15 if self.steps == 0 else None


def run(folder, samples=128, runtime=None, task=None, **options) -> TrainState:
    training = Training(samples=samples, batch=8, **options)
    runtime = runtime or LocalRuntime("cpu")
    return train(task or Regression(), Numbers(), training, 5, runtime, Silent(), folder, say=lambda line: None)


def same(first: TrainState, second: TrainState) -> bool:
    a, b = first.tensors(), second.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_runs_are_equal_to_the_bit(tmp_path):
    assert same(run(tmp_path / "a"), run(tmp_path / "b"))


@pytest.mark.parametrize("steps", [1, 7, 15])
def test_interrupted_and_continued_equals_uninterrupted_to_the_bit(tmp_path, steps):
    with pytest.raises(Stopped) as stopped:
        run(tmp_path / "a", runtime=StopAfter(steps))
    assert stopped.value.exit_code == 143
    assert same(run(tmp_path / "a"), run(tmp_path / "b"))


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole, parts = run(tmp_path / "a").tensors(), run(tmp_path / "b", micro_batch=3).tensors()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)
    assert micro_batches(8, 3) == [slice(0, 3), slice(3, 6), slice(6, 8)]


def test_a_gradient_that_is_not_finite_moves_nothing_and_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="'a' is not finite at 16 samples"):
        run(tmp_path, task=Regression(spoil_at=16))


def test_tolerated_skips_are_counted_and_leave_the_network_as_it_was(tmp_path):
    task = Regression(spoil_at=0)
    before = task.networks["a"].weight.detach().clone()
    state = run(tmp_path, samples=8, task=task, max_skipped_steps=1)
    assert state.skipped_steps == 1
    assert torch.equal(task.networks["a"].weight, before)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    run(tmp_path, checkpoint_every=64)
    newest = max(checkpoint.committed(tmp_path))
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    said, state = [], TrainState.of(Regression())
    assert checkpoint.restore_newest(tmp_path, state, said.append)
    assert state.samples_seen == 64
    assert str(newest) in said[0] and "digest of state.safetensors" in said[0]


def test_a_half_written_checkpoint_is_never_seen(tmp_path):
    run(tmp_path, samples=64)
    (tmp_path / ".saving-1").mkdir()
    whole = next(checkpoint.committed(tmp_path))
    (whole / "manifest.json").unlink()
    said = []
    assert not checkpoint.restore_newest(tmp_path, TrainState.of(Regression()), said.append)
    assert len(said) == 1 and "unreadable" in said[0]


def test_a_checkpoint_of_other_networks_is_refused_in_one_line(tmp_path):
    run(tmp_path, samples=64)
    task = Regression()
    task.networks["a"] = nn.Linear(3, 5)
    with pytest.raises(ValueError, match="does not fit these networks") as caught:
        checkpoint.restore_newest(tmp_path, TrainState.of(task), lambda line: None)
    assert "\n" not in str(caught.value)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, checkpoint_every=8)
    assert [path.name for path in sorted(checkpoint.committed(tmp_path))] == [f"{120:012d}", f"{128:012d}"]
    assert json.loads((tmp_path / f"{128:012d}" / "state.json").read_text())["samples_seen"] == 128


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
