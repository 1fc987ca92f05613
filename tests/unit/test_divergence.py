"""python -m pytest tests/unit/test_divergence.py

A training whose samples are no pictures any more is stopped: it has diverged; that is no failure and disturbs no other.
"""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_ten_step import batch, make
from toys import on_ranks

from nnce_dist.config.load import load
from nnce_dist.config.schema import Config
from nnce_dist.metrics.jsonl import read, training_records
from nnce_dist.metrics.status import Statuses
from nnce_dist.models.weights import save_weights
from nnce_dist.samplers.divergence import DivergedError, require_near, sample_observations
from nnce_dist.stages import build, pipeline, search
from nnce_dist.stages.estimate import Estimate
from nnce_dist.stages.folder import errors, job_folder, read_result, run_root
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.launch import LocalLauncher
from nnce_dist.stages.sweep_results import sweep_data
from nnce_dist.stages.trials import payload
from nnce_dist.tasks.task import Batch
from nnce_dist.training.runtime import LocalRuntime, mean_over_ranks
from nnce_dist.training.seeding import SampleRandom

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
LR = "ten_step.sampler.lr"  # 3e-5 in the preset; the first step with 1 makes samples 100,000 times as large as the data


def configured(folder: Path, *words: str) -> Config:
    places = [f"run.dir={folder}", f"data.cache_dir={folder}/cache", f"teacher.weights={folder}/teacher.safetensors"]
    quick = ["workers.runtime=local", "run.stages=[ten_step]", "evaluation.draws=1", "sweep.seeds=[]"]
    config = load([*places, *quick, *words], PRESETS, "smoke")
    build.seed_networks(config, 1)
    save_weights(build.denoiser(config).state_dict(), folder / "teacher.safetensors")
    return config


def run(config: Config) -> list[dict]:
    root = run_root(config)
    root.mkdir(parents=True, exist_ok=True)
    return search.run(config, root, LocalLauncher(config, 0, None), None, lambda line: None)


def log(config: Config, stage: str, name: str) -> list[dict]:
    return read(job_folder(run_root(config), stage, name) / "metrics.jsonl")


def test_samples_are_far_off_beside_their_data_and_those_that_are_not_finite_are_another_matter():
    data = torch.tensor([[0.3, -0.4], [0.3, -0.4], [3.0, 4.0], [0.3, 0.4], [0.3, 0.4]])
    samples = torch.tensor([[1.0, 1.0], [3.0, -4.0], [3.0, -4.0], [math.nan, 9.0], [1e30, -1e30]])
    seen = sample_observations(samples, data)
    assert seen["far_off"].tolist() == [0, 1, 0, 0, 1]
    torch.testing.assert_close(seen["sample_size"][[0, 1, 2, 4]].float(), torch.tensor([1, 12.5**0.5, 12.5**0.5, 1e30]))
    require_near(torch.tensor(0.5), 0)
    with pytest.raises(DivergedError, match="51% of the samples drawn at 1,024 samples seen are more than 5 times"):
        require_near(torch.tensor(0.51), 1024)


def test_a_plan_does_not_diverge_as_its_trials_will(tmp_path):
    assert Estimate.of(configured(tmp_path, f"sweep.space.{LR}=grid(1,3e-5)")).step.seconds > 0


@pytest.mark.parametrize(("cut", "diverged"), [(4, True), (2, False)])
def test_all_ranks_stop_when_most_samples_of_all_are_far_off(cut, diverged):
    def work(runtime):
        part = [slice(0, cut), slice(cut, 6)][runtime.rank]
        x = batch().x[part] * [1e-6, 1e6][runtime.rank]  # beside the first rank's data every sample is large
        random, share = SampleRandom.at(3, range(part.start, part.stop)), partial(mean_over_ranks, runtime, len(x) / 6)
        try:
            return len(list(make().updates(Batch(x, batch().labels[part]), random, 0, share)))
        except DivergedError as error:
            return str(error)[:14]

    first, second = on_ranks(2, work)
    assert first == second and (first == "67% of the sam") is diverged


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2], ids=["alone", "in turns"])
def test_a_trial_that_diverges_is_no_failure_and_disturbs_no_other(tmp_path, size):
    config = configured(tmp_path, f"sweep.space.{LR}=grid(3e-5,1)", f"sweep.per_process={size}")
    good, bad = run(config)
    (expected,) = run(configured(tmp_path, f"sweep.space.{LR}=grid(3e-5)", "run.name=undisturbed"))
    assert not errors([good, bad]) and good["figures"] == expected["figures"] and good["value"] == expected["value"]
    assert all(
        one["value/far_off"] == 0 for one in training_records(job_folder(run_root(config), "ten_step", "trial-000"))
    )
    assert (bad["note"], bad["value"], bad["samples"], bad["figures"]) == ("diverged", math.inf, 8, {})
    told = log(config, "ten_step", "trial-001")[-1]["event"]
    assert told == f"diverged: {bad['reason']}" and "lower the learning rates" in told
    assert [row.state for row in sweep_data(config, run_root(config), [good, bad]).trials] == ["finished", "diverged"]
    assert run(config) == [good, bad]  # it is not tried again


@pytest.mark.slow
def test_halving_stops_a_trial_that_diverges_whatever_it_is_judged_by(tmp_path):
    words = ["sweep.strategy=asha", "sweep.trials=4", "sweep.interval=16", "sweep.reduction=2", "run.seed=1"]
    highest = ["sweep.metric=value/sample_size", "sweep.mode=max"]  # which is highest where trials diverge
    config = configured(tmp_path, f"sweep.space.{LR}=choice(3e-5,1)", *words, *highest)
    results = run(config)
    diverged = [one for one in results if one["point"][LR] == 1]
    assert 0 < len(diverged) < 4 and not errors(results)
    assert all(one["samples"] == 16 and one["value"] == math.inf for one in diverged)
    assert 32 in {one["samples"] for one in results if one["point"][LR] < 1}
    assert log(config, "ten_step", diverged[0]["name"])[-1]["event"].startswith(
        "diverged: 100% of the samples drawn at 8"
    )
    assert all(row.state == "diverged" for row in sweep_data(config, run_root(config), diverged).trials)


def test_a_one_step_generator_that_diverges_is_told_too(tmp_path):
    config = configured(tmp_path, "run.stages=[one_step]", "one_step.generator.lr=1")
    result = run_job(payload(config, run_root(config), "one_step", "one_step"), LocalRuntime("cpu"))
    assert (result["note"], result["samples"], result["figures"]) == ("diverged", 8, {})
    assert read_result(job_folder(run_root(config), "one_step", "one_step")) == result
    statuses = Statuses()
    for record in log(config, "one_step", "one_step"):
        statuses.take(record)
    assert statuses["one_step"].finished and statuses["one_step"].state_in_short == "diverged"


def test_a_training_that_may_roll_back_does_so_before_it_has_diverged(tmp_path):
    saving = ("ten_step.training.checkpoint_every=8", "ten_step.training.rollback=true")
    config = configured(tmp_path, f"{LR}=1", *saving)
    result = run_job(payload(config, run_root(config), "ten_step", "m1"), LocalRuntime("cpu"))
    told = [one["event"] for one in log(config, "ten_step", "m1") if "event" in one]
    assert result["note"] == "diverged" and told[0].startswith(
        "rolled back, at half the learning rate: 100% of the samples"
    )


@pytest.mark.slow
def test_a_run_whose_only_sampler_diverges_says_so_and_ends_with_its_report(tmp_path):
    words = ["run.stages=[ten_step,one_step]", "sweep.noise_magnitudes=[1]", f"{LR}=1"]
    config, said = configured(tmp_path, *words), Console(record=True, width=200)
    page = pipeline.run(config, [], said)
    lines = said.export_text()
    assert "ten_step m1: diverged: 100% of the samples drawn at 8 samples seen" in lines
    assert "one-step generator: left out" in lines
    assert "<td class='missing'>diverged</td>" in page.read_text()
