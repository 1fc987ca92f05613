"""python -m pytest tests/unit/test_search.py

A sweep over a space, run for real on tiny density ratios: stopped anywhere and started again it ends the same.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nnce_dist.config.load import load
from nnce_dist.metrics.jsonl import training_records
from nnce_dist.stages import search
from nnce_dist.stages.folder import job_folder, run_root
from nnce_dist.stages.launch import LocalLauncher
from nnce_dist.sweep.history import History
from nnce_dist.training.stopping import Stopped

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
SPACE = ["objective.noise_magnitude=loguniform(1,1e4)", "density_ratio.optimiser.lr=loguniform(1e-3,1)"]
STRATEGIES = {
    "asha": ["sweep.trials=6", "sweep.interval=32", "sweep.reduction=2"],
    "pbt": ["sweep.trials=4", "sweep.interval=48"],
    "tpe": ["sweep.trials=5", "sweep.batch=2"],
}


def configuration(folder: Path, strategy: str, *words: str):
    space = [f"sweep.space.{one}" for one in SPACE]
    few = ["sweep.per_process=1", "sweep.seeds=[]", "density_ratio.training.log_every=16"]
    settings = [f"run.dir={folder}", f"sweep.strategy={strategy}", *few, *space, *STRATEGIES.get(strategy, []), *words]
    return load(settings, PRESETS, "density-ratio-smoke")


class Launcher(LocalLauncher):
    """Runs jobs here; ends the run before the job that comes after `jobs` ones, or after `jobs` and half a one."""

    def __init__(self, config, jobs: float = 1e9):
        super().__init__(config, 0, None)
        self._left = jobs

    def _run(self, payload):
        self._left -= 1
        if self._left < -0.9:
            raise Stopped(15, "the start of a job")
        if self._left < 0:
            self._runtime.stop_signal = lambda: 15
        return super()._run(payload)


def run(config, jobs: float = 1e9) -> list[dict]:
    root = run_root(config)
    root.mkdir(parents=True, exist_ok=True)
    return search.run(config, root, Launcher(config, jobs), None, lambda line: None)


def decisions(config) -> dict:
    return dict(History(run_root(config) / search.HISTORY))


def folder(config, trial: int) -> Path:
    return job_folder(run_root(config), "density_ratio", search.name_of(trial))


@pytest.mark.parametrize("strategy", ["asha", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pbt", "tpe"))])
def test_stopped_anywhere_and_started_again_it_ends_as_if_nothing_had_happened(strategy, tmp_path):
    pytest.importorskip("optuna") if strategy == "tpe" else None
    whole, parts = (configuration(tmp_path / name, strategy) for name in ("whole", "parts"))
    expected = run(whole)
    for jobs in (0.5, 1, 1.5):  # between two jobs, and in the middle of one
        with pytest.raises(Stopped):
            run(parts, jobs)
    results = run(parts)
    apart = {"seconds"}
    assert [{k: v for k, v in one.items() if k not in apart} for one in results] == [
        {k: v for k, v in one.items() if k not in apart} for one in expected
    ]
    assert decisions(parts) == decisions(whole)
    for one in expected:
        if "figures" in one:
            mine, theirs = (
                load_file(folder(config, one["trial"]) / "weights.safetensors") for config in (whole, parts)
            )
            assert all(mine[name].equal(theirs[name]) for name in mine)


def test_halving_trains_few_to_the_end_and_tells_who_was_stopped(tmp_path):
    config = configuration(tmp_path, "asha")
    results = run(config)
    assert search.levels(config) == [32, 64, 128] and [one["trial"] for one in results] == list(range(6))
    ends = [one["samples"] for one in results]
    assert ends.count(32) >= 2 and 1 <= ends.count(128) <= 2
    for one in results:
        records = training_records(folder(config, one["trial"]))
        assert records[-1]["samples_seen"] == one["samples"]
        assert one.get("stopped", False) == (one["samples"] < 128) != ("figures" in one)
        assert one["value"] == decisions(config)[one["trial"], one["samples"]].value


def test_the_copies_of_a_population_begin_with_the_state_of_their_source(tmp_path):
    config = configuration(tmp_path, "pbt")
    run(config)
    copied = [one for one in decisions(config).values() if one.source is not None]
    assert len(copied) == 2  # one after each generation
    last = max(copied, key=lambda one: one.samples)
    marker = json.loads((folder(config, last.trial) / search.ADOPTED).read_text())
    assert marker == {"source": last.source, "samples": last.samples - 32}
    assert last.point != decisions(config)[last.source, last.samples - 32].point


def test_a_trial_that_fails_disturbs_no_other_and_stays_failed(tmp_path):
    config = configuration(tmp_path, "asha", "sweep.space.density_ratio.optimiser.lr=choice(0.01,1e38)")
    results = run(config)
    failed = [one for one in results if "error" in one]
    assert 0 < len(failed) < 6 and all("overflow" in one["error"] and one["value"] is None for one in failed)
    assert all(one["point"]["density_ratio.optimiser.lr"] == 1e38 for one in failed)
    assert any("figures" in one for one in results)
    assert run(config) == results


def test_trials_are_judged_by_a_figure_of_their_log(tmp_path):
    config = configuration(tmp_path, "random", "sweep.trials=3", "sweep.metric=ratio/loss")
    for one in run(config):
        assert one["value"] == training_records(folder(config, one["trial"]))[-1]["ratio/loss"]
        assert one["value"] != one["selection"]


def test_a_metric_that_is_not_recorded_is_named_with_those_that_are(tmp_path):
    results = run(configuration(tmp_path, "asha", "sweep.metric=ratio/los"))
    assert all("sweep.metric=ratio/los is not recorded; use selection, or one of: " in one["error"] for one in results)


def test_grids_of_seeds_are_trained_in_packs_as_they_are_alone(tmp_path):
    words = ["sweep.space.objective.noise_magnitude=grid(1,100)", "sweep.space.density_ratio.optimiser.lr=grid(0.05)"]
    alone, packed = (
        run(configuration(tmp_path / name, "grid", *words, "sweep.seeds=[0,1]", f"sweep.per_process={size}"))
        for name, size in (("alone", 1), ("packed", 4))
    )
    assert [one["point"]["run.seed"] for one in packed] == [0, 1, 0, 1]
    assert [one["value"] for one in packed] == pytest.approx([one["value"] for one in alone], rel=1e-3)
