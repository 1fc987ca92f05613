"""python -m pytest tests/unit/test_turns.py

Trainings that take turns in one process: each is to the bit what it is alone, and what they share is made once.
"""

import pytest
import torch
from torch import nn
from toys import Numbers, Regression, Silent, StopAfter

from nnce_dist.config.schema import Training
from nnce_dist.tasks.task import OptimiserSettings
from nnce_dist.training.loop import steps, train
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.saver import Saver
from nnce_dist.training.state import TrainState
from nnce_dist.training.step import NonFiniteError
from nnce_dist.training.stopping import Stopped
from nnce_dist.training.turns import SharedStream, take_turns

TRAINING = Training(samples=160, batch=8, checkpoint_every=40)


class Dropping(Regression):
    """A trial with a learning rate of its own, and dropout: a draw from torch's own generator."""

    def __init__(self, lr: float, spoil_at: int = -1):
        super().__init__(spoil_at)
        self.networks["b"] = nn.Sequential(self.networks["b"], nn.Dropout(0.5))
        self.optimisers = self.optimisers | {"b": OptimiserSettings(lr=lr)}


class Counting(Numbers):
    """Counts the batches that are made."""

    digest, made = "numbers", 0

    def batches(self, *where):
        for batch in super().batches(*where):
            self.made += 1
            yield batch


class Open(Numbers):
    """Counts the iterators that are read at a time."""

    digest, reading, most = "numbers", 0, 0

    def batches(self, *where):
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            yield from super().batches(*where)
        finally:
            self.reading -= 1


RATES = {"slow": 0.001, "middle": 0.01, "fast": 0.1}


def together(folder, runtimes=None, spoil_at=None, seeds=None):
    """Trains all in turns; their states, the errors, and how many batches were made."""
    stream = Counting()
    shared, states, trainings = SharedStream(stream), {}, {}
    for name, lr in RATES.items():
        states[name] = TrainState.of(Dropping(lr, (spoil_at or {}).get(name, -1)))
        runtime, seed = (runtimes or {}).get(name, LocalRuntime("cpu")), (seeds or {}).get(name, 5)
        where = (seed, runtime, Silent(), Saver(folder / name), lambda line: None)
        trainings[name] = steps(states[name], shared, TRAINING, *where)
    errors = take_turns(trainings)
    return states, errors, stream.made


def alone(name: str, folder, seed: int = 5) -> TrainState:
    task = Dropping(RATES[name])
    return train(task, Numbers(), TRAINING, seed, LocalRuntime("cpu"), Silent(), Saver(folder), lambda line: None)


def assert_same(first: TrainState, second: TrainState) -> None:
    a, b = first.tensors(), second.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_each_is_what_it_is_alone_and_batches_are_made_once(tmp_path):
    states, errors, made = together(tmp_path)
    for name, state in states.items():
        assert_same(state, alone(name, tmp_path / "alone" / name))
    assert not errors and made == 20


def test_trials_of_another_seed_have_their_own_order(tmp_path):
    states, _, made = together(tmp_path, seeds={"fast": 6})
    assert_same(states["fast"], alone("fast", tmp_path / "alone", seed=6))
    assert_same(states["slow"], alone("slow", tmp_path / "other"))
    assert made == 40


def test_one_that_fails_is_named_and_the_others_go_on(tmp_path):
    states, errors, _ = together(tmp_path, spoil_at={"middle": 80})
    assert list(errors) == ["middle"] and isinstance(errors["middle"], NonFiniteError)
    for name in ("slow", "fast"):
        assert_same(states[name], alone(name, tmp_path / "alone" / name))


def test_stopped_at_different_places_they_go_on_together(tmp_path):
    with pytest.raises(Stopped, match=r"56 samples \(slow\), 56 samples \(fast\), 96 samples \(middle\)"):
        together(tmp_path, {name: StopAfter(12 if name == "middle" else 7) for name in RATES})
    states, errors, made = together(tmp_path)
    for name, state in states.items():
        assert_same(state, alone(name, tmp_path / "alone" / name))
    assert not errors and made == 15  # those that are behind catch up first; two to find out which they are


def test_who_goes_on_elsewhere_has_left_the_place_before():
    stream = Open()
    shared = SharedStream(stream)
    for start in (0, 80, 40):  # each holds shards of its own
        next(shared.batches(5, start, 8, 0, 1, 0))
    assert stream.most == 1 and stream.reading == 1
