"""What `data.on_error` does about samples that cannot be read.  Run: pytest tests/unit/test_bad_samples.py"""

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch
from shard_files import picture, write_tar
from torch.utils.data import DataLoader

from nnce_dist.config.checks import contradictions, tolerated
from nnce_dist.config.schema import Config, Data
from nnce_dist.data import counters, pictures
from nnce_dist.data.bad_samples import IN_A_ROW, BadDataError, BadSamples, DamagedShardError, read_skipped
from nnce_dist.data.check import check
from nnce_dist.data.decoding import Decoder
from nnce_dist.data.index import ShardIndex, ShardSet
from nnce_dist.data.stream import open_stream

BAD = {3: b"", 4: b"\x89PNG\r\n\x1a\n garbage", 17: picture(17)[:-150], 39: picture(39, 20)}
IN_PLACE = {3: 5, 4: 5, 17: 18, 39: 0}  # the next good one; after the last comes the first
SMALL = Data(num_classes=5, image_size=16, loader_workers=0, flip=False, on_error="skip(4)")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 samples in four shards, four of them bad; gives the pattern."""
    folder = tmp_path_factory.mktemp("set")
    for shard in range(4):
        members = []
        for n in range(10 * shard, 10 * shard + 10):
            members += [(f"{n:06d}.png", BAD.get(n, picture(n))), (f"{n:06d}.cls", str(n % 5).encode())]
        write_tar(folder / f"a-{shard}.tar", members)
    return str(folder / "a-{0..3}.tar")


@pytest.fixture
def opened(shards, tmp_path):
    return lambda **changes: open_stream(shards, dataclasses.replace(SMALL, **changes), tmp_path, train=True)


def test_bad_samples_stop_by_default(shards, opened):
    source = opened(on_error="fail")
    with pytest.raises(ValueError, match=r"a-0.tar: sample '000003': not a readable JPEG or PNG") as caught:
        source.raw()
    assert type(caught.value) is ValueError
    with pytest.raises(ValueError, match="'000003'"):
        check(shards, dataclasses.replace(SMALL, on_error="fail"))
    check(shards, SMALL)


@pytest.mark.parametrize("memory", [10**9, 1000])
def test_another_sample_with_its_own_label_takes_the_place(opened, monkeypatch, memory):
    monkeypatch.setattr(pictures, "MEMORY_BOUND", memory)
    pixels, labels = opened().raw()
    expected = [IN_PLACE.get(n, n) for n in range(40)]
    good, _ = opened().raw([n for n in range(40) if n not in BAD])
    places = {n: row for row, n in enumerate(n for n in range(40) if n not in BAD)}
    assert torch.equal(pixels, good[[places[n] for n in expected]])
    assert labels.tolist() == [n % 5 for n in expected]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("workers", "memory"), [(0, 10**9), (3, 10**9), (2, 1000)])  # none, threads, processes
def test_the_same_samples_are_skipped_on_every_world_size(
    opened, tmp_path, caplog, monkeypatch, world_size, workers, memory
):
    monkeypatch.setattr(Decoder, "is_ready", True)  # or threads would decode until the processes have started
    whole = opened()
    count = counters.since_now()
    expected = [next_batch.x for next_batch in islice(whole.batches(7, 0, 8), 10)]
    assert count()["skipped_samples"] == 2 * len(BAD)  # in two epochs
    (tmp_path / "skipped.jsonl").unlink()
    caplog.clear()
    monkeypatch.setattr(pictures, "MEMORY_BOUND", memory)
    ranks = [
        list(islice(opened(loader_workers=workers).batches(7, 0, 8, rank, world_size), 10))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(expected):
        assert torch.equal(batch, torch.cat([rank[step].x for rank in ranks]))
    skipped = read_skipped(tmp_path / "skipped.jsonl")
    assert sorted(one["key"] for one in skipped) == ["000003", "000004", "000017", "000039"]
    assert all(one["shard"].endswith(f"a-{int(one['key']) // 10}.tar") for one in skipped)
    told = [record.message for record in caplog.records]
    assert len(told) == 4 and sum("a-3.tar: sample '000039': the picture is 20x20" in line for line in told) == 1


def test_what_was_used_is_told_once_it_is_certain(opened, monkeypatch):
    """Another thread that had the same bad samples may be about to look up their labels."""
    monkeypatch.setattr(pictures, "MEMORY_BOUND", 1000)
    source, numbers, seen = opened(), np.arange(5), []
    read, decoder = source._pictures, source._pictures.decoder(5)
    read.read(numbers)
    source._bad._next.clear()  # as a thread has found it that began before
    ask = decoder.decode
    decoder.decode = lambda encoded: seen.append(read.used[numbers].tolist()) or ask(encoded)
    read.read(numbers, decoder)
    decoder.close()
    assert seen == [[0, 1, 2, 5, 5]] and read.used[numbers].tolist() == seen[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "workers", "begun"), [(1, 0, None), (4, 0, None), (2, 2, "fork"), (1, 2, "spawn")]
)
def test_the_first_stage_of_a_pipeline_leaves_out_the_same_samples(opened, tmp_path, world_size, workers, begun):
    expected = [IN_PLACE.get(n, n) for n in opened()._order.samples_at(7, range(3, 83)).tolist()]
    keys = []
    for rank in range(world_size):
        stage = opened().first_stage(7, 3, rank, world_size)
        loader = DataLoader(stage, batch_size=None, num_workers=workers, multiprocessing_context=begun)
        keys.append([int(sample["__key__"]) for sample in islice(iter(loader), 80 // world_size)])
    assert np.array(keys).T.ravel().tolist() == expected
    skipped = read_skipped(tmp_path / "skipped.jsonl")
    assert sorted(int(one["key"]) for one in skipped) == sorted(BAD)
    with pytest.raises(BadDataError, match=r"4 samples cannot be read, more than data.on_error=skip\(3\)"):
        list(islice(opened(on_error="skip(3)").first_stage(7), 80))


def test_what_the_first_stage_leaves_out_is_counted_and_with_fail_nothing_is(opened):
    count = counters.since_now()
    assert len(list(islice(opened().first_stage(7), 80))) == 80
    assert count()["skipped_samples"] == 2 * len(BAD)
    every = {int(sample["__key__"]): sample["png"] for sample in islice(opened(on_error="fail").first_stage(7), 40)}
    assert len(every) == 40 and all(every[n] == content for n, content in BAD.items())


def test_beyond_the_limit_it_ends_and_stays_ended(opened, tmp_path):
    for _ in range(2):  # the second time is a run that is started again
        with pytest.raises(
            BadDataError, match=r"4 samples cannot be read, more than data.on_error=skip\(3\)"
        ) as caught:
            opened(on_error="skip(3)").raw()
        assert "\n" not in str(caught.value) and str(tmp_path / "skipped.jsonl") in str(caught.value)


def test_too_many_in_a_row_end_it_whatever_the_limit(shards, tmp_path):
    wrong_size = dataclasses.replace(SMALL, image_size=32, on_error="skip(1000)")
    with pytest.raises(BadDataError, match="so many in a row are no accident"):
        open_stream(shards, wrong_size, tmp_path, train=True).raw([0])
    assert len(read_skipped(tmp_path / "skipped.jsonl")) == IN_A_ROW


def index_of(num_samples):
    spans, keys = np.zeros((num_samples, 1, 2), np.int64), np.array([b"%d" % n for n in range(num_samples)])
    return ShardIndex(keys, ("png",), spans, spans[:, 0, 0], spans[:, 0, 0], "", 1, 1)


def test_a_damaged_shard_is_replaced_by_the_next_sample_for_sample(tmp_path):
    shards = ShardSet(["a", "b", "c"], [index_of(5), index_of(3), index_of(4)], None)
    asked = []

    def read(sample):
        asked.append(sample)
        if 5 <= sample < 8:
            raise DamagedShardError("b: not the bytes that were indexed")
        return f"sample {sample}"

    bad = BadSamples(shards, "skip(3)", tmp_path / "skipped.jsonl")
    assert [bad.readable(n, read)[0] for n in range(12)] == [0, 1, 2, 3, 4, 8, 9, 10, 8, 9, 10, 11]
    assert bad.readable(5, read) == (8, "sample 8") and asked.count(5) == 1
    line = {"shard": "b", "key": None, "samples": 3, "reason": "b: not the bytes that were indexed"}
    assert [json.loads(text) for text in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [line]
    with pytest.raises(BadDataError, match=r"3 samples .*skip\(2\)"):
        BadSamples(shards, "skip(2)", tmp_path / "other.jsonl").readable(5, read)


def test_a_torn_last_line_of_the_list_is_left_out_and_written_over(tmp_path):
    shards, path = ShardSet(["a"], [index_of(9)], None), tmp_path / "skipped.jsonl"

    def read(sample):
        if sample < 3:
            raise ValueError(f"bad é {sample}")

    BadSamples(shards, "skip(3)", path).readable(0, read)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert [one["key"] for one in read_skipped(path)] == ["0", "1"]
    assert BadSamples(shards, "skip(3)", path).readable(2, read)[0] == 3
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-40] + b"\n")
    with pytest.raises(ValueError, match="^.*skipped.jsonl: not a list of skipped samples .*; move the file away$"):
        read_skipped(path)


@pytest.mark.parametrize("words", ["skip", "skip()", "skip(0)", "skip(-1)", "Fail", "skip(3) "])
def test_other_words_are_refused(words):
    config = Config()
    config.data.on_error = words
    assert [line for line in contradictions(config) if "data.on_error" in line]


def test_what_is_tolerated():
    assert (tolerated("fail"), tolerated("skip(12)")) == (0, 12)


def test_processes_share_one_list(shards, tmp_path):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        ends = [pool.submit(_read_all, shards, tmp_path, limit) for limit in (4, 4, 4, 3)]
        errors = [type(end.exception(timeout=60)) for end in ends]
    assert errors == [type(None)] * 3 + [BadDataError]
    assert sorted(one["key"] for one in read_skipped(tmp_path / "skipped.jsonl")) == [
        "000003",
        "000004",
        "000017",
        "000039",
    ]


def _read_all(shards, folder, limit):
    data = dataclasses.replace(SMALL, on_error=f"skip({limit})")
    open_stream(shards, data, folder, train=True).raw()
