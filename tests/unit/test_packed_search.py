"""python -m pytest tests/unit/test_packed_search.py

Sweeps that decide as they go on, their trials in packs: they decide and leave what they do with a process for each.
"""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from test_search import PRESETS, Launcher, decisions, folder
from test_search import configuration as of_one
from test_search import run as run_search

from nnce_dist.config.load import load
from nnce_dist.metrics.jsonl import read, training_records
from nnce_dist.models.weights import save_weights
from nnce_dist.stages import build, search
from nnce_dist.stages.folder import errors, run_root
from nnce_dist.stages.launch import failed
from nnce_dist.stages.lease import lease
from nnce_dist.stages.mirror import RunMirror
from nnce_dist.training import checkpoint
from nnce_dist.training.stopping import Stopped

PACKED = "sweep.per_process=4"
MLP = ["density_ratio.network=mlp", "density_ratio.width=8", "density_ratio.training.checkpoint_every=16"]
# Blocks of four trials, whatever shares a process.
SWEEPS = {
    "asha": ["sweep.trials=9", "sweep.reduction=3.5"],
    "pbt": ["sweep.trials=6"],
    "tpe": ["sweep.trials=11", "sweep.batch=3"],
}
STRATEGIES = ["asha", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pbt", "tpe"))]


def configuration(path: Path, strategy: str, *words: str):
    pytest.importorskip("optuna") if strategy == "tpe" else None
    return of_one(path, strategy, *MLP, *SWEEPS[strategy], PACKED, *words)


class Counting(Launcher):
    """Runs jobs here, and keeps the trials of each."""

    def __init__(self, config, jobs: float = 1e9):
        super().__init__(config, jobs)
        self.trained: list[list[str]] = []

    def _run(self, payload):
        self.trained.append([one["name"] for one in payload.get("trials", [payload])])
        return super()._run(payload)


def run(config, jobs: float = 1e9) -> tuple[list[dict], list[list[str]]]:
    """The results of a sweep, and which trials its jobs had; ended as by `test_search.Launcher`."""
    launcher = Counting(config, jobs)
    run_root(config).mkdir(parents=True, exist_ok=True)
    return search.run(config, run_root(config), launcher, None, lambda line: None), launcher.trained


def assert_decided_alike(packed, alone) -> None:
    """The same segments with the same settings and, to rounding, values."""
    ours, theirs = decisions(packed), decisions(alone)
    assert ours.keys() == theirs.keys()
    for key, one in ours.items():
        other = theirs[key]
        assert (one.source, bool(one.error)) == (other.source, bool(other.error)), key
        for setting, chosen in one.point.items():
            named = isinstance(chosen, str)
            assert chosen == (other.point[setting] if named else pytest.approx(other.point[setting], rel=1e-3)), key
        assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-5), key


def assert_left_alike(packed, alone, trial: int) -> None:
    """The newest checkpoint, the log and the files of a trial."""
    folders = [folder(config, trial) for config in (packed, alone)]
    newest = [max(checkpoint.committed(each / "checkpoints")) for each in folders]
    assert newest[0].name == newest[1].name and not any(map(checkpoint.problem, newest))
    assert checkpoint.read_scalars(newest[0]).keys() == checkpoint.read_scalars(newest[1]).keys()
    ours, theirs = map(checkpoint.read_tensors, newest)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    files = [{path.name for path in each.iterdir()} for each in folders]
    assert files[0] == files[1]
    records = [training_records(each) for each in folders]
    assert [one["samples_seen"] for one in records[0]] == [one["samples_seen"] for one in records[1]]
    for one, other in zip(*records, strict=True):
        assert one["ratio/loss"] == pytest.approx(other["ratio/loss"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_packed_sweep_decides_and_leaves_what_one_of_single_trials_does(strategy, tmp_path):
    packed, alone = configuration(tmp_path / "packed", strategy), configuration(tmp_path / "alone", strategy)
    alone.sweep.per_process = 1
    (results, shared), (expected, single) = run(packed), run(alone)
    assert max(map(len, shared)) >= 3 and all(len(one) == 1 for one in single)
    assert sorted(sum(shared, [])) == sorted(sum(single, []))
    assert_decided_alike(packed, alone)
    assert [one.keys() for one in results] == [one.keys() for one in expected]
    for trial in range(len(results)):
        assert_left_alike(packed, alone, trial)
    assert not list((run_root(packed) / "packs").iterdir())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_anywhere_the_same_packs_go_on_and_end_the_same(strategy, tmp_path):
    whole, parts = configuration(tmp_path / "whole", strategy), configuration(tmp_path / "parts", strategy)
    _, undisturbed = run(whole)
    packs = []
    for jobs in (0.5, 1, 1.5):
        launcher = Counting(parts, jobs)
        run_root(parts).mkdir(parents=True, exist_ok=True)
        with pytest.raises(Stopped):
            search.run(parts, run_root(parts), launcher, None, lambda line: None)
        packs += launcher.trained
    packs += run(parts)[1]
    assert {tuple(one) for one in packs} == {tuple(one) for one in undisturbed}
    assert decisions(parts) == decisions(whole)


def test_alone_a_trial_of_a_pack_goes_on_from_its_own_checkpoint(tmp_path):
    packed, alone = configuration(tmp_path / "packed", "asha"), configuration(tmp_path / "alone", "asha")
    alone.sweep.per_process = 1
    expected, _ = run(alone)
    with pytest.raises(Stopped):
        run(packed, 1)
    history = decisions(packed)
    packed.sweep.per_process = 1  # its block of trials would not be 4 then, but for sweep.reduction
    results, shared = run(packed)
    assert history and all(len(one) == 1 for one in shared)
    assert [one.get("value") for one in results] == pytest.approx([one.get("value") for one in expected], rel=1e-3)


# ---- killed at a bad moment ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


def killed_at(monkeypatch, module, name: str, count: int, config) -> None:
    """Ends a run at the n-th call of a function, after it."""
    calls, function = iter(range(1, 10_000)), getattr(module, name)

    def last(*arguments, **named):
        found = function(*arguments, **named)
        if next(calls) == count:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, name, last)
        with pytest.raises(Killed):
            run(config)


def saved(monkeypatch, config, number: int) -> None:
    """Ends a run when so many of its trials' own checkpoints are there."""
    from nnce_dist.stages.job import Job

    make, calls = Job.saver, []

    def saver(self, *arguments):
        found = make(self, *arguments)
        if self.stage != "packs" and any((run_root(config) / "packs").glob("*/checkpoints/*/manifest.json")):
            calls.append(self.name)
            if len(calls) > number:
                raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Job, "saver", saver)
        with pytest.raises(Killed):
            run(config)


@pytest.mark.parametrize("number", [0, 2])
def test_killed_while_its_trials_get_their_checkpoints_a_pack_ends_the_same(number, tmp_path, monkeypatch):
    whole, parts = configuration(tmp_path / "whole", "asha"), configuration(tmp_path / "parts", "asha")
    run(whole)
    saved(monkeypatch, parts, number)
    assert len(list(tmp_path.glob("parts/*/density_ratio/*/checkpoints/*/manifest.json"))) == number
    run(parts)
    assert decisions(parts) == decisions(whole)


@pytest.mark.parametrize("number", [1, 3])
def test_killed_while_outcomes_are_kept_a_pack_trains_nothing_twice(number, tmp_path, monkeypatch):
    from nnce_dist.sweep.history import History

    whole, parts = configuration(tmp_path / "whole", "asha"), configuration(tmp_path / "parts", "asha")
    run(whole)
    killed_at(monkeypatch, History, "add", number, parts)
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("parts/*/density_ratio/*/checkpoints/*/m*"))]
    _, trained = run(parts)
    assert len(before) == 4 and decisions(parts) == decisions(whole)
    assert len(trained[0]) == 4 - number


def test_where_its_checkpoint_is_damaged_and_its_trials_are_apart_they_take_turns(tmp_path, monkeypatch):
    whole, parts = configuration(tmp_path / "whole", "asha"), configuration(tmp_path / "parts", "asha")
    run(whole)
    saved(monkeypatch, parts, 2)
    for path in run_root(parts).glob("packs/*/checkpoints/*/state.safetensors"):
        path.write_bytes(b"torn")
    run(parts)
    assert_decided_alike(parts, whole)
    told = [one.get("event", "") for one in read(folder(parts, 3) / "metrics.jsonl")]
    assert any("passed over" in event for event in told)


def test_a_lost_pack_is_the_error_of_its_trials_and_is_tried_again(tmp_path):
    class Losing(Counting):
        def _run(self, payload):
            return failed(payload, "its process died", "") if "trials" in payload else super()._run(payload)

    whole, parts = configuration(tmp_path / "whole", "asha"), configuration(tmp_path / "parts", "asha")
    run(whole)
    run_root(parts).mkdir(parents=True)
    results = search.run(parts, run_root(parts), Losing(parts), None, lambda line: None)
    assert set(errors(results).values()) == {"its process died"} and len(errors(results)) >= 8
    run(parts)
    assert decisions(parts).items() >= decisions(whole).items()  # others had gone on in their place


def test_another_machine_goes_on_from_the_copies_of_a_pack_and_of_its_trials(tmp_path):
    whole = configuration(tmp_path / "whole", "asha")
    run(whole)
    said, there = [], [f"run.mirror={tmp_path}/copies"]
    for number, jobs in enumerate((0.5, 1.5, 1e9)):  # each start has a folder of its own, which is empty
        config = configuration(tmp_path / str(number), "asha", *there)
        mirror, root = RunMirror(config), run_root(config)
        with lease(root, mirror, said.append) as epoch, nullcontext() if jobs > 99 else pytest.raises(Stopped):
            launcher = Counting(config, jobs)
            launcher._epoch = epoch
            search.run(config, root, launcher, mirror, said.append)
            mirror.complete()
        assert max(map(len, launcher.trained)) > 1
    assert decisions(config) == decisions(whole)
    told = [one["event"] for one in read(folder(config, 0) / "metrics.jsonl") if "event" in one]
    assert any("fetched from" in event and "/packs/" in event for event in told)
    copies = tmp_path / "copies" / root.name
    assert not list(copies.glob("packs/*/checkpoints/*/*"))
    last = {trial: samples for trial, samples in sorted(decisions(whole))}
    for trial, samples in last.items():
        copy = max(checkpoint.committed(copies / "density_ratio" / search.name_of(trial) / "checkpoints"))
        assert checkpoint.position(copy) == samples and not checkpoint.problem(copy)


# ---- trials that leave, and trials that do not fit -------------------------------------------------------------------


def test_a_trial_that_fails_or_diverges_is_judged_as_alone_and_disturbs_nobody(tmp_path):
    words = ["sweep.space.density_ratio.optimiser.lr=choice(0.01,1e38)"]
    packed, alone = (configuration(tmp_path / name, "asha", *words) for name in ("packed", "alone"))
    alone.sweep.per_process = 1
    results, _ = run(packed)
    expected, _ = run(alone)
    assert errors(results).keys() == errors(expected).keys() and 0 < len(errors(results)) < len(results)
    assert any("figures" in one for one in results)
    assert decisions(packed).keys() == decisions(alone).keys()
    again, trained = run(packed)
    assert errors(again) == errors(results) and sum(map(len, trained)) == len(errors(results))


@pytest.mark.parametrize("strategy", STRATEGIES[:1] + STRATEGIES[2:])
def test_trials_with_other_networks_are_in_other_packs(strategy, tmp_path):
    words = ["sweep.space.density_ratio.width=choice(6,12)", "sweep.batch=5"]
    packed, alone = (configuration(tmp_path / name, strategy, *words) for name in ("packed", "alone"))
    alone.sweep.per_process = 1
    (_, shared), _ = run(packed), run(alone)
    widths = {search.name_of(trial): one.point["density_ratio.width"] for (trial, _), one in decisions(packed).items()}
    assert set(widths.values()) == {6, 12} and max(map(len, shared)) > 1
    assert all(len({widths[name] for name in names}) == 1 for names in shared)
    assert_decided_alike(packed, alone)


def test_trials_that_cannot_be_stacked_take_turns_and_are_to_the_bit_what_they_are_alone(tmp_path):
    words = ["density_ratio.training.max_skipped_steps=1"]
    packed, alone = (configuration(tmp_path / name, "asha", *words) for name in ("packed", "alone"))
    alone.sweep.per_process = 1
    (_, shared), _ = run(packed), run_search(alone)
    assert max(map(len, shared)) == 4 and decisions(packed) == decisions(alone)


@pytest.mark.slow
def test_ten_step_trials_take_turns_from_decision_to_decision_and_are_to_the_bit_what_they_are_alone(tmp_path):
    words = [f"data.cache_dir={tmp_path}/cache", f"teacher.weights={tmp_path}/teacher.safetensors"]
    words += [*SWEEPS["asha"], "sweep.strategy=asha", "sweep.interval=16", "sweep.seeds=[]", "evaluation.draws=1"]
    words += ["sweep.space.objective.noise_magnitude=loguniform(1,1e4)", "workers.precision=float32"]
    packed, alone = (
        load([*words, f"run.dir={tmp_path}/{size}", f"sweep.per_process={size}"], PRESETS, "smoke") for size in (4, 1)
    )
    build.seed_networks(packed, 1)
    save_weights(build.denoiser(packed).state_dict(), tmp_path / "teacher.safetensors")
    (_, shared), _ = run(packed), run_search(alone)
    assert max(map(len, shared)) == 4 and decisions(packed) == decisions(alone)


def test_trials_of_a_pack_can_be_judged_by_a_figure_of_their_log(tmp_path):
    packed, alone = (configuration(tmp_path / name, "asha", "sweep.metric=ratio/loss") for name in ("packed", "alone"))
    alone.sweep.per_process = 1
    run(packed), run(alone)
    assert_decided_alike(packed, alone)


def test_automatic_magnitudes_go_on_in_the_next_pack(tmp_path):
    words = ["sweep.space.objective.schedule.kind=choice(auto,constant)", "density_ratio.kl=12"]
    packed, alone = (configuration(tmp_path / name, "asha", *words) for name in ("packed", "alone"))
    alone.sweep.per_process = 1
    (results, _), _ = run(packed), run(alone)
    assert_decided_alike(packed, alone)
    for trial in range(len(results)):
        assert_left_alike(packed, alone, trial)
