"""Shards are fetched ahead, for several readers, and nobody waits for them too long.

Run: pytest tests/unit/test_fetching.py
"""

import dataclasses
import gzip
import multiprocessing
import threading
import time
from concurrent.futures import CancelledError
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import write_shards

from nnce_dist.config.load import load
from nnce_dist.config.schema import Data
from nnce_dist.data import first_stage, parallel, pictures, room, shelf, stream
from nnce_dist.data.files import FileStore
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream
from nnce_dist.stages import inputs, pipeline

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
SMALL = Data(num_classes=5, image_size=16, loader_workers=2)
SHARDS = 40
AT_A_TIME = 8  # shards that are fetched at once
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """40 shards of 2 pictures as .tar.gz, which are read from copies."""
    plain = write_shards(tmp_path_factory.mktemp("set"), [2] * SHARDS)
    for url in expand(plain):
        Path(url + ".gz").write_bytes(gzip.compress(Path(url).read_bytes(), 1))
    return plain + ".gz"


@pytest.fixture
def source(pattern, tmp_path):
    return open_stream(pattern, SMALL, tmp_path, train=False)


@pytest.fixture
def gate(source, monkeypatch):
    """The source's store gives no shard but those that are let through."""
    return Gate(monkeypatch)


class Gate:
    def __init__(self, patch):
        self.first, self.changed, self.fetched, fetch = 0, threading.Condition(), set(), FileStore.fetch

        def wait_and_fetch(store, blob, file):
            with self.changed:
                assert self.changed.wait_for(lambda: Path(blob.url).name < f"a-{self.first:03d}", timeout=10)
            fetch(store, blob, file)
            self.fetched.add(blob.url)

        patch.setattr(FileStore, "fetch", wait_and_fetch)

    def open(self, first=SHARDS):
        """For the first shards."""
        with self.changed:
            self.first = first
            self.changed.notify_all()

    def has_given(self, shards, within):
        end = time.monotonic() + within
        while len(self.fetched) < shards and time.monotonic() < end:
            time.sleep(0.01)
        return len(self.fetched) >= shards


def test_the_deadline_of_a_batch_begins_when_its_shards_are_there(source, gate, monkeypatch):
    monkeypatch.setattr(stream, "_BATCH_DEADLINE", 0.3)
    threading.Timer(1, gate.open).start()
    assert next(source.batches(0, 0, 8)).labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_batch_that_is_never_decoded_is_given_up(source, monkeypatch):
    monkeypatch.setattr(stream, "_BATCH_DEADLINE", 0.3)
    monkeypatch.setattr(pictures, "decode", lambda *picture: time.sleep(2))
    with pytest.raises(TimeoutError, match="a batch took more than 0.3 s to read and decode; check the local disk"):
        next(source.batches(0, 0, 8))


@pytest.mark.parametrize("threads", [0, 2])
def test_shards_that_never_come_are_given_up_by_name(pattern, tmp_path, monkeypatch, threads):
    source = open_stream(pattern, dataclasses.replace(SMALL, loader_workers=threads), tmp_path, train=False)
    gate = Gate(monkeypatch)
    monkeypatch.setattr(shelf, "_FETCH_DEADLINE", 0.3)
    with pytest.raises(TimeoutError, match=r"a-00[0-3].tar.gz: not copied within 0.3 s; .* set data.shuffle_bytes"):
        next(source.batches(0, 0, 8))
    gate.open()


def test_a_reader_that_is_done_takes_nothing_from_the_others(source, gate):
    gate.open(AT_A_TIME)
    first, second = source.batches(0, 0, 8), source.batches(1, 0, 8)
    batch = next(first)
    assert torch.equal(next(second).x, batch.x)
    first.close()
    gate.open()
    assert gate.has_given(SHARDS, within=10)  # though nobody has read them yet
    labels = torch.cat([batch.labels for batch in islice(second, SHARDS // 4 - 1)])
    assert labels.tolist() == [number % 5 for number in range(8, 2 * SHARDS)]


def test_first_stages_keep_their_own_shards_and_let_them_go_at_the_end(source, tmp_path, monkeypatch):
    monkeypatch.setattr(first_stage, "_BLOCK", 2)  # one shard
    stages = [iter(source.first_stage(0, start)) for start in (0, 20, 40)]
    for stage in stages:
        next(stage)
    for left in (3, 2, 1, 0):
        room.evict(tmp_path, 2**40)
        assert len(list(tmp_path.glob("*.tar"))) == left
        if left:
            stages.pop().close()


def test_what_no_reader_wants_is_not_fetched(source, gate):
    gate.open(AT_A_TIME)
    readers = [source.batches(seed, 0, 8) for seed in range(2)]
    for reader in readers:
        next(reader)
    for reader in readers:
        reader.close()
    gate.open()
    assert not gate.has_given(3 * AT_A_TIME, within=0.5)


def test_a_batch_whose_shard_another_reader_gave_up_is_made_again():
    tries = count()

    def make(share, decoder):
        if next(tries) == 1:
            raise CancelledError
        return np.array(share), np.array(share)

    shares = (range(start, start + 2) for start in count(0, 2))
    made = stream._ahead(make, lambda share: None, shares, 1, None)
    assert [pixels.tolist() for pixels, _ in islice(made, 4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_is_decoded_when_the_process_ends_is_left_off_at_once(source, monkeypatch):
    monkeypatch.setattr(parallel, "ending", threading.Event())
    monkeypatch.setattr(pictures, "decode", lambda *picture: time.sleep(0.05) or np.zeros((3, 16, 16), np.uint8))
    batches = source.batches(0, 0, 8)
    next(batches)
    working = [thread for thread in threading.enumerate() if thread.name == "decode"]
    parallel._end()  # as `atexit` calls it, with batches in work
    assert working and not any(thread.is_alive() for thread in working)


def _end_while_fetching(source, begun):
    """One batch, and the process ends; what is to come is being fetched, and waited for by the decoding threads."""
    fetch = FileStore.fetch

    def stall(store, blob, file):
        if Path(blob.url).name >= "a-004":
            file.write(b"half")
            begun.set()
            time.sleep(60)
        fetch(store, blob, file)

    FileStore.fetch = stall
    globals()["kept"] = batches = source.batches(0, 0, 8)
    next(batches)
    assert begun.wait(10)


def test_the_end_of_the_process_waits_for_no_shard(source, pattern, tmp_path):
    process = FORK.Process(target=_end_while_fetching, args=(source, FORK.Event()))
    process.start()
    process.join(20)
    ended = process.exitcode
    process.kill()
    assert ended == 0 and list(tmp_path.glob("*.tmp"))
    pixels, _ = open_stream(pattern, SMALL, tmp_path, train=False).raw()
    expected, _ = open_stream(pattern.removesuffix(".gz"), SMALL, tmp_path, train=False).raw()
    assert torch.equal(pixels, expected) and not list(tmp_path.glob("*.tmp"))


def test_the_user_hears_of_the_indexing_of_a_new_set_and_jobs_are_quiet(tmp_path, capfd):
    sets = [write_shards(tmp_path / part, [40] * shards, size=64) for part, shards in (("train", 3), ("val", 2))]
    words = [f"data.train={sets[0]}", f"data.val={sets[1]}", "data.num_classes=5", f"run.dir={tmp_path / 'runs'}"]
    said = []
    pipeline.prepare(load(words, PRESETS, "smoke"), said.append)
    assert said[:2] == ["indexed 3 of 3 shards", "indexed 2 of 2 shards"]
    inputs.open_train(load([*words, f"data.cache_dir={tmp_path / 'of_a_job'}"], PRESETS, "smoke"))
    assert capfd.readouterr() == ("", "")
