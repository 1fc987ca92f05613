"""python -m pytest tests/unit/test_stages.py"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnce_dist.config.load import load, with_settings
from nnce_dist.config.schema import Config
from nnce_dist.metrics.jsonl import read
from nnce_dist.stages import inputs, pipeline, plan, trials
from nnce_dist.stages.folder import claim, job_folder, read_result, run_root, write_result
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.launch import LocalLauncher
from nnce_dist.stages.manifest import write_manifest
from nnce_dist.training.runtime import LocalRuntime

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


def test_only_finished_trials_compete_for_the_best_magnitude():
    failed, control = {"name": "m10", "error": "it broke"}, {"name": "zero-energy", "selection": 0.5}
    assert trials.best([failed, control, {"name": "m1", "selection": 5.0}])["name"] == "m1"
    assert trials.best([failed, control]) is None


def test_a_generator_made_at_another_magnitude_is_set_aside(tmp_path):
    said = []
    pipeline.set_aside(tmp_path / "one_step", 1.0, said.append)
    (tmp_path / "one_step").mkdir()
    (tmp_path / "one_step" / "metrics.jsonl").write_text('{"noise_magnitude": 1.0}\n{"event": "evaluated"}\n')
    pipeline.set_aside(tmp_path / "one_step", 1.0, said.append)
    assert (tmp_path / "one_step").exists() and not said
    pipeline.set_aside(tmp_path / "one_step", 100.0, said.append)
    assert not (tmp_path / "one_step").exists() and (tmp_path / "one_step-m1" / "metrics.jsonl").exists()
    assert str(tmp_path / "one_step-m1") in said[0]


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
    assert claim(config, print) == claim(config, print) == []
    claim(configured(f"run.dir={tmp_path}", "run.verbose=true", "data.loader_workers=3"), print)  # computes the same
    other = configured(f"run.dir={tmp_path}", "run.seed=9", "ten_step.tau1=0.5", "workers.precision=float32")
    with pytest.raises(
        ValueError, match="run.seed: 0 there, 9 now; ten_step.tau1: 0.1 there, 0.5 now; .*float32"
    ) as found:
        claim(other, print)
    assert "run.allow_drift=[run.seed,ten_step.tau1,workers.precision]" in str(found.value)


def test_a_run_of_before_the_decoders_setting_had_its_name_goes_on(tmp_path):
    config = configured(f"run.dir={tmp_path}")
    claim(config, print)
    kept = run_root(config) / "config.yaml"
    kept.write_text(kept.read_text().replace("loader_workers:", "loader_threads:"))
    assert claim(config, print) == []


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (["run.stages=[teacher,ten_step]"], ["run.stages=[teacher,ten_step]", "workers.count=2"]),
        (["one_step.critic=none"], ["one_step.critic=none", "workers.count=2"]),
        (["one_step.training.micro_batch=4"], ["one_step.training.micro_batch=4", "workers.count=2"]),
        (["workers.count=2"], ["one_step.training.micro_batch=4"]),
        (["workers.count=2"], ["workers.count=2", "workers.min=1"]),
    ],
)
def test_a_run_goes_on_with_other_workers_where_the_critic_averages_over_as_many_samples(tmp_path, then, now):
    claim(configured(f"run.dir={tmp_path}", *then), print)
    assert claim(configured(f"run.dir={tmp_path}", *now), print) == []


def test_a_critic_that_averages_over_a_workers_share_keeps_the_number_of_workers(tmp_path):
    claim(configured(f"run.dir={tmp_path}"), print)
    with pytest.raises(ValueError, match=r"micro_batch: 8 there, 4 now \(by itself the batch / workers.count\)"):
        claim(configured(f"run.dir={tmp_path}", "workers.count=2"), print)
    allowed = "run.allow_drift=[one_step.training.micro_batch]"
    assert claim(configured(f"run.dir={tmp_path}", "workers.count=2", allowed), print)


def test_settings_that_are_named_may_drift_and_the_manifest_says_so(tmp_path):
    first = configured(f"run.dir={tmp_path}")
    write_manifest(run_root(first), ["first"], claim(first, print))
    said = []
    words = [f"run.dir={tmp_path}", "run.seed=9", "run.allow_drift=[run.seed]"]
    with pytest.raises(ValueError, match="ten_step.tau1: 0.1 there, 0.5 now") as refused:
        claim(configured(*words, "ten_step.tau1=0.5"), said.append)
    assert "run.seed: 0" not in str(refused.value)
    for _ in range(2):
        drift = claim(configured(*words), said.append)
        write_manifest(run_root(first), ["second"], drift)
    assert said == ["going on with another setting, as run.allow_drift says: run.seed: 0 there, 9 now"] * 2
    manifest = json.loads((run_root(first) / "manifest.json").read_text())
    assert manifest["command"] == "python first" and manifest["drift"] == ["run.seed: 0 there, 9 now"]


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """It knows nothing of newer settings, which had their defaults then."""
    config = configured(f"run.dir={tmp_path}")
    claim(config, print)
    path = run_root(config) / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "keep_best" not in line))
    claim(config, print)
    with pytest.raises(ValueError, match="nearest: 'run.seed'"):
        configured("run.allow_drift=[run.sed]")


def swept(tmp_path: Path, *words: str) -> Config:
    space = ["sweep.space.objective.noise_magnitude=loguniform(1,1e4)", *words, "density_ratio.training.samples=32"]
    draws = ["sweep.strategy=asha", "sweep.trials=2", f"run.dir={tmp_path}"]
    return load([*space, *draws], PRESETS, "density-ratio-smoke")


def test_a_trial_names_the_settings_that_it_differs_in(tmp_path):
    config = swept(tmp_path, "sweep.space.density_ratio.optimiser.lr=uniform(0,1)", "sweep.seeds=[7]")
    given = with_settings(config, {"objective.noise_magnitude": 31.5, "run.seed": 7})
    assert trials.swept_settings(given, "density_ratio") == "M=31.5 lr=0.05 seed=7"
    assert trials.swept_settings(configured(), "ten_step") == ""
    two = ["sweep.space.ten_step.value.lr=grid(0.5)", "sweep.space.ten_step.sampler.lr=grid(1)"]
    assert trials.swept_settings(configured(*two), "ten_step").startswith("ten_step.value.lr=")
    assert trials.swept_settings(configured(*two), "one_step") == ""


def test_what_a_segment_came_to_is_told_where_metrics_go(tmp_path):
    config = swept(tmp_path, "sweep.seeds=[]")
    job = trials.payload(config, tmp_path, "density_ratio", "trial-000")
    first = run_job(job | {"until": 16, "metric": "selection"}, LocalRuntime("cpu"))
    run_job(job | {"until": 32, "metric": "selection"}, LocalRuntime("cpu"))
    records = read(tmp_path / "density_ratio" / "trial-000" / "metrics.jsonl")
    told = [(one["event"], one["evaluation/selection"]) for one in records if "evaluation/selection" in one]
    result = read_result(tmp_path / "density_ratio" / "trial-000")
    assert told == [("judged", first["value"]), ("evaluated", result["selection"])]
    assert {one["settings"] for one in records if "samples_seen" in one} == {"M=100"}


def test_a_failure_is_told_where_metrics_go(tmp_path):
    config = swept(tmp_path)
    config.density_ratio.vectors = str(tmp_path / "none.npz")
    (result,) = LocalLauncher(config, 0, None).run([trials.payload(config, tmp_path, "density_ratio", "trial-000")])
    (record,) = read(tmp_path / "metrics.jsonl")
    assert "none.npz" in result["error"] and record["event"] == f"failed: {result['error']}"
    assert (record["stage"], record["trial"]) == ("density_ratio", "trial-000")
    assert record["settings"] == "M=100 seed=0"


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
