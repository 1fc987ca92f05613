"""python -m pytest tests/unit/test_sweep_checks.py"""

from pathlib import Path

import pytest

from nnce_dist.config.load import ConfigError, load, with_settings
from nnce_dist.config.sweep_checks import per_process

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


def test_trials_share_a_process_where_nothing_is_decided_in_between():
    assert per_process(loaded("sweep.strategy=random", "sweep.trials=8", "sweep.per_process=4")) == 4
    assert per_process(loaded(*ASHA, "sweep.per_process=4")) == 1


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
