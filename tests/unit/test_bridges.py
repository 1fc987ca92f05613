"""python -m pytest tests/unit/test_bridges.py

A ratio as a sum of bridges, from its settings to its report: each bridge is learned, one bridge is what it was before.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from toys import StopAfter

from nnce_dist.cli import run_pipeline
from nnce_dist.config.load import ConfigError, load
from nnce_dist.config.schema import Config, DensityRatio, Objective
from nnce_dist.models.bridges import BridgesMLP
from nnce_dist.models.log_ratio import LogRatioMLP
from nnce_dist.ratio.objectives import n2ce
from nnce_dist.ratio.telescoping import coefficients, combined, mixed
from nnce_dist.stages import build, preflight, step_time
from nnce_dist.stages import density_ratio_run as run
from nnce_dist.stages.estimate import Estimate
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.packing import packs, run_packed
from nnce_dist.stages.trials import payload
from nnce_dist.tasks.density_ratio import DensityRatioTask
from nnce_dist.tasks.task import Batch
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom
from nnce_dist.training.stopping import Stopped

PIPELINES = Path(__file__).parents[2] / "pipelines"
SWEEP = ["sweep.space.density_ratio.num_bridges=grid(1,2,4)", "sweep.space.objective.noise_magnitude=grid(1,10,100)"]
AUTO = ["objective.noise_magnitude=auto", "sweep.noise_magnitudes=[]", "density_ratio.training.samples=640"]
FAR = [  # the benchmark of mutual information, 6 nats in 16 dimensions
    *("density_ratio.family=correlation", "density_ratio.dim=16", "density_ratio.kl=6", "density_ratio.num_samples=0"),
    *("density_ratio.network=quadratic", "density_ratio.test_samples=2000", "density_ratio.optimiser.lr=0.05"),
    "density_ratio.optimiser.decay_fraction=1",
]


def configured(*overrides: str) -> Config:
    return load(["preset=density-ratio-smoke", *overrides], PIPELINES / "presets", "density-ratio")


def payloads(root: Path, *overrides: str) -> list[dict]:
    return [payload(settings, root, "density_ratio", name) for _, name, settings in run.trials(configured(*overrides))]


class Here:
    """Runs jobs in this process."""

    def __init__(self, runtime=None):
        self._runtime = runtime or LocalRuntime("cpu")

    def run(self, wanted: list[dict]) -> list[dict]:
        return [run_job(one, self._runtime) for one in wanted]


def figure(result: dict, kind: str) -> float:
    return next(values[0] for name, values in result["figures"].items() if name.startswith(f"{kind}@"))


# ---- what is learned -------------------------------------------------------------------------------------------------


def updated(task: DensityRatioTask, x: torch.Tensor):
    (update,) = task.updates(Batch(x, None), SampleRandom.at(1, range(len(x))), 0, lambda mean: mean)
    return update.loss(slice(0, len(x)))


@pytest.mark.parametrize("waymarks", ["combined", "mixed"])
def test_the_loss_is_the_mean_of_n2ce_at_every_bridge(waymarks):
    torch.manual_seed(0)
    network = BridgesMLP(5, 8, 2, num_bridges=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    settings = DensityRatio(num_bridges=4, bridge_power=2.0, waymarks=waymarks)
    x = SampleRandom.at(0, range(6)).normal(2, 5)
    task = DensityRatioTask(network, settings, Objective(noise_magnitude=30.0, ratio_regularisation=0))
    loss, observations = updated(task, x)
    way = mixed(x.double(), 4) if waymarks == "mixed" else combined(x.double(), coefficients(4, 2.0))
    whole = network.double()(way[:, :-1]), network(way[:, 1:])  # every bridge k at x_k, and at x_{k+1}
    alone = [sum(n2ce(data, noise, 30.0)) for data, noise in zip(*(side.unbind(1) for side in whole), strict=True)]
    torch.testing.assert_close(loss.double(), torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)
    for name, side in zip(("log_ratio_data", "log_ratio_noise"), whole, strict=True):
        assert observations[name].shape == (24,)
        torch.testing.assert_close(observations[name].double(), side.flatten(), rtol=1e-4, atol=1e-4)


def test_a_bridge_learns_apart_from_the_others_but_for_the_body_that_they_share():
    network = BridgesMLP(3, 8, 2, num_bridges=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network(torch.randn(5, 3, 3))[:, 1].sum().backward()
    for name, parameter in network.named_parameters():
        moved = parameter.grad.flatten(1).abs().sum(1) > 0 if parameter.dim() > 1 else parameter.grad != 0
        own = name.rpartition(".")[0] == "layers.6" or not name.endswith(("0.weight", "0.bias", "3.weight", "3.bias"))
        assert moved.tolist() == [False, True, False] if own else moved.all(), name


@pytest.mark.parametrize("waymarks", ["combined", "mixed"])
def test_one_bridge_is_to_the_bit_what_a_ratio_is_without(waymarks):
    torch.manual_seed(0)
    network = LogRatioMLP(3, 8, 2)
    objective = Objective(noise_magnitude=30.0, ratio_regularisation=0.0)
    x = SampleRandom.at(0, range(6)).normal(2, 3)
    loss, observations = updated(DensityRatioTask(network, DensityRatio(waymarks=waymarks), objective), x)
    f_data, f_noise = network(x.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
    plain = sum(n2ce(f_data, f_noise, 30.0))
    assert torch.equal(loss, plain) and torch.equal(observations["log_ratio_data"], f_data)
    gradients = [torch.autograd.grad(one.sum(), network.parameters()) for one in (loss, plain)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("kind", ["linear", "quadratic", "mlp"])
def test_one_bridge_has_the_tensors_of_a_ratio_without_and_several_start_at_nothing(kind):
    plain, several = (
        build.log_ratio(configured(f"density_ratio.network={kind}", f"density_ratio.num_bridges={k}"), 3)
        for k in (1, 3)
    )
    shapes = {name: list(tensor.shape) for name, tensor in plain.state_dict().items()}
    if kind == "mlp":
        assert shapes["layers.0.weight"] == [64, 3] and shapes["layers.4.weight"] == [1, 64] and len(shapes) == 6
    else:
        prefix = "" if kind == "linear" else "linear."
        assert shapes[f"{prefix}weight"] == [3] and shapes[f"{prefix}bias"] == []
    assert several(torch.randn(5, 3, 3)).tolist() == [[0.0] * 3] * 5


@pytest.mark.parametrize(
    "settings",
    [
        ["density_ratio.network=linear", "density_ratio.num_bridges=2", "objective.noise_magnitude=10"],
        ["density_ratio.network=linear", "density_ratio.num_bridges=2", "density_ratio.waymarks=mixed"],
        ["density_ratio.num_bridges=3", "objective.kind=reweighted_bce", "objective.noise_magnitude=4"],
    ],
    ids=["combined", "mixed", "reweighted"],
)
def test_a_known_ratio_is_the_sum_of_its_bridges(tmp_path, settings):
    length = ["density_ratio.training.samples=40960", "density_ratio.training.batch=256", "density_ratio.num_samples=0"]
    settle = ["density_ratio.test_samples=2000", "density_ratio.optimiser.decay_fraction=1", "sweep.seeds=[]"]
    config = configured(*length, *settle, *settings)
    learned = run_job(payload(config, tmp_path, "density_ratio", "trial"), LocalRuntime("cpu"))
    assert figure(learned, "log_ratio_error_data") < 0.15 and figure(learned, "kl_error") < 0.1  # nats, of 1


@pytest.mark.slow
def test_far_apart_several_bridges_are_nearer_the_truth_than_one_for_the_same_evaluations(tmp_path):
    errors = {}
    for num_bridges in (1, 4):  # 300 steps, each at 256 vectors of data and as many of noise
        batch = 256 // num_bridges
        length = [f"density_ratio.training.batch={batch}", f"density_ratio.training.samples={300 * batch}"]
        some = ["sweep.noise_magnitudes=[1]", "sweep.seeds=[0,1,2]", f"density_ratio.num_bridges={num_bridges}"]
        results = run_packed(Here(), payloads(tmp_path / str(num_bridges), *FAR, *length, *some), 8)
        errors[num_bridges] = [figure(result, "log_ratio_error_data") for result in results]
    assert max(errors[4]) < 0.7 * min(errors[1])


@pytest.mark.parametrize("num_bridges", [1, 3])
def test_an_automatic_m_takes_each_bridge_for_its_share_of_the_network_and_all_pairs_for_its_evidence(num_bridges):
    settings = configured(f"density_ratio.num_bridges={num_bridges}", *AUTO)
    network = build.log_ratio(settings, 5)
    task = DensityRatioTask(network, settings.density_ratio, settings.objective, num_samples=100)
    assert task.magnitude.known.optimism == pytest.approx(6 / 100)  # five weights and a bias
    assert task.magnitude.known.log_ceiling == pytest.approx(math.log(10))


# ---- packed, stopped and started again -------------------------------------------------------------------------------


def test_trials_of_as_many_bridges_share_a_process_and_others_do_not(tmp_path):
    two, four = (payloads(tmp_path, f"density_ratio.num_bridges={k}") for k in (2, 4))
    found = packs([*two, *four], 8)
    assert [[one["config"]["density_ratio"]["num_bridges"] for one in pack["trials"]] for pack in found] == [
        *([2] * 4, [4] * 4)
    ]


@pytest.mark.parametrize("size", [1, 8], ids=["alone", "packed"])
def test_an_interrupted_training_of_bridges_goes_on_to_the_bit(tmp_path, size):
    words = ["density_ratio.num_bridges=3", "density_ratio.network=mlp", *AUTO]
    parts, whole = payloads(tmp_path / "parts", *words), payloads(tmp_path / "whole", *words)
    with pytest.raises(Stopped):
        run_packed(Here(StopAfter(5)), parts, size)
    results, expected = (run_packed(Here(), wanted, size) for wanted in (parts, whole))
    for one, other in zip(results, expected, strict=True):
        assert one["figures"] == other["figures"] and one["noise_magnitude"] == other["noise_magnitude"]
        mine, theirs = (
            load_file(tmp_path / name / "density_ratio" / one["name"] / "weights.safetensors")
            for name in ("parts", "whole")
        )
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


# ---- settings, plan, report ------------------------------------------------------------------------------------------


def test_more_bridges_than_coordinates_to_exchange_are_refused_in_one_line(tmp_path):
    line = "density_ratio.num_bridges=3: waymarks=mixed exchanges coordinates, of which there are 2; use 2"
    with pytest.raises(ConfigError, match=line):
        configured("density_ratio.num_bridges=3", "density_ratio.waymarks=mixed")
    np.savez(tmp_path / "pairs.npz", p=np.random.rand(40, 2), q=np.random.rand(40, 2))
    given = [f"density_ratio.vectors={tmp_path}/pairs.npz", "density_ratio.waymarks=mixed", f"run.dir={tmp_path}"]
    preflight.check(configured(*given, "density_ratio.num_bridges=2"))
    for swept in ("density_ratio.num_bridges=3", "sweep.space.density_ratio.num_bridges=grid(1,2,3)"):
        with pytest.raises(ValueError, match=f"^{line}[^\n]*$"):
            preflight.check(configured(*given, swept))


def test_a_plan_of_swept_bridges_reckons_with_the_largest_network(tmp_path, monkeypatch):
    monkeypatch.setattr(step_time, "BOUND", 0.1)
    size = ["density_ratio.network=quadratic", "density_ratio.dim=64", f"run.dir={tmp_path}"]
    swept = Estimate.of(configured(*size, *SWEEP))
    four = Estimate.of(configured(*size, "density_ratio.num_bridges=4"))
    assert len(swept.kinds) == 3 and swept.checkpoint_bytes == four.checkpoint_bytes > 3 * 4 * 64 * 64 * 4
    assert swept.step.seconds > 0 and four.step.seconds > 0
    rows = dict(run.plan(configured(*size, "density_ratio.num_bridges=4")))
    assert rows["network"] == "quadratic, 4 bridges, combined waymarks"


@pytest.mark.slow
def test_a_sweep_over_bridges_and_m_runs_and_its_report_shows_both(tmp_path, monkeypatch):
    words = ["preset=density-ratio-smoke", "workers.runtime=local", f"run.dir={tmp_path}", "sweep.seeds=[0]", *SWEEP]
    monkeypatch.setattr(sys, "argv", ["density_ratio.py", *words])
    assert run_pipeline(str(PIPELINES / "density_ratio.py"), "density-ratio") == 0
    root = tmp_path / "density-ratio-smoke"
    table = pandas.read_csv(root / "sweep.csv")
    assert sorted(table["density_ratio.num_bridges"]) == [1] * 3 + [2] * 3 + [4] * 3
    assert (table["state"] == "finished").all() and table["selection"].is_unique
    best = table.loc[table["selection"].idxmin()]
    assert f"num_bridges: {best['density_ratio.num_bridges']}\n" in (root / "best.yaml").read_text()
    pictures = {path.stem for path in (root / "figures").iterdir()}
    assert {"effects", "selection_by_num_bridges", "selection_by_noise_magnitude"} <= pictures
