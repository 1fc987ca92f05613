"""python -m pytest tests/unit/test_packs.py

Trials that share a process leave the folders and results that they would have left alone.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import StopAfter

from nnce_dist.config.load import load
from nnce_dist.config.schema import Config
from nnce_dist.models.weights import save_weights
from nnce_dist.stages import build
from nnce_dist.stages import density_ratio_run as run
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.launch import failed
from nnce_dist.stages.packing import evenly, packs, run_packed
from nnce_dist.stages.trials import payload, sweep_payloads
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.stopping import Stopped

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
BRIDGES = ["density_ratio.num_bridges=3", "density_ratio.network=mlp", "density_ratio.bridge_power=2"]


def configured(*overrides: str, preset: str = "density-ratio-smoke") -> Config:
    return load([f"preset={preset}", *overrides], PRESETS, "density-ratio")


def payloads(root: Path, *overrides: str) -> list[dict]:
    """Those of the trials of the smoke preset: M 1 and 100, seeds 0 and 1."""
    config = configured(*overrides)
    return [payload(settings, root, "density_ratio", name) for _, name, settings in run.trials(config)]


class Here:
    """Runs jobs in this process, one after the other, and counts them."""

    def __init__(self, runtime=None):
        self.runtime, self.count = runtime or LocalRuntime("cpu"), 0

    def run(self, wanted: list[dict]) -> list[dict]:
        self.count += len(wanted)
        return [run_job(one, self.runtime) for one in wanted]


def together(wanted: list[dict], size: int = 8, runtime=None) -> list[dict]:
    return run_packed(Here(runtime), wanted, size)


def assert_alike(first: Path, second: Path) -> None:
    """Two trials' folders hold the same files, with the same figures and weights to rounding."""
    names = {path.name for path in first.iterdir() if path.name != "checkpoints"}
    assert names == {path.name for path in second.iterdir() if path.name != "checkpoints"}
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        result.pop("seconds")
    assert results[0].keys() == results[1].keys() and results[0]["figures"].keys() == results[1]["figures"].keys()
    for name, values in results[0]["figures"].items():
        assert values == pytest.approx(results[1]["figures"][name], rel=1e-3, abs=1e-5), name
    for name in ("selection", "noise_magnitude"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3), name
    weights = [load_file(folder / "weights.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-5)


# ---- which trials share a process ------------------------------------------------------------------------------------


def test_parts_are_whole_ordered_and_even():
    assert evenly(list(range(7)), 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert evenly(list(range(4)), 64) == [[0, 1, 2, 3]]


def test_only_trials_that_differ_in_numbers_share_a_pack(tmp_path):
    narrow = payloads(tmp_path, "density_ratio.network=mlp", "density_ratio.width=8")
    wide = payloads(tmp_path, "density_ratio.network=mlp", "density_ratio.width=16", "objective.noise_magnitude=3")
    mixed = [one for pair in zip(narrow, wide, strict=True) for one in pair]
    found = packs(mixed, 3)
    assert [len(pack["trials"]) for pack in found] == [2, 2, 2, 2]
    for pack in found:
        assert len({one["config"]["density_ratio"]["width"] for one in pack["trials"]}) == 1
    assert [pack["name"] for pack in found] == [f"density_ratio-{n}-of-4" for n in (1, 2, 3, 4)]
    assert found == packs(mixed, 3)


# ---- stacked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ["density_ratio.network=mlp"],
        ["density_ratio.num_samples=0", "objective.ratio_regularisation=0.1", "objective.hold_regularisation=true"],
        ["density_ratio.kl=12", "objective.noise_magnitude=auto", "sweep.noise_magnitudes=[]"],
        ["density_ratio.num_bridges=2", "density_ratio.waymarks=mixed", "density_ratio.network=quadratic"],
        [*BRIDGES, "density_ratio.kl=12", "objective.noise_magnitude=auto", "sweep.noise_magnitudes=[]"],
        ["density_ratio.training.max_skipped_steps=2"],  # which cannot be stacked: they take turns
    ],
    ids=["mlp", "fresh", "auto", "bridges", "auto bridges", "turns"],
)
def test_each_trial_leaves_what_it_leaves_alone(tmp_path, settings):
    alone, packed = (payloads(tmp_path / name, *settings) for name in ("alone", "packed"))
    results = together(packed)
    assert [result["name"] for result in results] == [one["name"] for one in packed]
    Here().run(alone)
    for one in packed:
        folders = [tmp_path / name / "density_ratio" / one["name"] for name in ("packed", "alone")]
        assert_alike(*folders)


def test_an_interrupted_pack_goes_on_and_a_finished_one_starts_nothing(tmp_path):
    parts, whole = payloads(tmp_path / "parts"), payloads(tmp_path / "whole")
    with pytest.raises(Stopped):
        together(parts, runtime=StopAfter(5))
    results, expected = together(parts), together(whole)
    for one, other in zip(results, expected, strict=True):
        assert one["figures"] == other["figures"]
    here = Here()
    assert run_packed(here, parts, 8) == results and here.count == 0


def test_a_trial_that_is_done_is_not_done_again(tmp_path):
    wanted = payloads(tmp_path)
    (done,) = Here().run(wanted[1:2])
    path = tmp_path / "density_ratio" / wanted[1]["name"] / "result.json"
    before = path.stat().st_mtime_ns
    results = together(wanted)
    assert results[1] == done and path.stat().st_mtime_ns == before
    assert all(result["figures"] for result in results)


def test_a_trial_that_is_not_finite_is_named_and_the_others_are_done(tmp_path):
    wanted = payloads(tmp_path)
    wanted[2]["config"]["density_ratio"]["optimiser"]["lr"] = 1e39
    results = together(wanted)
    assert "'ratio' is not finite at 16 samples" in results[2]["error"]
    assert [result["name"] for result in results if "error" in result] == [wanted[2]["name"]]
    folder = tmp_path / "density_ratio" / wanted[2]["name"]
    assert not (folder / "result.json").exists() and "NonFiniteError" in (folder / "error.txt").read_text()
    again = together(wanted)
    assert [result.get("error") for result in again] == [result.get("error") for result in results]


def test_a_lost_process_is_the_error_of_every_trial_that_it_did_not_finish(tmp_path):
    wanted = payloads(tmp_path)
    Here().run(wanted[:1])

    class Lost:
        def run(self, jobs):
            return [failed(job, "the trial's process died: killed", "") for job in jobs]

    results = run_packed(Lost(), wanted, 8)
    assert [result.get("error") for result in results] == [None, *["the trial's process died: killed"] * 3]
    assert [result["name"] for result in results] == [one["name"] for one in wanted]


# ---- in turns --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_step_trials_take_turns_and_are_to_the_bit_what_they_are_alone(tmp_path):
    words = ["workers.precision=float32", f"data.cache_dir={tmp_path}/cache", "evaluation.draws=1", "sweep.nwj=true"]
    words += [f"teacher.weights={tmp_path}/teacher.safetensors", "sweep.zero_energy=true"]
    config = configured(*words, preset="smoke")
    build.seed_networks(config, 1)
    save_weights(build.denoiser(config).state_dict(), tmp_path / "teacher.safetensors")
    alone, packed = (sweep_payloads(config, tmp_path / name) for name in ("alone", "packed"))
    assert len(packs(packed, 8)) == 1
    for result, expected in zip(together(packed), Here().run(alone), strict=True):
        assert result["figures"] == expected["figures"] and result["selection"] == expected["selection"]
        for file in ("weights.safetensors", "value.safetensors", "samples.png"):
            here, there = (tmp_path / name / "ten_step" / result["name"] / file for name in ("packed", "alone"))
            assert here.read_bytes() == there.read_bytes(), (result["name"], file)
