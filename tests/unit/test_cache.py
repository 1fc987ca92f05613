"""The bounded cache of shards, used by several processes, killed and damaged.  Run: pytest tests/unit/test_cache.py"""

import dataclasses
import errno
import gzip
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import in_use
from shard_files import write_shards

from nnce_dist.cli import _guarded
from nnce_dist.config.schema import S3, Data
from nnce_dist.data import counters
from nnce_dist.data.cache import DamagedShardError, ShardCache
from nnce_dist.data.files import FileStore
from nnce_dist.data.room import NoRoomError, hold_copy, make_room
from nnce_dist.data.shelf import OpenFile
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream

SMALL = Data(num_classes=5, image_size=16, loader_workers=0)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """40 shards of 8 pictures as .tar.gz, which are read from copies; gives pattern and bytes of a plain shard."""
    folder = tmp_path_factory.mktemp("set")
    pattern = write_shards(folder, [8] * 40)
    size = max(Path(url).stat().st_size for url in expand(pattern))
    for url in expand(pattern):
        Path(url + ".gz").write_bytes(gzip.compress(Path(url).read_bytes(), 1))
    return pattern + ".gz", size


def held(path, cache):
    blob, _ = FileStore().peek(str(path), 1)
    size = len(gzip.decompress(Path(path).read_bytes()))
    return OpenFile(cache.hold(blob, size)), cache.copy_path(blob, size)


def test_the_longest_unused_copy_goes_first_and_a_held_one_never(compressed, tmp_path):
    pattern, size = compressed
    cache, shards = ShardCache(tmp_path, FileStore(), deadline=0.3, max_bytes=3 * size), expand(pattern)
    first, first_path = held(shards[0], cache)
    second, second_path = held(shards[1], cache)
    third, third_path = held(shards[2], cache)
    with pytest.raises(NoRoomError, match=f"{size} more than data.cache_bytes={3 * size} are in use; raise it, or run"):
        held(shards[3], cache)
    del second, third
    held(shards[1], cache)  # used again, so the third is the one that was unused for longest
    fourth, _ = held(shards[3], cache)
    assert first_path.exists() and second_path.exists() and not third_path.exists()
    assert os.pread(first.descriptor, size, 0) == gzip.decompress(Path(shards[0]).read_bytes())


def test_a_copy_that_gets_its_name_while_room_is_made_still_counts(tmp_path, monkeypatch):
    old, new = (tmp_path / f"{digit * 32}-10.tar" for digit in "ab")
    unfinished = new.with_name(new.name + ".tmp")
    old.write_bytes(bytes(10))
    unfinished.write_bytes(bytes(10))
    held, look = [hold_copy(old, 10)], os.listdir

    def name_it_meanwhile(folder):
        names = look(folder)
        unfinished.rename(new)
        held.append(hold_copy(new, 10))
        return names

    monkeypatch.setattr(os, "listdir", name_it_meanwhile)
    with pytest.raises(NoRoomError):
        make_room(tmp_path, 10, max_bytes=10)
    assert old.exists() and new.exists()
    for file in held:
        os.close(file)


def _consume(pattern, folder, size, seed, results):
    data = dataclasses.replace(SMALL, cache_bytes=30 * size, shuffle_bytes=4 * size, s3=S3(timeout=10))
    batches = islice(open_stream(pattern, data, folder, train=True).batches(seed, 0, 4), 80)
    results.put([batch.x.double().sum().item() for batch in batches])


@pytest.mark.slow
def test_processes_share_one_bounded_folder(compressed, tmp_path):
    """Three readers of one order through one epoch; a fourth process counts the bytes all the time."""
    pattern, size = compressed
    results = FORK.Queue()
    readers = [FORK.Process(target=_consume, args=(pattern, tmp_path, size, 3, results)) for _ in range(3)]
    for reader in readers:
        reader.start()
    most, sums = 0, []
    while len(sums) < 3:
        most = max(most, in_use(tmp_path))
        if not results.empty():
            sums.append(results.get())
        assert any(reader.is_alive() for reader in readers) or not results.empty() or len(sums) == 3
    for reader in readers:
        reader.join(10)
    assert 12 * size <= most <= 30 * size and sums[0] == sums[1] == sums[2]
    expected = open_stream(pattern, dataclasses.replace(SMALL, shuffle_bytes=4 * size), tmp_path / "all", train=True)
    assert sums[0] == [batch.x.double().sum().item() for batch in islice(expected.batches(3, 0, 4), 80)]


def _read_in_turns(pattern, folder, size, seeds, results):
    """Batches of one stream per seed, and held-out pictures, in one process; the first batches wait for the others."""
    data = dataclasses.replace(SMALL, cache_bytes=8 * size, s3=S3(timeout=5))
    train, val = (open_stream(pattern, data, folder, train=train) for train in (True, False))
    assert train._window == 4 * size
    streams = [train.batches(seed, 0, 4) for seed in seeds]
    results.put([[next(stream).x.double().sum().item() for stream in streams] for _ in range(20)])
    results.put(val.raw(range(0, 320, 5))[0].double().sum().item())


@pytest.mark.slow
def test_readers_that_want_more_than_there_is_room_for_go_on_all_the_same(compressed, tmp_path):
    """Two processes, each with two trainings and held-out pictures: room is for one of these alone."""
    (pattern, size), folder = compressed, tmp_path / "bounded"
    folder.mkdir()
    seeds, results, found = [(0, 1), (2, 3)], [FORK.Queue(), FORK.Queue()], [[], []]
    where = [(pattern, folder, size, *both) for both in zip(seeds, results, strict=True)]
    readers = [FORK.Process(target=_read_in_turns, args=one) for one in where]
    for reader in readers:
        reader.start()
    most, end = 0, time.monotonic() + 60
    while min(map(len, found)) < 2:
        most = max(most, in_use(folder))
        for queue, got in zip(results, found, strict=True):
            got += [] if queue.empty() else [queue.get()]
        assert time.monotonic() < end and all(reader.exitcode in (None, 0) for reader in readers)
        time.sleep(0.01)
    for reader in readers:
        reader.join(10)
    train = open_stream(pattern, dataclasses.replace(SMALL, shuffle_bytes=4 * size), tmp_path / "all", train=True)
    held_out = train.raw(range(0, 320, 5))[0].double().sum().item()
    for (first, second), (sums, val) in zip(seeds, found, strict=True):
        streams = [train.batches(seed, 0, 4) for seed in (first, second)]
        assert sums == [[next(stream).x.double().sum().item() for stream in streams] for _ in range(20)]
        assert val == held_out
    assert 4 * size < most <= 8 * size


@pytest.mark.slow
def test_a_batch_whose_shards_go_and_come_again_is_waited_for(compressed, tmp_path, monkeypatch):
    """Another job, which lets go of nothing, leaves room for two of the shards, of which a batch needs more."""
    (pattern, size), fetch = compressed, FileStore.fetch
    train = open_stream(pattern, dataclasses.replace(SMALL, shuffle_bytes=4 * size), tmp_path / "all", train=True)
    expected, cache = next(train.batches(0, 0, 32)), ShardCache(tmp_path, FileStore(), 5, 8 * size)
    kept = [held(shard, cache) for shard in expand(pattern)[-6:]]
    monkeypatch.setattr(FileStore, "fetch", lambda self, blob, file: time.sleep(0.1) or fetch(self, blob, file))
    monkeypatch.setattr("nnce_dist.data.stream._BATCH_DEADLINE", 1.0)
    monkeypatch.setattr("nnce_dist.data.pictures.MEMORY_BOUND", 1000)
    data = dataclasses.replace(SMALL, loader_workers=1, cache_bytes=8 * size)
    batches = open_stream(pattern, data, tmp_path, train=True).batches(0, 0, 32)
    assert torch.equal(next(batches).x, expected.x)
    batches.close()
    wait_for_threads_to_end()
    assert len(kept) == 6


def wait_for_threads_to_end():
    """Those that fetch and decode."""
    end = time.monotonic() + 40
    while {"fetch", "decode"} & {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nobody_goes_on_asking_for_room_for_a_shard_that_is_not_wanted_any_more(compressed, tmp_path):
    pattern, size = compressed
    source = open_stream(pattern, dataclasses.replace(SMALL, cache_bytes=8 * size), tmp_path, train=True)
    cache, shelf = ShardCache(tmp_path, FileStore(), 5, 8 * size), source._shards.shelf
    kept = [held(shard, cache) for shard in expand(pattern)[-8:]]
    shelf.want([0], "reader")
    time.sleep(0.3)
    shelf.want((), "reader")
    wait_for_threads_to_end()
    assert len(kept) == 8


def _stall(path, folder, size, begun, max_shards=2):
    class Stalling(FileStore):
        def fetch(self, blob, file):
            file.write(b"half")
            file.flush()
            begun.set()
            time.sleep(60)

    blob, _ = FileStore().peek(str(path), 1)
    ShardCache(folder, Stalling(), deadline=60, max_bytes=max_shards * size).hold(blob, size)


def _stall_in_a_put(path, begun):
    os.fsync = lambda descriptor: begun.set() or time.sleep(60)
    FileStore().put(str(path), b"whatever")


@pytest.mark.parametrize("what", ["copy", "other"])
def test_what_a_killed_process_left_is_swept_when_the_cache_is_opened_and_never_a_living_ones(
    compressed, tmp_path, what
):
    (pattern, size), begun = compressed, FORK.Event()
    if what == "copy":
        victim = FORK.Process(target=_stall, args=(expand(pattern)[0], tmp_path, size, begun, 0))
    else:
        victim = FORK.Process(target=_stall_in_a_put, args=(tmp_path / f"{'a' * 32}.blobs.json", begun))
    victim.start()
    assert begun.wait(20)
    (left,) = tmp_path.glob("*.tmp")
    os.utime(left, (0, 0))
    ShardCache(tmp_path, FileStore(), deadline=5)
    assert left.exists()
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    young = tmp_path / f"{'b' * 32}.blobs.json.0.tmp"  # its writer may not have come to lock it
    others = tmp_path / "notes.tmp"  # of somebody who uses the same folder, /tmp perhaps
    for path in (young, others):
        path.touch()
    os.utime(others, (0, 0))
    ShardCache(tmp_path, FileStore(), deadline=5)
    assert set(tmp_path.glob("*.tmp")) == {young, others}


def test_what_a_killed_process_left_is_taken_over_or_removed(compressed, tmp_path):
    pattern, size = compressed
    shards, begun = expand(pattern), FORK.Event()
    victim = FORK.Process(target=_stall, args=(shards[0], tmp_path, size, begun))
    victim.start()
    assert begun.wait(20)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    left = list(tmp_path.glob("*.tmp"))
    assert len(left) == 1
    cache = ShardCache(tmp_path, FileStore(), deadline=5, max_bytes=2 * size)
    one, _ = held(shards[1], cache)
    two, _ = held(shards[2], cache)  # needs the room of what was left
    assert not left[0].exists() and len(list(tmp_path.glob("*.tar"))) == 2
    del one
    _, path = held(shards[0], cache)
    assert path.read_bytes() == gzip.decompress(Path(shards[0]).read_bytes())


class SlowStore(FileStore):
    """Gives an object in many small pieces."""

    def fetch(self, blob, file):
        content = Path(blob.url).read_bytes()
        for start in range(0, len(content), len(content) // 15):
            file.write(content[start : start + len(content) // 15])
            time.sleep(0.1)


@pytest.mark.slow
def test_a_compressed_shard_that_still_comes_is_waited_for(compressed, tmp_path):
    shard, count = expand(compressed[0])[0], counters.since_now()
    cache = ShardCache(tmp_path, SlowStore(), deadline=0.7)
    with ThreadPoolExecutor(2) as pool:
        (one, path), (two, _) = pool.map(lambda _: held(shard, cache), range(2))
    assert path.read_bytes() == gzip.decompress(Path(shard).read_bytes())
    assert count()["fetched_bytes"] == os.path.getsize(shard)


class FullStore(FileStore):
    """Fetches to a disk that has room for so many bytes of copies."""

    def __init__(self, folder, num_bytes):
        self.folder, self.num_bytes = folder, num_bytes

    def fetch(self, blob, file):
        size = len(gzip.decompress(Path(blob.url).read_bytes()))
        if size + sum(path.stat().st_size for path in self.folder.glob("*.tar")) > self.num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().fetch(blob, file)


def test_on_a_full_disk_unheld_copies_give_way_and_without_any_it_is_no_bad_input(compressed, tmp_path, capsys):
    pattern, size = compressed
    shards, cache = expand(pattern), ShardCache(tmp_path, FullStore(tmp_path, 3 * size), deadline=1)
    first, first_path = held(shards[0], cache)
    second, second_path = held(shards[1], cache)
    del first
    third, _ = held(shards[2], cache)
    fourth, _ = held(shards[3], cache)
    assert second_path.exists() and not first_path.exists()
    assert _guarded(lambda: held(shards[4], cache)) == 1
    assert "no space left for" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))


class DamagingStore(FileStore):
    """Objects are damaged on their way, a few times."""

    def __init__(self, times):
        self.times = times

    def fetch(self, blob, file):
        super().fetch(blob, file)
        if self.times:
            self.times -= 1
            file.seek(blob.size // 2)
            file.write(bytes(20))


def test_a_compressed_shard_that_is_damaged_on_the_way_is_fetched_once_more(compressed, tmp_path):
    shard = expand(compressed[0])[0]
    _, path = held(shard, ShardCache(tmp_path, DamagingStore(1), deadline=1))
    assert path.read_bytes() == gzip.decompress(Path(shard).read_bytes())
    with pytest.raises(DamagedShardError, match="the gzip stream is damaged or cut short .*; copy the shard again"):
        held(shard, ShardCache(tmp_path / "other", DamagingStore(2), deadline=1))


def test_a_damaged_copy_is_made_again_and_damage_at_the_source_is_named(compressed, tmp_path):
    pattern, _ = compressed
    source = open_stream(pattern, SMALL, tmp_path, train=False)
    pixels, _ = source.raw(range(16))
    for path in tmp_path.glob("*.tar"):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        content[600:900] ^= 255
        path.write_bytes(content.tobytes())
    again, _ = open_stream(pattern, SMALL, tmp_path, train=False).raw(range(16))
    assert torch.equal(again, pixels)
    plain = write_shards(tmp_path / "plain", [8])
    source = open_stream(plain, SMALL, tmp_path, train=False)
    with open(expand(plain)[0], "r+b") as file:
        file.seek(900)
        file.write(b"flip")
    with pytest.raises(ValueError, match="sample '000000': its bytes are not those that were indexed; copy the shard"):
        source.raw([0])


def test_a_long_wait_for_the_first_batch_is_told_with_what_bounds_it(compressed, tmp_path, caplog, monkeypatch):
    pattern, size = compressed
    monkeypatch.setattr("nnce_dist.data.stream._MUCH", 12 * size)

    def told(folder, **settings):
        caplog.clear()
        source = open_stream(pattern, dataclasses.replace(SMALL, **settings), tmp_path / folder, train=True)
        next(source.batches(3, 0, 64))
        return [record.getMessage() for record in caplog.records if "the first batch" in record.getMessage()]

    (line,) = told("one")
    shards = int(re.search(r"drawn from (\d+) of 40 shards", line)[1])
    assert 25 < shards <= 40 and "data.shuffle_bytes bounds that" in line
    assert told("one") == []  # their copies are there
    assert told("two", shuffle_bytes=8 * size) == []  # eight shards or so
