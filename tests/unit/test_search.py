"""python -m pytest tests/unit/test_search.py

A sweep over a space, run for real on tiny density ratios: stopped anywhere and started again it ends the same.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nnce_dist.config.load import load
from nnce_dist.metrics.jsonl import read, training_records
from nnce_dist.models.weights import save_weights
from nnce_dist.stages import build, search, trials
from nnce_dist.stages.folder import errors, job_folder, run_root
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.launch import LocalLauncher, failed
from nnce_dist.stages.lease import lease
from nnce_dist.stages.mirror import RunMirror
from nnce_dist.stages.owner import Owner
from nnce_dist.stages.sweep_results import sweep_data
from nnce_dist.sweep.history import History
from nnce_dist.training.checkpoint import FencedError
from nnce_dist.training.runtime import LocalRuntime
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
            asked = iter([None])  # at the job's start
            self._runtime.stop_signal = lambda: next(asked, 15)
        return super()._run(payload)


def run(config, jobs: float = 1e9) -> list[dict]:
    root = run_root(config)
    root.mkdir(parents=True, exist_ok=True)
    return search.run(config, root, Launcher(config, jobs), None, lambda line: None)


class Unlucky(Launcher):
    """Runs jobs here, but for segments (trial, samples) that an outage takes away."""

    def __init__(self, config, *lost: tuple[int, int]):
        super().__init__(config)
        self._lost, self.trained = lost, []

    def _run(self, payload):
        segment = int(payload["name"].removeprefix("trial-")), payload["until"]
        self.trained.append(segment)
        return failed(payload, "the disk is full", "") if segment in self._lost else super()._run(payload)


def start(config, *lost: tuple[int, int]) -> tuple[list[dict], list[tuple[int, int]]]:
    """One start of a sweep in which segments are lost: its results, without their times, and what it trained."""
    run_root(config).mkdir(parents=True, exist_ok=True)
    jobs = Unlucky(config, *lost)
    results = search.run(config, run_root(config), jobs, None, lambda line: None)
    return [{key: value for key, value in one.items() if key != "seconds"} for one in results], jobs.trained


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


def test_a_trial_that_fails_disturbs_no_other_and_fails_again(tmp_path):
    config = configuration(tmp_path, "asha", "sweep.space.density_ratio.optimiser.lr=choice(0.01,1e38)")
    results = run(config)
    failed = [one for one in results if "error" in one]
    assert 0 < len(failed) < 6 and all("overflow" in one["error"] and one["value"] is None for one in failed)
    assert all(one["point"]["density_ratio.optimiser.lr"] == 1e38 for one in failed)
    assert any("figures" in one for one in results)
    assert run(config) == results


def test_halving_tries_again_what_an_outage_took_and_ends_as_if_nothing_had_happened(tmp_path):
    whole, disturbed = (configuration(tmp_path / name, "asha") for name in ("whole", "disturbed"))
    expected, _ = start(whole)
    winner = next(one["trial"] for one in expected if "figures" in one)
    results, _ = start(disturbed, (winner, 32))
    assert errors(results) == {f"density_ratio {search.name_of(winner)}": "the disk is full"}
    assert {one["trial"] for one in results if one["samples"] > 32} != {
        one["trial"] for one in expected if one["samples"] > 32
    }  # others went on in its place
    results, trained = start(disturbed)
    assert results == expected and trained[0] == (winner, 32)
    assert start(disturbed) == (expected, [])


def test_the_report_has_all_outcomes_of_a_search_for_the_highest_figure(tmp_path):
    highest = ("sweep.metric=ratio/log_ratio_data", "sweep.mode=max")
    config = configuration(tmp_path, "asha", *highest)
    results, _ = start(config)
    shown = sweep_data(config, run_root(config), results).outcomes
    assert {(one.trial, one.samples): one for one in shown} == decisions(config)


def test_a_failed_member_of_a_population_is_replaced_and_named(tmp_path):
    config = configuration(tmp_path, "pbt")
    results, _ = start(config, (2, 48))
    assert [one["trial"] for one in results if "figures" in one] == [0, 1, 2, 3]
    assert decisions(config)[2, 96].source is not None
    (line,) = errors(results).items()
    assert line == (
        "density_ratio trial-002 at 48 samples",
        "the disk is full; it went on as a copy of another trial",
    )
    assert start(config) == (results, [])  # others were decided on it


@pytest.mark.parametrize("lost", [[(1, 128)], [(0, 96), (1, 96), (2, 96), (3, 96)]])
def test_members_of_the_last_generation_that_failed_are_tried_again(tmp_path, lost):
    whole, disturbed = (configuration(tmp_path / name, "pbt") for name in ("whole", "disturbed"))
    expected, _ = start(whole)
    results, _ = start(disturbed, *lost)
    assert len(errors(results)) == len(lost)
    results, trained = start(disturbed)
    assert results == expected and set(trained) >= set(lost) and decisions(disturbed) == decisions(whole)


def test_suggested_trials_that_failed_are_tried_again_with_their_settings(tmp_path):
    pytest.importorskip("optuna")
    config = configuration(tmp_path, "tpe")
    before, _ = start(config, (1, 128), (4, 128))
    results, trained = start(config)
    assert trained == [(1, 128), (4, 128)] and not errors(results)
    assert [one["point"] for one in results] == [one["point"] for one in before]


def test_a_population_has_the_network_and_the_data_of_the_state_that_it_goes_on_with(tmp_path):
    words = ["density_ratio.network=mlp", "sweep.space.density_ratio.width=grid(4,8)", "sweep.seeds=[0,1]"]
    config = configuration(tmp_path, "pbt", *words, "sweep.trials=1")
    results = run(config)
    assert not errors(results) and len(results) == 4
    crossed = [one for one in decisions(config).values() if one.source is not None]
    assert any(
        one.point["density_ratio.width"] != decisions(config)[one.trial, 48].point["density_ratio.width"]
        for one in crossed
    )


# ---- the copy in a store ---------------------------------------------------------------------------------------------


class Watched(Launcher):
    """Runs jobs here; tells before each how many there were."""

    def __init__(self, config, before: Callable[[int], None]):
        super().__init__(config)
        self._before, self._count = before, 0

    def _run(self, payload):
        self._before(self._count)
        self._count += 1
        return super()._run(payload)


def copied(folder: Path, before: Callable[[int, Path], None], said: list[str]) -> tuple[Path, Path]:
    """The histories of a sweep and of its copy; `before` gets every job's number and the folder of the copy."""
    config = configuration(folder, "asha", f"run.mirror={folder}/copies")
    root, mirror = run_root(config), RunMirror(config)
    there = folder / "copies" / root.name
    with lease(root, mirror, said.append):
        jobs = Watched(config, lambda number: before(number, there))
        search.run(config, root, jobs, mirror, said.append)
        if not there.is_dir():
            there.unlink()
        mirror.complete()
    return root / search.HISTORY, there / search.HISTORY


@pytest.mark.parametrize("back", [4, math.inf], ids=["for a while", "to the end"])
def test_a_sweep_goes_on_while_the_store_is_away_and_its_copy_is_made_up_for(tmp_path, back):
    said, late = [], []

    def outage(number: int, there: Path) -> None:
        if number == 2:
            there.rename(there.with_name("away"))
            there.write_text("no folder")
        elif number == back:
            there.unlink()
            there.with_name("away").rename(there)
        elif number == back + 1:
            late.append((there / search.HISTORY).read_bytes().count(b"\n"))

    here, copy = copied(tmp_path, outage, said)
    assert here.read_bytes() == copy.read_bytes() and late in ([], [5])
    (line,) = (line for line in said if "not copied yet" in line)
    assert line.startswith("sweep.jsonl not copied yet: ") and "\n" not in line


def test_a_sweep_that_another_machine_has_taken_over_does_not_write_the_copy(tmp_path):
    def taken_over(number: int, there: Path) -> None:
        if number == 2:
            other = dataclasses.replace(Owner.of_this_process(7), machine="elsewhere", host="far-away")
            (there / "lease" / "000007.json").write_bytes(other.encode())
            (there / search.HISTORY).write_text("the other's")

    with pytest.raises(FencedError, match="was taken over by process .* on far-away"):
        copied(tmp_path, taken_over, [])
    (copy,) = (tmp_path / "copies").glob(f"*/{search.HISTORY}")
    assert copy.read_text() == "the other's"
    with pytest.raises(FencedError):
        RunMirror(configuration(tmp_path, "asha", f"run.mirror={tmp_path}/copies")).complete()
    assert copy.read_text() == "the other's"


# ---- what trials are judged by ---------------------------------------------------------------------------------------


def test_trials_are_judged_by_a_figure_of_their_log(tmp_path):
    config = configuration(tmp_path, "random", "sweep.trials=3", "sweep.metric=ratio/loss")
    for one in run(config):
        assert one["value"] == training_records(folder(config, one["trial"]))[-1]["ratio/loss"]
        assert one["value"] != one["selection"]


@pytest.mark.parametrize("metric", ["selection", "ratio/loss"])
def test_only_a_selection_figure_is_told_as_one_at_a_rung(tmp_path, metric):
    config = configuration(tmp_path, "asha", "sweep.trials=2", f"sweep.metric={metric}")
    run(config)
    told = [one for trial in (0, 1) for one in read(folder(config, trial) / "metrics.jsonl")]
    judged = [one for one in told if one.get("event") == "judged"]
    assert judged and all(("evaluation/selection" in one) is (metric == "selection") for one in judged)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "size"), [("teacher", 1), ("teacher", 2), ("one_step", 1)])
def test_trials_of_stages_whose_jobs_need_no_selection_figure_have_one(tmp_path, stage, size):
    optimiser = {"teacher": "optimiser", "one_step": "generator"}[stage]
    words = [f"run.dir={tmp_path}", f"run.stages=[{stage}]", f"sweep.space.{stage}.{optimiser}.lr=grid(1e-4,1e-2)"]
    words += [f"data.cache_dir={tmp_path}/cache", f"sweep.per_process={size}", "evaluation.draws=1"]
    if stage == "one_step":
        words.append(f"teacher.weights={tmp_path}/teacher.safetensors")
    config = load(words, PRESETS, "smoke")
    build.seed_networks(config, 1)
    save_weights(build.denoiser(config).state_dict(), tmp_path / "teacher.safetensors")
    results = run(config)
    assert len(results) == 2 and all(one["value"] == one["selection"] > 0 for one in results)


def test_no_time_is_spent_on_a_selection_figure_that_nobody_chooses_by(tmp_path):
    config = load([f"run.dir={tmp_path}", "run.stages=[teacher]"], PRESETS, "smoke")
    job = trials.payload(config, run_root(config), "teacher", "teacher")
    assert "selection" not in run_job(job, LocalRuntime("cpu"))


def test_settings_that_every_seed_finished_with_come_before_those_with_a_lucky_one():
    def result(m: float, seed: int, value: float | None, **more) -> dict:
        point = {"objective.noise_magnitude": m, "run.seed": seed}
        return {"name": f"trial-{m}-{seed}", "point": point, "value": value, **more}

    steady = [result(1, 0, 2.0), result(1, 1, 3.0)]
    lucky = [result(9, 0, 0.1), result(9, 1, None, error="not finite")]
    diverged = [result(99, 0, 0.1), result(99, 1, math.inf, note="diverged")]
    assert trials.best([*lucky, *diverged, *steady]) == steady[0]
    assert trials.best([*lucky, *diverged, *steady], "max") == steady[1]
    assert trials.best([*lucky, result(5, 0, 0.2)]) == lucky[0]
    assert trials.best(lucky[1:] + diverged[1:]) is None


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
