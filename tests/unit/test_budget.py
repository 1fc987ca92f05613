"""python -m pytest tests/unit/test_budget.py

`sweep.checkpoint_bytes`: the checkpoints of all trials together stay inside it, at every moment.
"""

import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnce_dist.config.load import load
from nnce_dist.metrics.jsonl import read
from nnce_dist.stages import preflight, search
from nnce_dist.stages.budget import Shares, shares, within
from nnce_dist.stages.estimate import Estimate
from nnce_dist.stages.folder import run_root
from nnce_dist.stages.launch import LocalLauncher, failed
from nnce_dist.stages.sweep_plan import budget as budget_rows
from nnce_dist.training import checkpoint
from nnce_dist.training.stopping import Stopped

REPOSITORY = Path(__file__).parents[2]
M = "sweep.space.objective.noise_magnitude=loguniform(1,1e4)"
SAVING = [
    "density_ratio.training.samples=64",
    "density_ratio.training.checkpoint_every=16",
    "density_ratio.training.keep_last=3",
]


def words(folder: Path, strategy: str, *more: str) -> list[str]:
    sweep = [f"sweep.strategy={strategy}", "sweep.trials=4", "sweep.seeds=[]", "sweep.per_process=1", M]
    network = ["density_ratio.network=mlp", "density_ratio.width=32"]
    return [f"run.dir={folder}", *sweep, *network, *SAVING, *more]


def configured(folder: Path, strategy: str, *more: str):
    return load(words(folder, strategy, *more), REPOSITORY / "pipelines" / "presets", "density-ratio-smoke")


def held(root: Path) -> int:
    """Bytes of all checkpoints below a folder, half-written ones too; what goes meanwhile is not there."""
    total = 0
    for folder, _, files in os.walk(root):
        for name in files if "/checkpoints/" in folder else ():
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def most_held(config, monkeypatch, jobs: LocalLauncher | None = None) -> int:
    """Bytes of the checkpoints of a whole sweep in this process, at the moment when they are most; `jobs` all fail."""
    root, sizes, write = run_root(config), [], checkpoint.write

    def watched(*arguments):
        path = write(*arguments)
        sizes.append(held(root))  # before any older one is removed
        return path

    monkeypatch.setattr(checkpoint, "write", watched)
    root.mkdir(parents=True, exist_ok=True)
    results = search.run(config, root, jobs or LocalLauncher(config, 0, None), None, lambda line: None)
    assert all(("error" in result) is bool(jobs) for result in results)
    return max(sizes)


@pytest.mark.parametrize("strategy", ["random", "asha", pytest.param("pbt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("slots", [6, pytest.param(14, marks=pytest.mark.slow)])
def test_checkpoints_stay_inside_the_budget_at_every_moment(strategy, slots, tmp_path, monkeypatch):
    one = Estimate.of(configured(tmp_path, strategy)).checkpoint_bytes
    budget = one * slots // (3 if strategy == "random" else 1)
    config = configured(tmp_path, strategy, f"sweep.checkpoint_bytes={budget}")
    assert 0 < most_held(within(config), monkeypatch) <= budget
    ended = list(tmp_path.rglob("result.json"))
    assert ended and not any((path.parent / "checkpoints").exists() for path in ended)
    assert all((path.parent / "weights.safetensors").exists() for path in ended)


@pytest.mark.parametrize("strategy", ["asha", "tpe", pytest.param("pbt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("slots", [8, pytest.param(12, marks=pytest.mark.slow)])
def test_packs_of_sweeps_that_decide_stay_inside_the_budget(strategy, slots, tmp_path, monkeypatch):
    pytest.importorskip("optuna") if strategy == "tpe" else None
    packed = ("sweep.per_process=2", "sweep.interval=16", "sweep.reduction=2")
    one = Estimate.of(configured(tmp_path, strategy)).checkpoint_bytes
    budget = one * (slots - 4 if strategy == "tpe" else slots)
    config = within(configured(tmp_path, strategy, *packed, f"sweep.checkpoint_bytes={budget}"))
    assert 0 < most_held(config, monkeypatch) <= budget
    ended = list(tmp_path.rglob("result.json"))
    assert ended and not any((path.parent / "checkpoints").exists() for path in ended)
    assert not list(tmp_path.glob("*/packs/*"))


def test_a_budget_for_packs_has_room_for_theirs_beside_those_of_their_trials(tmp_path):
    packed = Paper(configured(tmp_path, "asha", "sweep.checkpoint_bytes=9000"), 50, together=10, stacks=True)
    assert shares(packed) == Shares(kept=1, jobs=2)  # 50 + 2 times 20 of 90
    packed.config.sweep.checkpoint_bytes = 6900
    with pytest.raises(ValueError, match=r"50 trials need at least 7000 \(70 checkpoints"):
        shares(packed)
    turns = Paper(configured(tmp_path, "asha", "sweep.checkpoint_bytes=7000"), 50, together=10)
    assert shares(turns) == Shares(kept=1, jobs=2)


def test_without_a_budget_the_same_sweep_takes_more(tmp_path, monkeypatch):
    config = configured(tmp_path, "random")
    assert within(config) == config
    assert most_held(config, monkeypatch) > 6 * Estimate.of(config).checkpoint_bytes


class Outage(LocalLauncher):
    """Runs jobs here, but takes the device away in the last step of trial-001, which is asked `alive` times before."""

    def __init__(self, config, alive: int):
        super().__init__(config, 0, None)
        self._alive = alive

    def _run(self, payload):
        self._left = self._alive if payload.get("until", 64) == 64 else math.inf
        self._runtime.stop_signal = self._lost if payload["name"] == "trial-001" else lambda: None
        return super()._run(payload)

    def _lost(self):
        """Asked before the job's start and after each step."""
        self._left -= 1
        if self._left < 0:
            raise OSError("the device is gone")


def stories(root: Path) -> list[str]:
    """What is told of the starts of trial-001."""
    return [one["event"] for one in read(root / "density_ratio/trial-001/metrics.jsonl") if "event" in one]


@pytest.mark.parametrize(
    ("strategy", "slots", "interval", "alive", "went_on"),
    [
        ("random", 2, 0, 4, False),
        ("random", 3, 0, 4, True),
        ("random", 16, 0, 4, True),
        ("tpe", 3, 0, 4, True),
        ("asha", 6, 63, 4, True),
        ("pbt", 6, 48, 1, True),
    ],
)
def test_a_trial_that_failed_goes_on_from_its_last_checkpoint_where_the_budget_has_room(
    strategy, slots, interval, alive, went_on, tmp_path, monkeypatch
):
    pytest.importorskip("optuna") if strategy == "tpe" else None
    one = Estimate.of(configured(tmp_path, strategy)).checkpoint_bytes
    budget = (f"sweep.interval={interval}", f"sweep.checkpoint_bytes={one * slots}")
    config = within(configured(tmp_path, strategy, *budget))
    root = run_root(config)
    root.mkdir(parents=True)
    results = search.run(config, root, Outage(config, alive), None, lambda line: None)
    assert [one["name"] for one in results if "error" in one] == ["trial-001"] and held(root) <= one * slots
    before = stories(root)
    assert 0 < most_held(config, monkeypatch) <= one * slots
    told = stories(root)[len(before) :]
    assert any(story.startswith("continuing at 48 of 64 samples") for story in told) is went_on


def test_packs_stay_inside_the_budget_too(tmp_path, monkeypatch):
    packed = ("sweep.per_process=2", "density_ratio.training.keep_last=2")
    one = Estimate.of(configured(tmp_path, "random")).checkpoint_bytes
    config = configured(tmp_path, "random", *packed, f"sweep.checkpoint_bytes={4 * one}")
    assert 0 < most_held(within(config), monkeypatch) <= 4 * one
    assert not held(tmp_path)


class Losing(LocalLauncher):
    """Runs packs in turns here; after three steps of each trial, all saved, their process is taken for lost."""

    def _run(self, payload):
        left = iter([None] * 5)  # asked before the start and after each step
        self._runtime.stop_signal = lambda: next(left, 15)
        with suppress(Stopped):
            return super()._run(payload)
        return failed(payload, "its process died", "")


@pytest.mark.parametrize(("slots", "kept"), [(4, 0), (6, 3)])
def test_packs_whose_processes_are_lost_stay_inside_the_budget_and_go_on_where_it_has_room(
    slots, kept, tmp_path, monkeypatch
):
    turns = ("sweep.per_process=2", "density_ratio.training.max_skipped_steps=1", "density_ratio.training.keep_last=1")
    one = Estimate.of(configured(tmp_path, "random")).checkpoint_bytes
    config = within(configured(tmp_path, "random", *turns, f"sweep.checkpoint_bytes={slots * one}"))
    assert 2 * one < most_held(config, monkeypatch, Losing(config, 0, None)) <= slots * one
    assert len(list(tmp_path.rglob("manifest.json"))) == kept
    assert most_held(config, monkeypatch) <= slots * one and not held(tmp_path)
    told = [one.get("event", "") for path in tmp_path.rglob("trial-*/metrics.jsonl") for one in read(path)]
    assert sum(event.startswith("continuing at") for event in told) == kept
    assert not list(tmp_path.rglob("trial-*/error.txt"))


@dataclass
class Paper:
    """An estimate with round numbers."""

    config: object
    trials: int
    checkpoint_bytes: int = 100
    together: int = 1
    stacks: bool = False

    @property
    def training(self):
        return self.config.density_ratio.training


@pytest.mark.parametrize(
    ("strategy", "trials", "budget", "expected"),
    [
        ("random", 50, 20_000, Shares(kept=3, jobs=50)),  # all that each wants, for all at a time
        ("random", 50, 800, Shares(kept=1, jobs=4)),
        ("random", 50, 200, Shares(kept=1, jobs=1)),
        ("asha", 50, 20_000, Shares(kept=3, jobs=50)),
        ("asha", 50, 15_000, Shares(kept=2, jobs=50)),
        ("pbt", 50, 5_400, Shares(kept=1, jobs=4)),
        ("tpe", 50, 800, Shares(kept=1, jobs=4)),
        ("asha", 50, 5_000, None),  # each keeps one, and none could write
        ("random", 50, 199, None),
    ],
)
def test_a_small_budget_takes_older_checkpoints_first_and_then_jobs_at_a_time(
    strategy, trials, budget, expected, tmp_path
):
    estimate = Paper(configured(tmp_path, strategy, f"sweep.checkpoint_bytes={budget}"), trials)
    if expected:
        assert shares(estimate) == expected
        assert (
            f"{expected.kept} of each trial, and {expected.jobs} job(s)" in dict(budget_rows(estimate))["sweep budget"]
        )
    else:
        with pytest.raises(ValueError, match=r"50 trials need at least (5100 \(51|200 \(2) checkpoints of 100 bytes"):
            shares(estimate)


def test_a_budget_that_is_too_small_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="sweep.checkpoint_bytes=1000: 4 trials need at least"):
        preflight.check(configured(tmp_path, "asha", "sweep.checkpoint_bytes=1000"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.ray
def test_trials_of_several_processes_stay_inside_the_budget(tmp_path):
    budget = 3 * Estimate.of(configured(tmp_path, "random")).checkpoint_bytes
    command = [sys.executable, "pipelines/density_ratio.py", "preset=density-ratio-smoke"]
    long = ["density_ratio.training.samples=1600", f"sweep.checkpoint_bytes={budget}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sizes = []
    with subprocess.Popen([*command, *words(tmp_path, "random", *long)], cwd=REPOSITORY, env=environment) as job:
        while job.poll() is None:
            sizes.append(held(tmp_path))
            time.sleep(0.002)
    assert job.returncode == 0 and 0 < max(sizes) <= budget
    assert len(list(tmp_path.rglob("result.json"))) == 4 and not held(tmp_path)
