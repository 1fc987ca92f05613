"""python -m pytest tests/unit/test_sweep_checks.py"""

from pathlib import Path

import pytest

from nnce_dist.config.load import ConfigError, load, with_settings
from nnce_dist.config.sweep_checks import space, swept_stage, trials_stage

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
M = "sweep.space.objective.noise_magnitude=loguniform(1,1e4)"
ASHA = ("sweep.strategy=asha", "sweep.trials=8")


def loaded(*words: str):
    return load([M, *words], PRESETS, "density-ratio-smoke")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.space.objective.noise_magnitud=grid(1)"], "nearest: 'objective.noise_magnitude'"),
        (["sweep.strategy=ahsa", "sweep.trials=1"], "sweep.strategy=ahsa: choose one of grid"),
        (["sweep.strategy=random"], "a space with no trial; set sweep.trials"),
        ([*ASHA, "sweep.interval=128"], "the first rung would be no earlier than the end of training"),
        ([*ASHA, "sweep.strategy=pbt", "sweep.interval=200"], "the first generation would be no earlier"),
        ([*ASHA, "sweep.space.density_ratio.training.samples=choice(64,128)"], "judges trials at the same samples"),
        ([*ASHA, "sweep.space.density_ratio.training.batch=choice(16,32)"], "take density_ratio.training.batch out"),
        (["sweep.strategy=grid", "sweep.space.objective.noise_magnitude=grid(0.5)"], "must be at least 1"),
        ([*ASHA, "sweep.space.density_ratio.width=choice(8,wide)"], "density_ratio.width=wide: Value 'wide'"),
        ([*ASHA, "sweep.mode=max"], "sweep.mode=max: selection is a distance, low is good; use sweep.mode=min"),
        ([*ASHA, "objective.noise_magnitude=auto"], "take objective.noise_magnitude out of sweep.space"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(words, says):
    with pytest.raises(ConfigError) as found:
        loaded(*words)
    (line,) = found.value.problems
    assert says in line


def test_rungs_and_lengths_that_go_together_are_taken():
    loaded(*ASHA, "sweep.interval=64")
    loaded("sweep.strategy=random", "sweep.trials=2", "sweep.space.density_ratio.training.samples=choice(64,128)")


def test_a_metric_is_for_a_space():
    with pytest.raises(ConfigError) as found:
        load(["sweep.metric=ratio/los"], PRESETS, "density-ratio-smoke")
    (line,) = found.value.problems
    assert line == "sweep.metric=ratio/los: M is chosen by selection; another metric is for sweep.space"
    assert loaded(*ASHA, "sweep.metric=ratio/loss", "sweep.mode=max").sweep.mode == "max"


def test_a_wrong_space_is_told_beside_what_else_is_wrong():
    with pytest.raises(ConfigError) as found:
        loaded(*ASHA, "run.name=A", "workers.min=2", "sweep.space.density_ratio.width=some(8)")
    assert [line.split("=")[0] for line in found.value.problems] == [
        *("run.name", "workers.min", "sweep.space.density_ratio.width")
    ]


def test_seeds_of_the_space_are_in_the_place_of_those_of_the_preset():
    seeds = "sweep.space.run.seed=grid(7,8,9)"
    assert space(load([seeds], PRESETS, "density-ratio"))["run.seed"].values == (7, 8, 9)
    assert space(load([M, "sweep.strategy=random", "sweep.trials=1"], PRESETS, "density-ratio"))["run.seed"].values == (
        *range(5),
    )


@pytest.mark.parametrize(
    ("preset", "words", "stage"),
    [
        ("laptop", ["sweep.space.run.seed=grid(0,1)"], "ten_step"),
        ("laptop", ["sweep.space.objective.schedule.kind=grid(constant,geometric)"], "ten_step"),
        ("laptop", ["sweep.space.run.seed=grid(0,1)", "run.stages=[one_step,teacher]"], "one_step"),
        ("laptop", ["sweep.space.run.seed=grid(0,1)", "run.stages=[teacher]"], "teacher"),
        ("laptop", ["sweep.space.run.seed=grid(0,1)", "sweep.space.network.dropout=grid(0,0.1)"], "teacher"),
        ("density-ratio", ["sweep.space.run.seed=grid(0,1)"], "density_ratio"),
    ],
)
def test_settings_of_no_stage_alone_are_of_the_stage_that_the_run_is_about(preset, words, stage):
    config = load(words, PRESETS, preset)
    assert swept_stage(config) == trials_stage(config) == stage


def test_lists_of_m_are_judged_where_they_are_trained_beside_a_space():
    space = ["sweep.space.one_step.alpha=grid(1,1.2)", "objective.schedule.kind=geometric"]
    with pytest.raises(ConfigError, match="a ramp ends at a finite M; change sweep.nwj"):
        load(space, PRESETS, "laptop")
    load([*space, "run.stages=[teacher,one_step]"], PRESETS, "laptop")


def test_the_one_step_critic_has_an_m_that_is_given():
    words = ["sweep.space.objective.schedule.kind=grid(constant,auto)", "run.stages=[teacher,one_step]"]
    with pytest.raises(ConfigError, match="auto is not for the one-step critic"):
        load(words, PRESETS, "laptop")


def test_other_settings_leave_the_configuration_as_it_was():
    config = loaded(*ASHA)
    changed = with_settings(config, {"density_ratio.optimiser.lr": 1, "objective.schedule.kind": "cosine"})
    assert changed.density_ratio.optimiser.lr == 1.0 and isinstance(changed.density_ratio.optimiser.lr, float)
    assert changed.objective.schedule.kind == "cosine" and config.objective.schedule.kind == "constant"
    assert config.density_ratio.optimiser.lr == 0.05 and changed.sweep.space == config.sweep.space
    with pytest.raises(ConfigError, match="density_ratio.num_layers=2.5"):
        with_settings(config, {"density_ratio.num_layers": 2.5})
    with pytest.raises(ConfigError, match="density_ratio.optimiser.lr=-1.0: must be at least 0"):
        with_settings(config, {"density_ratio.optimiser.lr": -1})
    with pytest.raises(ConfigError, match="is no multiple of density_ratio.training.batch=48"):
        with_settings(config, {"density_ratio.training.batch": 48})
