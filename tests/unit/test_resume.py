"""python -m pytest tests/unit/test_resume.py

Interrupted and continued, a run gives the weights and the log of an uninterrupted one, to the bit, on one rank and two.
"""

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import Numbers, Regression, on_ranks

from nnce_dist.config.schema import Training
from nnce_dist.metrics import jsonl
from nnce_dist.metrics.recorder import Recorder
from nnce_dist.training import checkpoint
from nnce_dist.training.loop import train
from nnce_dist.training.saver import Saver
from nnce_dist.training.state import TrainState
from nnce_dist.training.step import NonFiniteError
from nnce_dist.training.stopping import Stopped

OF_THE_CLOCK = ("time", "started", "useful_seconds", "goodput", "images_per_second", "step_seconds")
OF_THE_CLOCK += ("rank_step_seconds", "checkpoint_")  # beginnings of names


def run(folder: Path, ranks: int = 1, steps: int = -1, task=Regression, facts=None, **options) -> TrainState:
    """Trains on some ranks with a real log; raises what rank 0 raised."""
    training = Training(**{"samples": 160, "batch": 8, "log_every": 24, "checkpoint_every": 40, **options})
    tasks = [task() for _ in range(ranks)]

    def work(runtime):
        sinks = [jsonl.JsonlSink(folder / "metrics.jsonl")] if runtime.rank == 0 else []
        recorder = Recorder({}, training.batch, sinks, runtime.all_reduce)
        saver = Saver(folder / "checkpoints", facts=facts)
        return train(tasks[runtime.rank], Numbers(), training, 5, runtime, recorder, saver, recorder.note)

    first, *_ = on_ranks(ranks, work, steps)
    if isinstance(first, Exception):
        raise first
    return first


def log(folder: Path) -> list[dict]:
    """What the log says, apart from the clock and from events."""
    records = [record for record in jsonl.read(folder / "metrics.jsonl") if "samples_seen" in record]
    return [{key: v for key, v in record.items() if not key.startswith(OF_THE_CLOCK)} for record in records]


def events(folder: Path) -> list[str]:
    return [record["event"] for record in jsonl.read(folder / "metrics.jsonl") if "event" in record]


def same(first: TrainState, second: TrainState) -> bool:
    a, b = first.tensors(), second.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_stopped_at_random_steps_and_continued_equals_uninterrupted_to_the_bit(tmp_path, ranks, seed):
    whole, stops = run(tmp_path / "whole", ranks), sorted(random.Random(seed).sample(range(1, 20), 3))
    for before, stop in zip([0, *stops], stops, strict=False):
        with pytest.raises(Stopped, match=f"stopped by SIGTERM at {8 * stop} samples; the same command") as stopped:
            run(tmp_path / "parts", ranks, steps=stop - before)
        assert stopped.value.exit_code == 143
    assert same(run(tmp_path / "parts", ranks), whole)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert [record["samples_seen"] for record in log(tmp_path / "parts")] == [24, 48, 72, 96, 120, 144, 160]
    assert len(events(tmp_path / "parts")) == 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_was_lost_after_the_last_checkpoint_is_done_again_and_counted_once(tmp_path, ranks):
    """A crash leaves a log that is ahead of the newest checkpoint."""
    whole = run(tmp_path / "whole", ranks)
    run(tmp_path / "parts", ranks, keep_last=4)
    for path in sorted(checkpoint.committed(tmp_path / "parts/checkpoints"))[1:]:
        (path / "manifest.json").unlink()
    assert same(run(tmp_path / "parts", ranks), whole)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def figures(folder: Path) -> dict[int, float | None]:
    """What `keep_best` compares, by the position of the checkpoint."""
    paths = checkpoint.committed(folder / "checkpoints")
    return {checkpoint.position(path): checkpoint.read_scalars(path)["figure"] for path in paths}


KEPT = {"checkpoint_every": 16, "log_every": 48, "keep_last": 20, "keep_best": "a/loss"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_before_the_next_log_line_have_the_figure_of_the_last_one(tmp_path, ranks):
    run(tmp_path / "whole", ranks, **KEPT)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", ranks, steps=8, **KEPT)
    run(tmp_path / "parts", ranks, **KEPT)
    whole = figures(tmp_path / "whole")
    assert figures(tmp_path / "parts") == whole and whole[32] is None and len(set(whole.values())) == 5


def test_another_number_of_ranks_goes_on_with_the_same_samples(tmp_path):
    whole = run(tmp_path / "whole")
    for ranks, steps in ((2, 7), (1, 3), (4, 5)):
        with pytest.raises(Stopped):
            run(tmp_path / "parts", ranks, steps)
    state = run(tmp_path / "parts", 2)
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, whole.tensors()[name], rtol=1e-5, atol=1e-7)
    for parts, one in zip(log(tmp_path / "parts"), log(tmp_path / "whole"), strict=True):
        assert parts == pytest.approx(one, rel=1e-5)


def test_the_choice_is_told_in_one_line_that_names_what_is_damaged(tmp_path):
    run(tmp_path)
    newest = max(checkpoint.committed(tmp_path / "checkpoints"))
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    run(tmp_path)
    (said,) = events(tmp_path)
    assert said.startswith(f"continuing at 120 of 160 samples from {tmp_path}/checkpoints/000000000120 ")
    assert said.endswith(f"(the newest of 2; {newest.name} passed over: digest of state.safetensors does not match)")
    assert not checkpoint.problem(newest)  # reached again, and written again
    assert len(list(newest.parent.iterdir())) == 2  # the damaged one is gone


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_no_damage_is_loaded(tmp_path, file, damage):
    whole = run(tmp_path)
    newest = max(checkpoint.committed(tmp_path / "checkpoints"))
    content = (newest / file).read_bytes()
    flipped = bytes([content[0] ^ 255]) + content[1:]
    (newest / file).write_bytes({"cut": content[: len(content) // 2], "flipped": flipped}.get(damage, b""))
    if damage == "gone":
        (newest / file).unlink()
    assert same(run(tmp_path), whole)
    assert f"{newest.name} passed over" in events(tmp_path)[0]


def test_without_a_whole_checkpoint_it_starts_again_and_says_so(tmp_path):
    whole = run(tmp_path)
    for path in checkpoint.committed(tmp_path / "checkpoints"):
        (path / "manifest.json").unlink()
    assert same(run(tmp_path), whole)
    (said,) = events(tmp_path)
    assert said.startswith("starting from the beginning: no checkpoint in") and said.count("unreadable") == 2


class Wider(Regression):
    def __init__(self):
        super().__init__()
        self.networks["a"] = nn.Linear(3, 5)


def test_a_checkpoint_of_other_networks_is_refused_in_one_line(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="does not fit these networks") as caught:
        run(tmp_path, task=Wider)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    run(tmp_path, facts={"data_digest": "a1"})
    with pytest.raises(ValueError, match="its data_digest is a1, now it is b2"):
        run(tmp_path, facts={"data_digest": "b2"})


class Spoilt(Regression):
    """Meets a gradient that is not finite, in the part of rank 0 alone, the first times that it comes to a step."""

    def __init__(self, times: int, at: int = 88):
        super().__init__()
        self.times, self.at = times, at

    def updates(self, batch, random, samples_seen, mean_over_ranks):
        first, *others = super().updates(batch, random, samples_seen, mean_over_ranks)
        yield replace(first, loss=partial(self.poisoned, first.loss)) if self.comes(batch, samples_seen) else first
        yield from others

    def comes(self, batch, samples_seen: int) -> bool:
        mine = next(Numbers().batches(5, samples_seen, 8, 0, 1, 0)).x[: len(batch)]
        if samples_seen != self.at or not torch.equal(batch.x, mine) or not self.times:
            return False
        self.times -= 1
        return True

    @staticmethod
    def poisoned(loss, part):
        losses, observed = loss(part)
        return losses * float("nan"), observed


def test_ranks_agree_to_skip_what_only_one_of_them_sees(tmp_path):
    tasks = [Spoilt(1), Spoilt(1)]
    spare = iter(tasks)
    state = run(tmp_path, 2, task=lambda: next(spare), max_skipped_steps=1)
    assert state.skipped_steps == 1 and [task.times for task in tasks] == [0, 1]
    for name in ("a", "b"):
        weights = [task.networks[name].weight for task in tasks]
        assert torch.equal(*weights) and weights[0].isfinite().all()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_roll_back_goes_on_from_the_last_checkpoint_at_half_the_rate(tmp_path, ranks):
    tasks = [Spoilt(1) for _ in range(ranks)]
    spare = iter(tasks)
    state = run(tmp_path / "one", ranks, task=lambda: next(spare), rollback=True)
    assert state.rate == 0.5 and state.skipped_steps == 0
    (said,) = events(tmp_path / "one")
    assert said.startswith("rolled back, at half the learning rate: the gradient of 'a' is not finite at 88 samples")
    assert "continuing at 80 of 160 samples" in said
    assert [record["samples_seen"] for record in log(tmp_path / "one")] == [24, 48, 72, 96, 120, 144, 160]
    with pytest.raises(Stopped):  # and the same by hand
        run(tmp_path / "two", ranks, steps=10)
    path = tmp_path / "two/checkpoints" / f"{80:012d}"
    scalars = checkpoint.read_scalars(path)
    checkpoint.write_json(path / "state.json", scalars | {"rate": 0.5})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = checkpoint.sha256(path / "state.json")
    checkpoint.write_json(path / "manifest.json", manifest)
    assert same(run(tmp_path / "two", ranks), state)


def test_after_a_roll_back_no_checkpoint_has_a_figure_of_the_abandoned_steps(tmp_path):
    options = {"rollback": True, "keep_best": "a/loss", "log_every": 56}
    with pytest.raises(Stopped, match="at 48 samples"):  # rolled back from 64 to 40, to before the log line at 56
        run(tmp_path, task=lambda: Spoilt(1, at=64), steps=9, **options)
    assert figures(tmp_path) == {40: None, 48: None}


@pytest.mark.parametrize(("times", "at", "options"), [(2, 88, {}), (1, 0, {}), (1, 88, {"rollback": False})])
def test_a_second_time_without_a_checkpoint_or_unasked_training_stops(tmp_path, times, at, options):
    with pytest.raises(NonFiniteError, match=f"at {at} samples"):
        run(tmp_path, task=lambda: Spoilt(times, at), **{"rollback": True, **options})
    assert max(map(checkpoint.position, checkpoint.committed(tmp_path / "checkpoints")), default=0) <= at
