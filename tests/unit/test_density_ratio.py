"""python -m pytest tests/unit/test_density_ratio.py

The density-ratio task and its job: the loss of its equation, a ratio that is learned, trials over M and seeds.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnce_dist.config.load import load
from nnce_dist.config.schema import Config, DensityRatio, Objective
from nnce_dist.metrics.jsonl import training_records
from nnce_dist.models.log_ratio import LogRatioMLP
from nnce_dist.stages import density_ratio_run as run
from nnce_dist.stages.folder import job_folder
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.pairs import open_pairs
from nnce_dist.stages.trials import payload
from nnce_dist.tasks.density_ratio import DensityRatioTask
from nnce_dist.tasks.task import Batch
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def configured(*overrides: str) -> Config:
    return load(["preset=density-ratio-smoke", *overrides], PRESETS, "density-ratio")


def result(folder, *overrides: str) -> dict:
    config = configured("sweep.seeds=[]", *overrides)
    return run_job(payload(config, folder, "density_ratio", "trial"), LocalRuntime("cpu"))


def figure(result: dict, kind: str) -> float:
    return next(values[0] for name, values in result["figures"].items() if name.startswith(f"{kind}@"))


@pytest.mark.parametrize("m", [1.0, 30.0, math.inf])
def test_the_update_is_n2ce_of_both_sides_with_its_regulariser(m):
    torch.manual_seed(0)
    network = LogRatioMLP(3, 8, 2)
    objective = Objective(noise_magnitude=m, ratio_regularisation=0.4)
    task = DensityRatioTask(network, DensityRatio(), objective)
    x = SampleRandom.at(0, range(6)).normal(2, 3)
    (update,) = task.updates(Batch(x, None), SampleRandom.at(1, range(6)), 0, lambda mean: mean)
    loss, observations = update.loss(slice(2, 5))
    r_data, r_noise = (network(side).double().exp() for side in x[2:5].unbind(1))
    sides = (1 / r_data + 1 / m).log() + (r_noise if math.isinf(m) else m * (1 + r_noise / m).log())
    torch.testing.assert_close(
        loss.double(), sides + 0.4 * (r_data.log() ** 2 + r_noise.log() ** 2), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(observations["log_ratio_data"].double(), r_data.log(), rtol=1e-5, atol=1e-6)
    assert observations["noise_magnitude"].tolist() == [m] * 3


@pytest.mark.parametrize(
    "settings",
    [
        ["density_ratio.family=shift", "objective.noise_magnitude=10"],
        ["density_ratio.family=correlation", "density_ratio.network=quadratic", "density_ratio.kl=0.3"],
        ["density_ratio.family=shift", "objective.noise_magnitude=2", "objective.kind=reweighted_bce"],
    ],
)
def test_a_known_ratio_is_learned(tmp_path, settings):
    length = ["density_ratio.training.samples=40960", "density_ratio.training.batch=256", "density_ratio.num_samples=0"]
    settle = ["density_ratio.test_samples=2000", "density_ratio.optimiser.decay_fraction=1"]
    learned = result(tmp_path, *length, *settle, *settings)
    assert figure(learned, "log_ratio_error_data") < 0.15  # nats; an untrained f = 0 has 1.7 at KL 1
    assert figure(learned, "kl_error") < 0.1


def test_given_vectors_are_split_alike_for_every_seed_and_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "pairs.npz", p=rng.normal(1, 1, (400, 2)), q=rng.normal(0, 1, (300, 2)))
    words = [f"density_ratio.vectors={tmp_path}/pairs.npz", "density_ratio.training.samples=4096"]
    pairs = [open_pairs(configured(*words, f"run.seed={seed}")) for seed in (0, 1)]
    for side in (0, 1):
        assert torch.equal(pairs[0].test[side], pairs[1].test[side])
        kept = [pairs[0].test[side], pairs[0].selection[side], (pairs[0].train.p, pairs[0].train.q)[side]]
        assert [len(part) for part in kept] == [[40, 40, 320], [30, 30, 240]][side]
        assert len(torch.cat(kept).unique(dim=0)) == sum(map(len, kept))  # nothing is in two parts
    learned = result(tmp_path, *words, "objective.noise_magnitude=1")
    assert figure(learned, "kl_lower_bound") > 0.5  # of 1 nat
    assert not any("error_data" in name for name in learned["figures"])


def test_trials_are_every_magnitude_with_every_seed():
    config = configured("sweep.nwj=true", "sweep.zero_energy=true", "sweep.seeds=[3,5]")
    found = {name: settings for _, name, settings in run.trials(config)}
    assert list(found) == ["m1-seed3", "m1-seed5", "m100-seed3", "m100-seed5", "minf-seed3", "minf-seed5"]
    assert found["minf-seed5"].run.seed == 5 and math.isinf(found["minf-seed5"].objective.noise_magnitude)


def finished(config: Config) -> list[dict]:
    """Results in which M = 100 has the lower mean of the selection figure and M = 1 the lowest value."""
    selection = {"m1-seed0": 1.0, "m1-seed1": 4.0, "m100-seed0": 2.0, "m100-seed1": 2.5}
    figures = {"log_ratio_error_data@64": [0.5], "kl_error@64": [0.1]}
    names = [(trial.noise_magnitude, name) for trial, name, _ in run.trials(config)]
    return [{"name": n, "noise_magnitude": m, "selection": selection[n], "figures": figures} for m, n in names]


def test_the_best_magnitude_is_chosen_by_the_mean_over_seeds(tmp_path):
    config = configured()
    results = finished(config)
    assert run.best_trial(config, results).noise_magnitude == 100
    rows, curves = run.contents(config, tmp_path, results)
    assert [(row.name, row.chosen, len(row.figures["kl_error@64"])) for row in rows] == [
        ("M = 1 (NCE)", False, 2),
        ("M = 100", True, 2),
    ]
    assert curves == []


class Known:
    """Has run all jobs already."""

    def __init__(self, results: list[dict]):
        self._results = {result["name"]: result for result in results}

    def run(self, payloads: list[dict]) -> list[dict]:
        return [self._results[payload["name"]] for payload in payloads]


@pytest.mark.parametrize("lost", [{"error": "not finite"}, {"selection": math.inf, "figures": {}, "note": "diverged"}])
def test_a_magnitude_that_all_seeds_finished_with_comes_before_one_with_a_lucky_seed(tmp_path, lost):
    config, said = configured("sweep.per_process=1"), []
    results = finished(config)
    results[1] |= lost  # M = 1 keeps its seed with the lowest value of all
    run.run_stage(config, tmp_path, Known(results), said.append)
    assert said == ["best noise magnitude: 100 (chosen on vectors that no reported figure sees)"]
    results[3] |= lost
    assert run.best_trial(config, results).noise_magnitude == 1


def test_where_every_magnitude_diverged_none_is_best_and_the_run_says_so(tmp_path):
    config, said = configured("sweep.per_process=1"), []
    results = [one | {"selection": math.inf, "figures": {}, "note": "diverged"} for one in finished(config)]
    run.run_stage(config, tmp_path, Known(results), said.append)
    assert run.best_trial(config, results) is None and said[0].startswith("best noise magnitude: none, because every")
    rows, _ = run.contents(config, tmp_path, results)
    assert [row.chosen for row in rows] == [False, False]


def test_failed_and_diverged_seeds_are_counted(tmp_path):
    config = configured()
    results = finished(config)
    results[0] = {"name": "m1-seed0", "error": "not finite"}
    results[1] |= {"figures": {}, "note": "diverged"}
    results[2] = {"name": "m100-seed0", "error": "not finite"}
    rows, _ = run.contents(config, tmp_path, results)
    assert [(row.name, row.note) for row in rows] == [
        ("M = 1 (NCE), 0 of 2 seeds", "diverged"),
        ("M = 100, 1 of 2 seeds", ""),
    ]


def test_m_chosen_in_training_is_nearer_the_truth_than_m_1_and_is_told(tmp_path):
    far = ["density_ratio.dim=1", "density_ratio.kl=8", "density_ratio.num_samples=0", "density_ratio.network=linear"]
    far += ["density_ratio.training.samples=51200", "density_ratio.training.batch=256"]
    far += ["density_ratio.optimiser.lr=0.05", "objective.ratio_regularisation=0", "sweep.zero_energy=false"]
    none = ["sweep.noise_magnitudes=[]", "sweep.nwj=false", "sweep.held=false"]
    auto = result(tmp_path / "auto", *far, *none, "objective.noise_magnitude=auto")
    nce = result(tmp_path / "nce", *far, *none, "objective.noise_magnitude=1")
    assert figure(auto, "log_ratio_error_data") < 0.8 * figure(nce, "log_ratio_error_data")
    records = training_records(job_folder(tmp_path / "auto", "density_ratio", "trial"))
    path = [record["ratio/noise_magnitude"] for record in records]
    assert max(path) > 10 and "noise_magnitude" not in records[0] and auto["noise_magnitude"] >= 1
    config = configured(*far, *none, "objective.noise_magnitude=auto", "sweep.seeds=[0]", "sweep.per_process=1")
    ((_, name, _),), said = run.trials(config), []
    assert name == "auto-seed0"
    results = run.run_stage(config, tmp_path, Known([auto | {"name": name}]), said.append)
    told = float(f"{auto['noise_magnitude']:.3g}")
    assert said == [f"noise magnitude: auto, {told:g} at the end of training"]
    rows, _ = run.contents(config, tmp_path, results)
    assert rows[0].name.startswith("M = auto") and rows[0].noise_magnitude == told
