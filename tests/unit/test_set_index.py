"""The index of a set in one file: the same as its shards' own, and left alone where they are others now.

Run: pytest tests/unit/test_set_index.py
"""

import io
import multiprocessing
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import picture, write_shards, write_tar

from nnce_dist.config.schema import S3, Data
from nnce_dist.data.files import FileStore
from nnce_dist.data.index import SUFFIX, ShardIndex, ShardSet, index_shard
from nnce_dist.data.pack import pack
from nnce_dist.data.set_index import MANY, from_file, set_url, store_set, to_bytes
from nnce_dist.data.sidecar import add_indexes
from nnce_dist.data.source import Source, labelled
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream

SMALL = Data(num_classes=5, image_size=16, loader_workers=0)


def nobody(done):
    """Progress that is not shown."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """As many small shards as make a set with an index of its own, and the indexes beside them."""
    pattern = write_shards(tmp_path_factory.mktemp("made") / "set", [2] * MANY)
    add_indexes(expand(pattern), S3(), 1, nobody)
    store_set(expand(pattern), FileStore())
    return Path(pattern)


@pytest.fixture
def pattern(made, tmp_path):
    """A copy of the set with the same dates."""
    return str(shutil.copytree(made.parent, tmp_path / "set") / made.name)


def own(pattern):
    return Path(set_url(expand(pattern)))


def opened(pattern, folder):
    return open_stream(pattern, SMALL, folder, train=True)


@pytest.mark.parametrize(("of_the_set", "says"), [(True, 61), (False, 85)])
def test_the_indexes_take_the_memory_that_they_say(of_the_set, says):
    """Bytes per sample, with names of 16 characters and two members each."""
    num_shards, each = 64, 1000
    spans = np.arange(each * 4, dtype=np.int64).reshape(each, 2, 2)
    labels, checksums = np.arange(each), np.zeros(each, np.uint32)
    contents = []
    for shard in range(num_shards):
        keys = np.array([b"%09d_%06d" % (shard, row) for row in range(each)])
        contents.append(ShardIndex(keys, ("cls", "jpg"), spans, labels, checksums, "0" * 64, 2**24, 2**24).to_bytes())
    whole = to_bytes([ShardIndex.from_bytes(content) for content in contents], "origin")
    tracemalloc.start()
    try:
        read = from_file(io.BytesIO(whole))[1] if of_the_set else [ShardIndex.from_bytes(one) for one in contents]
        shards = ShardSet([f"s3://bucket/train-{number:06d}.tar" for number in range(num_shards)], read, None)
        assert len(shards.labels) + sum(len(index.image_spans) for index in read) == 2 * num_shards * each
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert says - 2 < held / (num_shards * each) < says + 3


def without_parsing(monkeypatch):
    """From now on the index of no shard can be read or made."""
    for name in ("stored_index", "read_index", "index_shard"):
        monkeypatch.setattr(f"nnce_dist.data.opening.{name}", None)


def assert_equal(indexes, others):
    for one, other in zip(indexes, others, strict=True):
        for name in ("keys", "spans", "labels", "checksums"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        for name in ("extensions", "sha256", "num_bytes", "stored_bytes"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.labels.dtype == np.int64


@st.composite
def shard_indexes(draw):
    """Indexes with any members, names, labels and places, also beyond four gigabytes."""
    indexes = []
    for shard in range(draw(st.integers(1, 5))):
        keys = draw(st.lists(st.text("aé/0_", min_size=1, max_size=9), min_size=1, max_size=4, unique=True))
        extensions = draw(st.sampled_from([("cls", "png"), ("jpg", "json"), ("cls", "jpg", "json", "png")]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        spans = rng.integers(0, draw(st.sampled_from([2**20, 2**40])), (len(keys), len(extensions), 2))
        spans[1:, -1] = 0, -1  # only the first sample has all members
        labels, checksums = rng.integers(-(2**62), 2**62, len(keys)), rng.integers(0, 2**32, len(keys), np.uint32)
        names = np.array([key.encode() for key in keys])
        indexes.append(ShardIndex(names, extensions, spans, labels, checksums, f"{shard:064x}", 2**40 + shard, 7))
    return indexes


@settings(max_examples=60, deadline=None)
@given(shard_indexes())
def test_the_file_gives_back_the_index_of_every_shard(indexes):
    origin, again = from_file(io.BytesIO(to_bytes(indexes, "here")))
    assert origin == "here"
    assert_equal(again, indexes)


def test_a_damaged_file_is_none_or_the_same(pattern):
    whole, rng = own(pattern).read_bytes(), np.random.default_rng(0)
    before, none = from_file(io.BytesIO(whole))[1], 0
    for at in [*range(0, len(whole), 997), *rng.integers(0, len(whole), 200)]:
        flipped = whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
        for content in (flipped, whole[:at]):
            after = from_file(io.BytesIO(content))
            none += after is None
            if after is not None:
                assert content is flipped
                assert_equal(after[1], before)
    assert none > 200


def test_it_is_made_by_pack_and_from_the_shards_indexes_and_is_enough_to_open_the_set(pattern, tmp_path, monkeypatch):
    samples = [labelled(str(n), picture(n), n % 5) for n in range(2 * MANY)]
    packed = pack(Source(samples, "noise", 5), tmp_path / "packed", 2)
    expected = [opened(one, tmp_path / "none").digest for one in (packed, pattern)]
    without_parsing(monkeypatch)
    assert [opened(one, tmp_path / "none").digest for one in (packed, pattern)] == expected
    assert own(packed).exists() and own(pattern).exists() and not (tmp_path / "none").exists()


def test_a_pack_that_was_killed_before_it_wrote_the_index_of_the_set_writes_it(tmp_path):
    source = Source([labelled(str(n), picture(n), n % 5) for n in range(MANY)], "noise", 5)
    packed = pack(source, tmp_path / "set", 1)
    whole, times = own(packed).read_bytes(), [os.stat(url).st_mtime_ns for url in expand(packed)]
    own(packed).unlink()
    pack(source, tmp_path / "set", 1)
    assert own(packed).read_bytes() == whole and [os.stat(url).st_mtime_ns for url in expand(packed)] == times


def test_a_set_without_one_is_parsed_once(pattern, tmp_path, monkeypatch):
    for path in [own(pattern), *own(pattern).parent.glob(f"*1.tar{SUFFIX}")]:
        path.unlink()
    first = opened(pattern, tmp_path / "cache")
    assert not own(pattern).exists()  # a set is not written to by those that read it
    without_parsing(monkeypatch)
    again = opened(pattern, tmp_path / "cache")
    assert again.digest == first.digest and len(again) == 2 * MANY


def other_shard(url):
    """Another shard of the same size."""
    size = os.path.getsize(url)
    write_tar(
        Path(url), [(f"{n:06d}.{end}", part) for n in (90, 91) for end, part in (("png", picture(n)), ("cls", b"4"))]
    )
    assert os.path.getsize(url) == size


def with_its_index(url):
    other_shard(url)
    Path(url + SUFFIX).write_bytes(index_shard(Path(url), url).to_bytes())


def with_its_index_and_an_old_date(url):
    """As `cp -p` and `rsync -t` leave a shard; its index is new."""
    before = os.stat(url)
    with_its_index(url)
    os.utime(url, ns=(before.st_mtime_ns, before.st_mtime_ns))


def without_an_index(url):
    os.unlink(url + SUFFIX)
    before = os.stat(url)
    other_shard(url)
    os.utime(url, ns=(before.st_mtime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [other_shard, with_its_index, with_its_index_and_an_old_date, without_an_index])
@pytest.mark.parametrize("kept", ["beside the set", "in the cache"])
def test_a_stale_one_is_noticed(pattern, tmp_path, change, kept):
    if kept == "in the cache":
        own(pattern).unlink()
    before = opened(pattern, tmp_path / "cache")
    time.sleep(0.02)
    change(expand(pattern)[7])
    after = opened(pattern, tmp_path / "cache")
    assert after.digest != before.digest and after.label_counts[4] > before.label_counts[4]
    assert after.digest == opened(pattern, tmp_path / "empty").digest


@pytest.mark.parametrize("damage", ["cut", "garbage", "of another set"])
@pytest.mark.parametrize("kept", ["beside the set", "in the cache"])
def test_a_damaged_one_is_made_again(pattern, tmp_path, kept, damage):
    expected = opened(pattern, tmp_path / "cache").digest
    if kept == "in the cache":
        own(pattern).unlink()
        opened(pattern, tmp_path / "cache")
    (path,) = [own(pattern)] if kept == "beside the set" else (tmp_path / "cache").glob("*.set.npz")
    whole = path.read_bytes()
    indexes = from_file(io.BytesIO(whole))[1]
    path.write_bytes({"cut": whole[:-9], "garbage": b"PK", "of another set": to_bytes(indexes[1:], "other")}[damage])
    assert opened(pattern, tmp_path / "cache").digest == expected
    if kept == "in the cache":
        assert path.read_bytes() == whole


def test_parts_of_a_set_and_sets_in_several_folders_do_without(pattern, tmp_path):
    urls = expand(pattern)
    assert set_url(urls[: MANY - 1]) is None and set_url(urls[1:] + urls[:1]) != set_url(urls)
    moved = tmp_path / "moved.tar"
    os.rename(urls[0], moved)
    assert set_url([str(moved), *urls[1:]]) is None
    assert len(opened(f"{{{moved},{','.join(urls[1:])}}}", tmp_path / "cache")) == 2 * MANY
    store_set(urls[: MANY - 1], FileStore())
    assert len(list(own(pattern).parent.glob("set-*"))) == 1


def _open(pattern, folder, results):
    results.put(opened(pattern, folder).digest)


def test_readers_of_a_node_that_open_a_set_at_once_agree(pattern, tmp_path):
    expected = opened(pattern, tmp_path / "none").digest
    own(pattern).unlink()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    readers = [context.Process(target=_open, args=(pattern, tmp_path / "cache", results)) for _ in range(4)]
    for reader in readers:
        reader.start()
    digests = {results.get(timeout=60) for _ in readers}
    for reader in readers:
        reader.join(20)
    assert digests == {expected} and [path.name[-8:] for path in (tmp_path / "cache").iterdir()] == [".set.npz"]
