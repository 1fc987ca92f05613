"""python -m pytest tests/unit/test_copies.py

Which copies of checkpoints a mirror makes and drops, in a folder: the same over HTTP is `integration/test_mirror.py`.
"""

from pathlib import Path

import pytest
from toys import Regression

from nnce_dist.config.schema import Training
from nnce_dist.data.files import FileStore
from nnce_dist.training import checkpoint
from nnce_dist.training.checkpoint import FencedError, Unguarded
from nnce_dist.training.mirror import Mirror
from nnce_dist.training.saver import Saver
from nnce_dist.training.state import TrainState


class Lost:
    """The right of a job whose run another one has taken over."""

    epoch = 1

    def check(self):
        raise FencedError("taken over")


class Counting(FileStore):
    """Counts what is stored."""

    def __init__(self):
        self.puts = []

    def put(self, url, source):
        self.puts.append(url)
        super().put(url, source)


def commit(folder: Path, samples_seen: int, figure: float = 1.0) -> Path:
    state = TrainState.of(Regression())
    state.samples_seen, state.figure = samples_seen, figure
    saver = Saver(folder / "checkpoints")
    saver.save(state, Training(keep_last=9))
    saver.wait()
    return checkpoint.at(saver.directory, samples_seen)


def copies(folder: Path, guard=None, store=None) -> Mirror:
    return Mirror(store or FileStore(), str(folder / "copies"), guard or Unguarded(), folder / "metrics.jsonl")


def test_a_former_owner_drops_nothing_even_where_it_has_nothing_to_copy(tmp_path):
    """Its newest is what the next owner went on from, so that all beyond is the next one's."""
    first, later = commit(tmp_path, 8), commit(tmp_path, 16)
    for path in (first, later):
        copies(tmp_path).push(path, Training())
    with pytest.raises(FencedError):
        copies(tmp_path, Lost()).push(first, Training())
    assert copies(tmp_path).positions() == {8, 16}


def test_what_is_newer_and_better_waits_for_its_own_turn(tmp_path):
    """To copy it now is to copy it twice: what lies beyond the newest is dropped."""
    first, store = commit(tmp_path, 8, 2.0), Counting()
    better = commit(tmp_path, 16, 1.0)
    for path in (first, better):
        copies(tmp_path, store=store).push(path, Training())
    assert copies(tmp_path).positions() == {8, 16}
    assert len(store.puts) == len(set(store.puts))
