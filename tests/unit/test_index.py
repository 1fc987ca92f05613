"""Shards are read strictly, indexed once, and copied safely.  Run: pytest tests/unit/test_index.py"""

import errno
import gzip
import io
import multiprocessing
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shard_files import picture, write_shards, write_tar

from nnce_dist.config.schema import S3, Data
from nnce_dist.data.cache import ShardCache, make_once
from nnce_dist.data.files import FileStore
from nnce_dist.data.index import SUFFIX, ShardIndex, index_shard
from nnce_dist.data.shelf import OpenFile
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream

SMALL = Data(num_classes=5, image_size=16, loader_workers=0, s3=S3(timeout=2))


@pytest.fixture
def shard(tmp_path):
    return Path(expand(write_shards(tmp_path / "set", [20]))[0])


def reason(path, name="shard"):
    with pytest.raises(ValueError) as caught:
        index_shard(path, name)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def header_of(shard, member):
    with tarfile.open(shard) as archive:
        return archive.getmember(member).offset


def test_index_finds_every_byte(tmp_path):
    pictures = [picture(1, form="JPEG"), picture(2), picture(3, form="JPEG")]
    labels = [b"3", b" 1\n", b'{"label": 4, "caption": "x"}']
    members = [("p.JPG", pictures[0]), ("p.cls", labels[0]), ("q/1.png", pictures[1]), ("q/1.cls", labels[1])]
    members += [("q/1.b.txt", b"left out"), ("r.jpeg", pictures[2]), ("r.json", labels[2])]
    shard = write_tar(tmp_path / "s.tar", members)
    index = index_shard(shard, "s")
    assert index.keys.tolist() == [b"p", b"q/1", b"r"] and index.labels.tolist() == [3, 1, 4]
    content = shard.read_bytes()
    assert [content[offset : offset + size] for offset, size in index.image_spans] == pictures
    assert set(index.extensions) == {"jpg", "jpeg", "png", "cls", "json"}


def test_index_survives_saving(shard):
    index = index_shard(shard, "s", stored_bytes=123)
    again = ShardIndex.from_bytes(index.to_bytes())
    for field in ("keys", "spans", "labels"):
        assert np.array_equal(getattr(index, field), getattr(again, field))
    assert (again.extensions, again.sha256, again.num_bytes) == (index.extensions, index.sha256, index.num_bytes)
    assert again.num_bytes == shard.stat().st_size and again.stored_bytes == 123


def test_a_damaged_index_is_none_or_the_same(shard):
    index = index_shard(shard, "s")
    whole, rng = index.to_bytes(), np.random.default_rng(0)
    assert whole == index.to_bytes()
    refused = [ShardIndex.from_bytes(whole[:at]) is None for at in range(0, len(whole), 37)]
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        again = ShardIndex.from_bytes(bytes(damaged))
        refused.append(again is None)
        assert again is None or np.array_equal(again.spans, index.spans) and again.sha256 == index.sha256
    assert all(refused[: len(whole) // 37]) and sum(refused) > len(refused) / 2


@pytest.mark.parametrize(
    "cut", ["before a header", "inside a header", "inside a picture", "end-of-archive mark", "half"]
)
def test_cut_shards_are_refused(shard, cut):
    whole = shard.read_bytes()
    header = header_of(shard, "000010.png")
    last = header_of(shard, "000019.cls") + 1024
    at = {"before a header": header, "inside a header": header + 100, "inside a picture": header + 600}
    at |= {"end-of-archive mark": last, "half": len(whole) // 2}
    shard.write_bytes(whole[: at[cut]])
    assert "cut short" in reason(shard)


@pytest.mark.parametrize("damage", [b"\0" * 1024, b"\xff" * 512, b"\0" * 4096])
def test_holes_and_garbage_are_refused(shard, damage):
    whole = bytearray(shard.read_bytes())
    header = header_of(shard, "000010.png")
    whole[header : header + len(damage)] = damage
    shard.write_bytes(whole)
    assert f"no readable header at byte {header}" in reason(shard)


def test_any_damage_is_loud_or_keeps_all_samples(shard):
    rng, whole, before = np.random.default_rng(0), shard.read_bytes(), index_shard(shard, "s")
    loud = 0
    for _ in range(200):
        damaged = bytearray(whole)
        at = 512 * int(rng.integers(0, len(whole) // 512))
        damaged[at : at + 512] = rng.bytes(512) if rng.random() < 0.5 else bytes(512)
        shard.write_bytes(damaged)
        try:
            after = index_shard(shard, "s")
        except ValueError:
            loud += 1
        else:
            assert np.array_equal(after.spans, before.spans) and after.sha256 != before.sha256 or damaged == whole
    assert loud > 80  # two of every five blocks are headers


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b"x"), ("b.png", b"x"), ("b.cls", b"1")], "sample 'a' has no label"),
        ([("a.cls", b"1")], "sample 'a' needs one picture"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "needs one picture .* has .png, .jpg, .cls"),
        ([("a.png", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "two members .png"),
        (
            [("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x"), ("b.cls", b"1"), ("a.png", b"x"), ("a.cls", b"1")],
            "'a' occurs twice",
        ),
        ([("../a.png", b"x"), ("../a.cls", b"1")], "climbs out"),
        ([("/a.png", b"x"), ("/a.cls", b"1")], "climbs out"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "sample 'a': .cls must hold a class number"),
        ([("a.png", b"x"), ("a.json", b'{"cls": 1}')], 'must hold an object with an integer "label"'),
        ([("a.png", b"x"), ("a.json", b'{"label": 1.5}')], 'must hold an object with an integer "label"'),
        ([("a.png", b"x"), ("a.cls", b"9" * 20)], "sample 'a': .cls must hold a class number"),
        ([("a.png", b"x"), ("a.cls", b"9" * 10**6)], "sample 'a': .cls must hold a class number"),
        ([("a.png", b"x"), ("a.json", b"[" * 10**6)], 'must hold an object with an integer "label"'),
        ([("a.png", b"x"), ("a.json", b"[1]")], 'must hold an object with an integer "label"'),
        ([("readme.txt", b"x")], "holds no samples"),
        ([], "holds no samples"),
    ],
)
def test_bad_samples_are_named(tmp_path, members, words):
    shard = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(ValueError, match=words):
        index_shard(shard, "s")


def test_links_and_oversized_members_are_refused(tmp_path):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    huge = tarfile.TarInfo("a.png")
    huge.size = 33 * 2**20
    for info, words in [(link, "is a link"), (huge, "has 34603008 bytes")]:
        with tarfile.open(tmp_path / "s.tar", "w") as archive:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        assert words in reason(tmp_path / "s.tar")


def test_what_is_not_a_tar_is_refused(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"<html>404</html>" * 100)
    assert "not a tar archive" in reason(tmp_path / "s.tar")


def test_shards_are_indexed_once(tmp_path, monkeypatch):
    pattern = write_shards(tmp_path / "set", [7, 5])
    first = open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    monkeypatch.setattr("nnce_dist.data.opening.index_shard", None)  # a second pass over the shards would fail
    again = open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    assert again.digest == first.digest and len(again) == 12


def test_a_changed_shard_is_indexed_again(tmp_path):
    pattern = write_shards(tmp_path / "set", [7])
    first = open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    shard = Path(expand(pattern)[0])
    index = shard.with_name(shard.name + SUFFIX)
    index.write_bytes(index_shard(shard, "s").to_bytes())
    time.sleep(0.02)
    write_tar(
        shard,
        [(f"{n:06d}.{ext}", content) for n in range(7) for ext, content in [("png", picture(50 + n)), ("cls", b"2")]],
    )
    again = open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    assert again.digest != first.digest and again.label_counts.tolist() == [0, 0, 7, 0, 0]


def test_compressed_shards(tmp_path):
    pattern = write_shards(tmp_path / "set", [7])
    plain = open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    content = Path(expand(pattern)[0]).read_bytes()
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(content))
    assert open_stream(str(packed), SMALL, tmp_path / "cache", train=True).digest == plain.digest
    for damaged, words in [
        (gzip.compress(content)[:-9], "cut short"),
        (b"\x1f\x8b" + bytes(99), "damaged"),
        (content, "damaged"),
    ]:
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            open_stream(str(packed), SMALL, tmp_path / "cache", train=True)
    packed.write_bytes(gzip.compress(bytes(110 * 2**20), 1))
    with pytest.raises(ValueError, match="grows more than 100 times"):
        open_stream(str(packed), SMALL, tmp_path / "cache", train=True)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def _slow_write(final, log):
    def write(file):
        with open(log, "a") as counter:
            counter.write("x")
        time.sleep(0.2)
        file.write(b"whole")

    make_once(Path(final), write, deadline=10)


def test_one_of_several_processes_makes_a_cache_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_slow_write, args=(tmp_path / "entry", tmp_path / "log")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "x" and sorted(os.listdir(tmp_path)) == ["entry", "log"]


def test_a_crashed_writer_is_taken_over(tmp_path):
    (tmp_path / "entry.tmp").write_bytes(b"half of a longer earlier try")
    make_once(tmp_path / "entry", lambda file: file.write(b"whole"), deadline=1)
    assert (tmp_path / "entry").read_bytes() == b"whole" and os.listdir(tmp_path) == ["entry"]


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path / "entry", fail, deadline=1)
    assert os.listdir(tmp_path) == []


def test_waiting_for_another_writer_ends(tmp_path):
    def other_writer(file):
        with pytest.raises(TimeoutError, match="another process has been writing it"):
            make_once(tmp_path / "entry", lambda file: None, deadline=0.2)

    make_once(tmp_path / "entry", other_writer, deadline=1)


def test_another_writer_is_waited_for_as_long_as_it_writes(tmp_path):
    begun = threading.Event()

    def write_slowly(file):
        for _ in range(15):
            file.write(b"more")
            file.flush()
            begun.set()
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(make_once, tmp_path / "entry", write_slowly, 1)
        assert begun.wait(10)
        make_once(tmp_path / "entry", lambda file: pytest.fail("it is being written"), deadline=0.7)
        writer.result(10)
    assert (tmp_path / "entry").read_bytes() == b"more" * 15


def test_a_full_disk_is_named(tmp_path):
    def write(file):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(OSError, match="no space left for .*entry; free some or set data.cache_dir") as caught:
        make_once(tmp_path / "entry", write, deadline=1)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_plain_files_are_not_copied(shard, tmp_path):
    cache = ShardCache(tmp_path / "cache", FileStore(), deadline=1)
    blob, start = FileStore().peek(str(shard), 10)
    held = OpenFile(cache.hold(blob, blob.size))
    assert os.path.samefile(f"/proc/self/fd/{held.descriptor}", shard) and not (tmp_path / "cache").exists()
    assert start == shard.read_bytes()[:10]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("pipe:cat a.tar", "not from pipe: addresses"),
        ("http://host/a.tar", "not from http: addresses"),
        ("file://host/a.tar", "another host"),
        ("a-*.tar", "write braces"),
        ("a-{0..3.tar", "braces do not match"),
        ("{a,a}.tar", "more than once"),
        ("a-{0..9999999999}.tar", "more than 1000000 shards"),
        ("", "not the name of a shard"),
        ("folder/", "not the name of a shard"),
        ("folder", "a folder, not a shard"),
        ("none-{0..3}.tar", "none-0.tar: no such file"),
        ("empty.tar", "the shard is empty"),
        ("s3://bucket", "write s3://bucket/key"),
        ("{a.tar,s3://b/c.tar}", "may not mix"),
    ],
)
def test_bad_patterns(tmp_path, monkeypatch, pattern, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.tar").touch()
    with pytest.raises((ValueError, OSError), match=words) as caught:
        open_stream(pattern, SMALL, tmp_path / "cache", train=True)
    assert "\n" not in str(caught.value)


def test_file_addresses_are_paths(tmp_path):
    pattern = write_shards(tmp_path / "a set", [3])
    address = "file://" + pattern.replace(" ", "%20")
    sources = [open_stream(where, SMALL, tmp_path / "cache", train=True) for where in (pattern, address)]
    assert sources[0].digest == sources[1].digest


def test_braces():
    assert expand("x-{08..11}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]
    assert expand("s3://b/{a,c/d}.tar") == ["s3://b/a.tar", "s3://b/c/d.tar"]
