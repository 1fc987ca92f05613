"""python -m pytest tests/unit/test_packed.py

Packed trials: each is what it would have been alone, in its weights and in its records, whatever becomes of the others.
"""

import dataclasses
import math
from contextlib import closing

import pytest
import torch
from marks import slow
from toys import StopAfter, on_ranks

from nnce_dist.config.schema import DensityRatio, MagnitudeSchedule, Objective, Optimiser, Training
from nnce_dist.data.vectors import FreshPairs, VectorPairs
from nnce_dist.metrics.jsonl import JsonlSink, training_records
from nnce_dist.metrics.packed import Member, PackedRecorder
from nnce_dist.metrics.recorder import Recorder
from nnce_dist.models.log_ratio import LogRatioMLP
from nnce_dist.tasks.density_ratio import DensityRatioTask
from nnce_dist.training.loop import steps, train
from nnce_dist.training.packed import PackedStream, PackedTask, one_of, packed_state
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.saver import Saver
from nnce_dist.training.step import NonFiniteError
from nnce_dist.training.stopping import Stopped

TRAINING = Training(samples=640, batch=16, log_every=160, checkpoint_every=320)
DRAWN = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0))
FIXED = VectorPairs(DRAWN[0] + 1, DRAWN[1])
FRESH = FreshPairs(*(lambda n, g, s=s: s + torch.randn(n, 3, generator=g) for s in (1.0, 0.0)), name="fresh")


@dataclasses.dataclass(frozen=True)
class Trial:
    """The numbers that trials differ in."""

    m: float = 1.0
    lr: float = 0.01
    gamma: float = 0.0
    seed: int = 0
    schedule: MagnitudeSchedule = dataclasses.field(default_factory=MagnitudeSchedule)
    optimiser: dict = dataclasses.field(default_factory=dict)

    def task(self) -> DensityRatioTask:
        torch.manual_seed(self.seed)
        settings = DensityRatio(optimiser=Optimiser(lr=self.lr, **self.optimiser), training=TRAINING)
        objective = Objective(noise_magnitude=self.m, ratio_regularisation=self.gamma, schedule=self.schedule)
        return DensityRatioTask(LogRatioMLP(3, 8, 2), settings, objective)


MAGNITUDES = [Trial(m) for m in (1.0, 10.0, 100.0, math.inf)]
NUMBERS = [
    Trial(),
    Trial(m=30.0, gamma=0.2),
    Trial(m=100.0, lr=0.05, optimiser={"decay_fraction": 0.5, "warmup_samples": 64}),
    Trial(m=1.0, schedule=MagnitudeSchedule("geometric", start=100.0)),
    Trial(m=3.0, optimiser={"clip_norm": 0.05}),
    Trial(m=3.0, optimiser={"clip_value": 0.01}),
]
AUTOMATIC = [Trial(lr=0.05, schedule=MagnitudeSchedule("auto")), Trial(), Trial(schedule=MagnitudeSchedule("auto"))]
SEEDS = [Trial(m, seed=seed) for m in (1.0, 100.0) for seed in (0, 1, 2)]


def alone(trial: Trial, folder, stream=FIXED, training=TRAINING):
    """The state after the trial's own run, and its records."""
    with closing(Recorder({"samples_total": 640}, 16, [JsonlSink(folder / "metrics.jsonl")])) as recorder:
        saver = Saver(folder / "checkpoints")
        state = train(trial.task(), stream, training, trial.seed, LocalRuntime("cpu"), recorder, saver, recorder.note)
    return state, training_records(folder)


def packed(
    trials: list[Trial], folder, stream=FIXED, runtime=None, after=lambda task, records: None, spoil=None, tasks=()
):
    """The state after a run of all, and the records of each."""
    seeds = sorted({trial.seed for trial in trials})
    runtime = runtime or LocalRuntime("cpu")
    tasks = tasks or [trial.task() for trial in trials]
    task = PackedTask(tasks, [seeds.index(trial.seed) for trial in trials])
    if spoil is not None:
        with torch.no_grad():
            next(iter(task.networks["ratio"].parameters()))[spoil, 0] = math.nan
    paths = [folder / str(number) / "metrics.jsonl" for number in range(len(trials))]
    members = [Member({"samples_total": 640}, [JsonlSink(path)] * (runtime.rank == 0)) for path in paths]
    options = (16, runtime.all_reduce, dict, lambda: task.members.training, lambda records: after(task, records))
    state, streams = packed_state(task), PackedStream(dict.fromkeys(seeds, stream))
    with closing(PackedRecorder(members, *options)) as recorder:
        where = (runtime, recorder, Saver(folder / "pack"), recorder.note)
        for _ in steps(state, streams, TRAINING, 0, *where):
            pass
    return state, [training_records(path.parent) for path in paths if path.exists()]


def tensors(state, trial: int | None = None) -> dict[str, torch.Tensor]:
    """Weights and Adam's moments of a solo run, or of one trial of a pack, by name."""
    trainee = state.trainees["ratio"]
    network = dict(trainee.network.named_parameters()) if trial is None else one_of(trainee.network, trial)
    moments = {
        f"{index}/{name}": values if trial is None else values[trial]
        for index, both in trainee.optimiser.state_dict()["state"].items()
        for name, values in both.items()
        if name != "step"
    }
    return network | moments


def assert_equal(actual: dict, expected: dict, **tolerance) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def without_times(records: list[dict]) -> list[dict]:
    passing = ("time", "started", "second", "goodput", "checkpoint")
    return [{k: v for k, v in one.items() if not any(word in k for word in passing)} for one in records]


@pytest.mark.parametrize("stream", [FIXED, FRESH], ids=["fixed", "fresh"])
@pytest.mark.parametrize(
    "trials", [slow(MAGNITUDES), NUMBERS, AUTOMATIC, SEEDS], ids=["magnitudes", "numbers", "auto", "seeds"]
)
def test_each_packed_trial_is_what_it_is_alone(tmp_path, trials, stream):
    together, records = packed(trials, tmp_path / "pack", stream)
    weights = []
    for number, trial in enumerate(trials):
        solo, own = alone(trial, tmp_path / str(number), stream)
        assert_equal(tensors(together, number), tensors(solo), rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(without_times(records[number]), without_times(own), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), number
        weights.append(torch.cat([tensor.flatten() for tensor in tensors(solo).values()]))
    distances = torch.cdist(torch.stack(weights), torch.stack(weights)).fill_diagonal_(1)
    assert (distances > 0.01).all()  # no two are alike


def assert_same(first, second, trials: list[int]) -> None:
    """The trials are equal to the bit in both packs."""
    for trial in trials:
        assert_equal(tensors(first, trial), tensors(second, trial), rtol=0, atol=0)


@pytest.mark.parametrize("trials", [SEEDS, AUTOMATIC], ids=["seeds", "auto"])
@pytest.mark.parametrize("steps", [20, slow(7), slow(39)])
def test_an_interrupted_pack_goes_on_to_the_bit(tmp_path, trials, steps):
    with pytest.raises(Stopped):
        packed(trials, tmp_path / "a", runtime=StopAfter(steps))
    (continued, again), (whole, records) = packed(trials, tmp_path / "a"), packed(trials, tmp_path / "b")
    assert_same(continued, whole, range(len(trials)))
    assert [without_times(one) for one in again] == [without_times(one) for one in records]


def test_a_trial_that_is_not_finite_stays_as_it_was_and_the_others_go_on(tmp_path):
    state, records = packed(MAGNITUDES, tmp_path / "a", spoil=1)
    whole, _ = packed(MAGNITUDES, tmp_path / "b")
    assert state.task.members.training == [0, 2, 3]
    assert state.task.members.failed.tolist() == [False, True, False, False]
    assert state.task.members.left_at.tolist() == [-1, 0, -1, -1]
    assert_same(state, whole, [0, 2, 3])
    assert [len(one) for one in records] == [4, 0, 4, 4]
    spoilt = one_of(state.trainees["ratio"].network, 1)
    assert sum(int(tensor.isnan().sum()) for tensor in spoilt.values()) == 3  # the one row that was spoilt, no other


def test_a_gradient_that_is_not_finite_in_all_trials_stops_the_pack(tmp_path):
    with pytest.raises(NonFiniteError, match="'ratio' is not finite at 0 samples"):
        packed(MAGNITUDES, tmp_path, spoil=slice(None))


def stop_at(samples_seen: int, *trials: int):
    """A decision that ends some trials early."""

    def decide(task: PackedTask, records: dict[int, dict]) -> None:
        if all(record["samples_seen"] == samples_seen for record in records.values()):
            task.members.leave(torch.tensor([i in trials for i in range(len(task.tasks))]), samples_seen)

    return decide


def test_trials_that_are_stopped_early_change_nothing_for_the_others(tmp_path):
    state, records = packed(SEEDS, tmp_path / "a", after=stop_at(320, 0, 4))
    whole, _ = packed(SEEDS, tmp_path / "b")
    assert_same(state, whole, [1, 2, 3, 5])
    assert state.task.members.left_at.tolist() == [320, -1, -1, -1, 320, -1]
    assert not state.task.members.failed.any()
    assert [len(without_times(one)) for one in records] == [2, 4, 4, 4, 2, 4]
    half = dataclasses.replace(TRAINING, samples=320)
    solo, _ = alone(SEEDS[4], tmp_path / "solo", training=half)
    kept = one_of(state.trainees["ratio"].network, 4)
    assert_equal(kept, dict(solo.trainees["ratio"].network.named_parameters()), rtol=1e-3, atol=1e-5)


def test_who_has_left_survives_an_interruption(tmp_path):
    with pytest.raises(Stopped):
        packed(SEEDS, tmp_path / "a", after=stop_at(320, 0, 4), runtime=StopAfter(30))
    continued, _ = packed(SEEDS, tmp_path / "a")
    whole, _ = packed(SEEDS, tmp_path / "b", after=stop_at(320, 0, 4))
    assert torch.equal(continued.task.members.left_at, whole.task.members.left_at)
    for trial in range(len(SEEDS)):
        assert_equal(*(one_of(state.trainees["ratio"].network, trial) for state in (continued, whole)), rtol=0, atol=0)


def test_two_ranks_reach_the_parameters_of_one(tmp_path):
    tasks = [[trial.task() for trial in NUMBERS] for _ in range(3)]  # not in threads, which share torch's generator

    def work(runtime):
        own = tasks[runtime.world_size - 1 + runtime.rank]
        return packed(NUMBERS, tmp_path / str(runtime.world_size), runtime=runtime, tasks=own)[0]

    (one,), (two, _) = on_ranks(1, work), on_ranks(2, work)
    for trial in range(len(NUMBERS)):
        assert_equal(tensors(two, trial), tensors(one, trial), rtol=1e-3, atol=1e-5)
