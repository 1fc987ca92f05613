"""Run: pytest tests/unit/test_auto_in_tasks.py

M=auto in a task: what moves it, what a checkpoint holds, and how it is asked for.
"""

from pathlib import Path

import pytest
import torch

from nnce_dist.config.load import ConfigError, load
from nnce_dist.config.schema import MagnitudeSchedule, Objective, TenStep, Training
from nnce_dist.models.mlp import HarmonicMLP, ValueMLP
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.ratio import auto_magnitude as rule
from nnce_dist.samplers.ten_step import TenStepSampler
from nnce_dist.stages.trials import sweep_trials
from nnce_dist.tasks import dxmi
from nnce_dist.tasks.auto_magnitude import AutoMagnitude
from nnce_dist.tasks.task import Batch
from nnce_dist.tasks.ten_step import TenStepTask
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom
from nnce_dist.training.state import TrainState
from nnce_dist.training.step import apply_update

B = 64
PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
ASKED = ["objective.noise_magnitude=auto", "sweep.noise_magnitudes=[]", "sweep.nwj=false", "sweep.held=false"]


def task() -> TenStepTask:
    torch.manual_seed(0)
    training = Training(samples=100 * B, batch=B)
    settings = TenStep(num_steps=3, skip=1, sampler_batches=1, value_steps="joint", value_weight=0.0, training=training)
    sampler = TenStepSampler(EDMPrecond(HarmonicMLP(width=8)), dxmi.few_step_schedule(settings))
    objective = Objective(schedule=MagnitudeSchedule("auto"), ratio_regularisation=0.0)
    return TenStepTask(sampler, ValueMLP(width=8), settings, objective, 0)


def train(made: TenStepTask, steps: int, micro_batch: int = B, lr: float = 0.02) -> list[float]:
    """M of each energy step; the data lie apart from what the sampler makes, and only the value learns."""
    state, path = TrainState.of(made), []
    state.trainees["value"].set_learning_rate(0, 1, rate=lr / state.trainees["value"].settings.lr)
    for step in range(steps):
        x = 3 + 0.1 * SampleRandom.at(3, range(step * B, (step + 1) * B)).normal(2)
        random = SampleRandom.at(1, range(step * B, (step + 1) * B))
        path.append(made.magnitude.at(step * B))
        for update in made.updates(Batch(x, None), random, step * B, lambda mean: mean):
            if update.network == "value":
                apply_update(update, state.trainees["value"], LocalRuntime(), B, micro_batch, lambda *_: None)
    return path


def test_m_starts_at_1_and_rises_while_the_ratio_has_far_to_go():
    path = train(task(), 40)
    assert path[0] == 1 and max(path) > 2


def test_micro_batches_and_ranks_show_the_same_as_the_whole_batch():
    torch.testing.assert_close(train(task(), 12, micro_batch=16), train(task(), 12), rtol=1e-3, atol=1e-3)
    network, f = torch.nn.Linear(1, 1), torch.linspace(-2, 6, 32)
    whole, left, right = (AutoMagnitude(network, 1000, 2000) for _ in range(3))
    for half, part in ((left, f[:16]), (right, f[16:])):
        half.show(part, -part)
    whole.show(f, -f)
    names = rule.observe(whole.state, f, -f)
    mean = torch.stack([rule.observe(whole.state, f, -f)[name].mean() for name in names])
    for magnitude in (whole, left, right):
        magnitude.conclude(lambda own: own if magnitude is whole else mean)  # noqa: B023
    assert left.extra_state()["auto_magnitude"].tolist() == pytest.approx(
        whole.extra_state()["auto_magnitude"].tolist()
    )
    assert torch.equal(left.extra_state()["auto_magnitude"], right.extra_state()["auto_magnitude"])


def test_a_checkpoint_holds_what_m_follows_from():
    first, second = task(), task()
    train(first, 15)
    second.load_extra_state(first.extra_state())
    assert second.magnitude.at(0) == first.magnitude.at(0) != 1
    assert second.magnitude.state == first.magnitude.state


def test_more_parameters_than_data_keep_m_at_1():
    magnitude = AutoMagnitude(torch.nn.Linear(1000, 1), 50, 51)
    for _ in range(50):
        magnitude.show(torch.full((8,), 9.0), torch.full((8,), -1.0))
        magnitude.conclude(lambda mean: mean)
    assert magnitude.at(0) == 1
    fresh = AutoMagnitude(torch.nn.Linear(1000, 1), 50, 50)
    for _ in range(50):
        fresh.show(torch.full((8,), 9.0), torch.full((8,), -1.0))
        fresh.conclude(lambda mean: mean)
    assert fresh.at(0) > 100


def test_it_is_asked_for_by_a_word_and_runs_one_trial():
    config = load(ASKED, PRESETS, "laptop")
    assert config.objective.schedule.kind == "auto"
    assert sweep_trials(config)[0].name == "auto"
    assert [trial.name for trial in sweep_trials(config)].count("auto") == 1


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["sweep.nwj=true"], "no M to sweep"),
        (["objective.kind=reweighted_bce"], "objective.kind=n2ce"),
        (["objective.hold_regularisation=true"], "hold_regularisation=false"),
    ],
)
def test_settings_that_contradict_it_are_told(more, problem):
    with pytest.raises(ConfigError, match=problem):
        load(ASKED + more, PRESETS, "laptop")
