"""python -m pytest tests/unit/test_stages.py"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnce_dist.config.load import load
from nnce_dist.config.schema import Config
from nnce_dist.stages import inputs, plan, trials
from nnce_dist.stages.folder import claim, job_folder, read_result, write_result

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def configured(*overrides: str) -> Config:
    return load(["preset=smoke", *overrides], PRESETS, "smoke")


def test_the_sweep_holds_every_magnitude_its_limits_and_its_controls():
    config = configured(
        "sweep.noise_magnitudes=[1,10,1000]", "sweep.nwj=true", "sweep.held=true", "sweep.zero_energy=true"
    )
    found = {trial.name: trial.configuration(config) for trial in trials.sweep_trials(config)}
    assert list(found) == ["m1", "m10", "m1000", "minf", "m1-held", "m10-held", "zero-energy"]
    assert math.isinf(found["minf"].objective.noise_magnitude)
    assert found["m1-held"].objective.hold_regularisation and not found["m1"].objective.hold_regularisation
    assert found["zero-energy"].ten_step.energy_weight == 0 != found["m1"].ten_step.energy_weight


def test_the_best_magnitude_is_chosen_by_the_selection_figure_among_plain_trials():
    results = [
        {"name": "m1", "selection": 5.0},
        {"name": "m100", "selection": 4.0},
        {"name": "m1-held", "selection": 1.0},
        {"name": "zero-energy", "selection": 0.5},
    ]
    assert trials.best(results)["name"] == "m100"


def test_labels_follow_the_training_frequencies_exactly_over_a_cycle():
    counts = torch.tensor([3, 0, 5, 12])
    labels = inputs.label_marginal(counts)
    assert torch.equal(torch.bincount(labels(range(40, 60)), minlength=4), counts)
    assert torch.equal(labels(range(7, 9)), labels(range(0, 20))[7:9])


def test_spread_meets_the_whole_set():
    chosen = inputs.spread(1024, 256)
    assert len(set(chosen.tolist())) == 256 and chosen.max() > 1000
    assert np.bincount(chosen % 8, minlength=8).min() > 16  # classes that come round robin are all met
    assert inputs.spread(5, 10).tolist() == [0, 1, 2, 3, 4]


def test_a_run_goes_on_only_with_its_own_settings(tmp_path):
    config = configured(f"run.dir={tmp_path}")
    assert claim(config) == claim(config) == tmp_path / "smoke"
    louder = dataclasses.replace(config, run=dataclasses.replace(config.run, verbose=True))
    claim(louder)  # may drift: changes nothing that is computed
    other = configured(f"run.dir={tmp_path}", "run.seed=9", "ten_step.tau1=0.5")
    with pytest.raises(ValueError, match=r"run.seed: 0 there, 9 now; ten_step.tau1: 0.1 there, 0.5 now"):
        claim(other)


def test_a_result_marks_a_job_as_done(tmp_path):
    folder = job_folder(tmp_path, "ten_step", "m1")
    assert read_result(folder) is None
    write_result(folder, {"name": "m1"})
    assert read_result(tmp_path / "ten_step" / "m1") == {"name": "m1"}
    assert job_folder(tmp_path, "teacher", "teacher") == tmp_path / "teacher"


def test_the_plan_says_what_will_happen():
    rows = dict(plan.plan(configured()))
    assert rows["ten_step"].startswith("2 trials (m1, m100), 32 samples each")
    assert "0.03 M parameters" in rows["networks"]
    assert rows["results"].endswith("runs/smoke")
