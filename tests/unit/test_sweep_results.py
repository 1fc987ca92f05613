"""python -m pytest tests/unit/test_sweep_results.py

What a sweep leaves: sweep.csv, the best trial as a preset, all results.
"""

import io
import math
from pathlib import Path

import pandas
import pytest
import sweep_example
from sweep_example import LR, PRESETS, M

from nnce_dist.config.load import ConfigError, load
from nnce_dist.config.schema import Config
from nnce_dist.report.kinds import figure_names
from nnce_dist.report.trial_csv import to_csv
from nnce_dist.report.trials import SweepData, TrialRow, best_of, short_names
from nnce_dist.stages import density_ratio_run, trials
from nnce_dist.stages.best import best_configuration, best_yaml
from nnce_dist.stages.report import keep
from nnce_dist.stages.sweep_results import sweep_data


def table(rows: list[TrialRow]) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(to_csv(rows)))


def loaded(path: Path) -> Config:
    return load([f"preset={path}"], PRESETS, "density-ratio")


@pytest.fixture(scope="module")
def asha(tmp_path_factory):
    """Configuration, folder and results of a sweep by asynchronous halving."""
    return sweep_example.run("asha", tmp_path_factory.mktemp("runs"))


# ---- sweep.csv -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_trial_with_what_became_of_it(asha):
    config, root, results = asha
    keep(config, root, results)
    found = pandas.read_csv(root / "sweep.csv", index_col="name")
    assert list(found.index) == [result["name"] for result in results]
    counts = found["state"].value_counts()
    assert counts["failed"] == 1 and counts["stopped"] > counts["finished"] > 0
    assert found["selection"][["trial-003", "trial-005"]].map(str).tolist() == ["nan", "inf"]
    assert found["error"]["trial-003"].startswith("NonFiniteError") and found["error"].notna().sum() == 1
    for result in results:
        row = found.loc[result["name"]]
        assert row["samples"] == result["samples"]
        assert row[M] == result["point"][M] and row[LR] == result["point"][LR]
        if "figures" in result:
            assert row["kl_error@64"] == pytest.approx(result["figures"]["kl_error@64"][0])


def row(name: str, value: float = 1.0, **more) -> TrialRow:
    plain = {"state": "finished", "settings": {M: 1.0}, "metric": "loss", "value": value}
    return TrialRow(name, **plain | more)


def test_other_programs_read_what_is_not_finite_not_a_number_or_has_commas():
    rows = [
        row("a", -math.inf, settings={M: math.inf, "ten_step.value_squash": True}, figures={"fd_x@1k": [1.0, 2.0]}),
        row("b", math.nan, settings={"data.train": 'a,"b"'}, error="two, words"),
    ]
    found = table(rows)
    assert found[M][0] == math.inf and found["loss"][0] == -math.inf and math.isnan(found["loss"][1])
    assert found["data.train"][1] == 'a,"b"' and found["error"][1] == "two, words" and found["fd_x@1k"][0] == 1.5
    assert found["ten_step.value_squash"][0] in (True, "true") and "selection" in found


def test_figures_of_different_names_are_different_columns_in_the_order_of_their_weight():
    rows = [row("a", figures={"kl_error@64": [1.0], "fd_shapes@2k": [1.0]}), row("b", figures={"fd_shapes@256": [3.0]})]
    assert figure_names(rows) == ["fd_shapes@256", "fd_shapes@2k", "kl_error@64"]
    assert table(rows)["fd_shapes@2k"].isna().tolist() == [False, True]


def test_settings_are_named_by_what_tells_them_apart():
    assert short_names(["ten_step.sampler.lr", "ten_step.value.lr", M]) == {
        "ten_step.sampler.lr": "sampler.lr",
        "ten_step.value.lr": "value.lr",
        M: "noise_magnitude",
    }


def listed(config: Config, values: dict[str, float]) -> list[dict]:
    """Results of a sweep over M, of the trials that have a value here; the others failed."""
    if density_ratio_run.chosen(config):
        names = [name for _, name, _ in density_ratio_run.trials(config)]
    else:
        names = [trial.name for trial in trials.sweep_trials(config)]
    measured = {n: {"selection": values[n], "figures": {"kl_error@64": [1.0]}, "samples": 128} for n in values}
    return [{"name": n, "stage": config.run.stages[-1]} | measured.get(n, {"error": "it broke"}) for n in names]


def test_a_sweep_over_magnitudes_and_its_controls_has_its_table_too(tmp_path):
    words = ["run.stages=[ten_step]", "sweep.held=true", "sweep.zero_energy=true", f"run.dir={tmp_path}"]
    config = load(["preset=smoke", *words], PRESETS, "laptop")
    values = {"m1": 3.0, "m100": 2.0, "m1-held": 1.0, "zero-energy": 0.5}
    sweep = sweep_data(config, tmp_path, listed(config, values))
    found = table(sweep.trials).set_index("name")
    assert found[M].to_dict() == {"m1": 1, "m100": 100, "m1-held": 1, "zero-energy": 100}
    assert found["objective.hold_regularisation"].tolist() == [False, False, True, False]
    assert found["ten_step.energy_weight"]["zero-energy"] == 0 != found["ten_step.energy_weight"]["m1"]
    assert [trial.name for trial in sweep.best] == ["m100"]  # controls do not compete


# ---- the best --------------------------------------------------------------------------------------------------------


def seeded(name: str, m: float, seed: int, value: float, **more) -> TrialRow:
    return row(name, value, settings={M: m, "run.seed": seed}, **more)


def test_settings_are_judged_by_their_mean_over_the_finished_seeds():
    rows = [
        *(seeded("a", 1, 0, 1.0), seeded("b", 1, 1, 5.0), seeded("c", 10, 0, 2.5), seeded("d", 10, 1, 2.0)),
        *(seeded("e", 100, 0, 2.4), seeded("f", 100, 1, None, state="failed")),
        *(seeded("i", 5, 0, 0.1), seeded("j", 5, 1, math.inf, state="diverged")),
        *(seeded("g", 7, 0, 0.1, state="stopped"), seeded("h", 7, 1, 0.1, state="stopped")),
    ]
    assert [trial.name for trial in best_of(rows)] == ["d", "c"]
    flipped = [seeded(one.name, one.settings[M], one.settings["run.seed"], one.value, mode="max") for one in rows[:4]]
    assert [trial.name for trial in best_of(flipped)] == ["b", "a"]
    assert [trial.name for trial in best_of(rows[5:])] == ["i"] and best_of(rows[7:]) == []


def test_the_best_trial_of_a_space_is_a_preset_of_that_trial_alone(asha):
    config, root, results = asha
    keep(config, root, results)
    best = min((one for one in results if one.get("figures")), key=lambda one: one["value"])
    alone = loaded(root / "best.yaml")
    assert alone.objective.noise_magnitude == best["point"][M] and alone.sweep.noise_magnitudes == [best["point"][M]]
    assert alone.density_ratio.optimiser.lr == best["point"][LR]
    assert (alone.sweep.space, alone.sweep.strategy, alone.run.name) == ({}, "grid", "asha-best")
    assert len(density_ratio_run.trials(alone)) == 1
    assert alone.density_ratio.training == config.density_ratio.training
    assert best["name"] in (root / "best.yaml").read_text().splitlines()[0]


def test_every_seed_of_the_best_magnitude_is_kept(tmp_path):
    config, root, results = sweep_example.run("grid", tmp_path)
    keep(config, root, results)
    alone = loaded(root / "best.yaml")
    assert alone.sweep.seeds == [0, 1, 2] and alone.sweep.noise_magnitudes == [100]
    assert loaded(root / "config.yaml").sweep.space == config.sweep.space  # which is a preset as well


def test_the_best_trial_of_a_search_for_high_values_is_a_preset_that_loads(tmp_path):
    search = ["sweep.mode=max", "sweep.metric=ratio/loss", "sweep.batch=7", "sweep.reduction=3", "sweep.interval=64"]
    config = sweep_example.configured("asha", tmp_path, *search)
    best = [row("trial-000", settings={M: 3.0})]
    (tmp_path / "best.yaml").write_text(best_yaml(config, tmp_path, SweepData(best, best)))
    alone = loaded(tmp_path / "best.yaml").sweep
    assert (alone.mode, alone.metric, alone.interval) == ("min", "selection", 0)
    assert (alone.batch, alone.reduction) == (4, 4)


def test_a_sampler_has_its_best_seed_its_magnitude_and_the_teacher_it_was_tuned_from(tmp_path):
    words = ["run.stages=[teacher,ten_step]", f"run.dir={tmp_path}", f"run.name={'n' * 63}", "teacher.weights="]
    config = load(["preset=smoke", *words], PRESETS, "laptop")
    weights = tmp_path / "teacher" / "weights.safetensors"
    weights.parent.mkdir()
    weights.touch()
    best = best_of([seeded("a", math.inf, 4, 1.0), seeded("b", math.inf, 7, 0.5)])
    alone = best_configuration(config, tmp_path, best)
    assert alone.run.seed == 7 and alone.sweep.seeds == [] and alone.teacher.weights == str(weights)
    assert [trial.noise_magnitude for trial in trials.sweep_trials(alone)] == [math.inf]
    assert len(alone.run.name) == 63 and alone.run.name.endswith("n-best")


def test_m_that_training_chooses_stays_so(tmp_path):
    words = ["objective.noise_magnitude=auto", "sweep.noise_magnitudes=[]", f"run.dir={tmp_path}"]
    config = load(["preset=density-ratio-smoke", *words], PRESETS, "density-ratio")
    sweep = sweep_data(config, tmp_path, listed(config, {"auto-seed0": 1.0, "auto-seed1": 2.0}))
    assert [trial.settings[M] for trial in sweep.trials] == ["auto", "auto"]
    alone = best_configuration(config, tmp_path, sweep.best)
    assert [name for _, name, _ in density_ratio_run.trials(alone)] == ["auto-seed0", "auto-seed1"]


def test_a_sweep_of_which_nothing_was_finished_has_a_table_and_no_best(tmp_path):
    config = load(["preset=density-ratio-smoke", f"run.dir={tmp_path}"], PRESETS, "density-ratio")
    keep(config, tmp_path, listed(config, {}))
    assert set(pandas.read_csv(tmp_path / "sweep.csv")["state"]) == {"failed"}
    assert not (tmp_path / "best.yaml").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [("run: [", "not YAML"), ("- 1\n", "holds no settings"), ("run: {sed: 1}", "'run.seed'"), (None, "no such")],
)
def test_a_preset_file_that_is_none_is_told_in_a_line(tmp_path, content, says):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        loaded(path)
    (line,) = caught.value.problems
    assert says in line and "mine.yaml" in line and "\n" not in line
