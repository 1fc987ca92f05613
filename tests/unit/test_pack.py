"""Pictures into shards: lossless, the same bytes every time, going on where it stopped.

Run: python -m pytest tests/unit/test_pack.py
"""

import gzip
import io
import itertools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from shard_files import picture, write_tar

from nnce_dist.config.schema import S3, Data
from nnce_dist.data import synthetic
from nnce_dist.data.images import decode, encode_png
from nnce_dist.data.index import SUFFIX, ShardIndex
from nnce_dist.data.pack import pack
from nnce_dist.data.source import DESCRIPTION, Source, labelled
from nnce_dist.data.sources import open_source
from nnce_dist.data.store import expand
from nnce_dist.data.stream import open_stream

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenet64"
SMALL = Data(num_classes=5, image_size=16, loader_workers=0)


def noise(count, identity="noise"):
    return Source([labelled(f"picture {n}", picture(n), n % 5) for n in range(count)], identity, 5)


def opened(place, labels=None):
    return open_source(str(place), labels, S3())


def stored(pattern):
    """Pictures and labels as webdataset reads them."""
    read = [
        (sample.get("png") or sample["jpg"], int(sample["cls"]))
        for sample in wds.WebDataset(pattern, shardshuffle=False)
    ]
    return [content for content, _ in read], [label for _, label in read]


def contents(pattern):
    return [Path(url).read_bytes() for url in expand(pattern)]


@pytest.fixture
def folder(tmp_path):
    """Three classes of four pictures, in two formats and one of them deeper; and a file that is no picture."""
    for number, (name, (form, suffix)) in enumerate(
        itertools.product(["cat", "ant", "bee"], [("PNG", "png"), ("JPEG", "JPEG"), ("JPEG", "jpg"), ("PNG", "jpeg")])
    ):
        path = tmp_path / "pictures" / name / "deeper" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, form=form))
    (tmp_path / "pictures" / "ant" / "boxes.txt").write_text("0 0 1 1")
    return tmp_path / "pictures"


def write_npz(path, pixels, labels, save=np.savez):
    """Pixels (N, S, S, 3) and classes from 0, in the downsampled-ImageNet format."""
    save(path, data=pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), labels=labels + 1, mean=pixels.mean(0))
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)


def test_packing_is_deterministic_indexed_and_readable_by_webdataset(tmp_path):
    patterns = [pack(noise(23), tmp_path / name / "100%", 10) for name in ("one", "two")]
    assert contents(patterns[0]) == contents(patterns[1]) and len(contents(patterns[0])) == 3
    assert stored(patterns[0]) == ([picture(n) for n in range(23)], [n % 5 for n in range(23)])
    source = open_stream(patterns[0], SMALL, tmp_path / "cache", train=False)
    assert len(source) == 23 and not (tmp_path / "cache").exists()  # the index beside the shards was enough


def test_an_image_folder(folder, tmp_path):
    source = opened(folder)
    assert (source.class_names, source.num_classes, source.left_out) == (("ant", "bee", "cat"), 3, "1 .txt")
    pattern = pack(source, tmp_path / "set", 5)
    pictures, labels = stored(pattern)
    paths = [path for path in folder.rglob("*.*") if path.suffix != ".txt"]
    expected = {path.read_bytes(): source.class_names.index(path.parts[-3]) for path in paths}
    assert len(pictures) == 12 and dict(zip(pictures, labels, strict=True)) == expected
    assert labels != sorted(labels) and pictures == stored(pack(opened(folder), tmp_path / "again", 12))[0]
    described = json.loads((tmp_path / "set" / DESCRIPTION).read_text())
    assert described["class_names"] == ["ant", "bee", "cat"] and described["num_samples"] == 12


def test_members_are_named_after_their_content(folder, tmp_path):
    pattern = pack(opened(folder), tmp_path / "set", 12)
    for sample in wds.WebDataset(pattern, shardshuffle=False):
        (form,) = {"png", "jpg"} & set(sample)
        assert Image.open(io.BytesIO(sample[form])).format == {"png": "PNG", "jpg": "JPEG"}[form]


@pytest.mark.parametrize(
    ("name", "text", "class_names"),
    [
        ("l.csv", "file,class\ncat/deeper/0.png,2\nbee/deeper/9.JPEG,0\n", ()),
        ("l.csv", "class,file\nzebra,cat/deeper/0.png\nasp,bee/deeper/9.JPEG\n", ("asp", "zebra")),
        ("l.json", '{"labels": [["cat/deeper/0.png", 2], ["bee/deeper/9.JPEG", 0]]}', ()),
    ],
)
def test_labels_from_a_file(folder, tmp_path, name, text, class_names):
    (tmp_path / name).write_text(text)
    source = opened(folder, tmp_path / name)
    pictures, labels = stored(pack(source, tmp_path / "set", 12))
    high = 1 if class_names else 2
    expected = {picture(0): high, picture(9, form="JPEG"): 0}
    assert dict(zip(pictures, labels, strict=True)) == expected and source.class_names == class_names
    assert source.num_classes == high + 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_downsampled_imagenet_in_several_files(tmp_path, pixels, save):
    labels = np.random.default_rng(1).integers(0, 1000, 50)
    (tmp_path / "npz").mkdir()
    for number, (start, stop) in {1: (0, 20), 2: (20, 23), 10: (23, 50)}.items():
        write_npz(tmp_path / f"npz/train_data_batch_{number}.npz", pixels[start:stop], labels[start:stop], save)
    for name, place in [("whole", "npz"), ("named", "npz/train_data_batch_{1,2,10}.npz")]:
        source = opened(tmp_path / place)
        read, classes = stored(pack(source, tmp_path / name, 8))
        decoded = np.stack([decode(content, 16, False, "").transpose(1, 2, 0) for content in read])
        assert np.array_equal(decoded, pixels) and classes == labels.tolist()
    assert source.num_classes == labels.max() + 1


def test_a_shard_set_is_cut_anew(tmp_path, folder):
    whole = pack(opened(folder), tmp_path / "whole", 12)
    first, second = (pack(opened(folder), tmp_path / name, size) for name, size in [("fives", 5), ("fours", 4)])
    source = opened(first)
    assert source.class_names == ("ant", "bee", "cat") and len(source.samples) == 12
    assert contents(pack(source, tmp_path / "again", 12)) == contents(whole)
    for url in expand(second):
        Path(url + ".gz").write_bytes(gzip.compress(Path(url).read_bytes()))
    assert contents(pack(opened(second + ".gz"), tmp_path / "gz", 12)) == contents(whole)
    assert source.identity != opened(second).identity


def test_a_shard_set_keeps_all_members_and_must_fit_its_indexes(tmp_path):
    rows = [("a", b'{"label": 3, "caption": "x"}'), ("b", b'{"label": 0}')]
    members = [
        (f"{key}.{form}", content) for key, text in rows for form, content in [("png", picture(0)), ("json", text)]
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    pattern = pack(opened(shard), tmp_path / "set", 1)
    assert [sample["json"] for sample in wds.WebDataset(pattern, shardshuffle=False)] == [text for _, text in rows]
    assert opened(shard).num_classes == 4
    (url, _) = expand(pattern)
    content = bytearray(Path(url).read_bytes())
    content[600] ^= 1
    index = Path(url + SUFFIX)
    Path(url).write_bytes(content)
    os.utime(index)
    with pytest.raises(ValueError, match=f"^{url}: not what its index tells"):
        pack(opened(pattern), tmp_path / "again", 2)


def test_pictures_are_resized_as_the_stream_would(tmp_path):
    sizes = [16, 40, 16]
    wide = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50), dtype=np.uint8)).save(wide, "JPEG")
    pictures = [*(picture(n, size) for n, size in enumerate(sizes)), wide.getvalue()]
    source = Source([labelled(str(n), content, 1) for n, content in enumerate(pictures)], "four", 5)
    resized, _ = stored(pack(source, tmp_path / "set", 10, image_size=16))
    assert resized[0] == pictures[0] and resized[2] == pictures[2]  # untouched
    for before, after in zip(pictures, resized, strict=True):
        assert np.array_equal(decode(before, 16, True, ""), decode(after, 16, False, ""))


class Stopping(list):
    """Samples that can be read up to a certain one."""

    def __init__(self, samples, end):
        super().__init__(samples)
        self.end, self.read = end, []

    def __getitem__(self, part):
        self.read.append(part.start)
        if part.stop > self.end:
            raise RuntimeError("power cut")
        return super().__getitem__(part)


def test_a_pack_goes_on_where_it_stopped(tmp_path):
    whole = contents(pack(noise(50), tmp_path / "whole", 10))
    samples = Stopping(noise(50).samples, 30)
    with pytest.raises(RuntimeError):
        pack(Source(samples, "noise", 5), tmp_path / "set", 10)
    indexes = sorted((tmp_path / "set").glob(f"*{SUFFIX}"))
    assert len(indexes) == 3 and len(os.listdir(tmp_path / "set")) == 7
    indexes[1].unlink()  # as if killed between a shard and its index
    (tmp_path / "set" / f"shard-000003.tar.{'0' * 32}.tmp").write_bytes(b"half")
    samples, progress = Stopping(samples, 50), []
    pattern = pack(Source(samples, "noise", 5), tmp_path / "set", 10, on_progress=progress.append)
    assert samples.read == [10, 30, 40] and progress == [20, 30, 40, 50]
    assert contents(pattern) == whole and len(os.listdir(tmp_path / "set")) == 11


def test_another_source_is_refused(tmp_path):
    pack(noise(9), tmp_path / "set", 5)
    for source, size, words in [
        (noise(9, "other"), 5, r"another source or other settings \(source in dataset.json\)"),
        (noise(9), 4, r"\(shards, shard_size in"),
    ]:
        with pytest.raises(ValueError, match=words):
            pack(source, tmp_path / "set", size)
    (tmp_path / "other").mkdir()
    write_tar(tmp_path / "other" / "mine.tar", [])
    with pytest.raises(ValueError, match="holds shards .*mine.tar.* but no dataset.json"):
        pack(noise(9), tmp_path / "other", 5)


class Unpickled:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def bad_npz(path, **arrays):
    good = {"data": np.zeros((4, 48), np.uint8), "labels": np.arange(1, 5)}
    np.savez(path, **{name: array for name, array in (good | arrays).items() if array is not None})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": None}, "labels.npy"),
        ({"data": np.zeros((4, 48))}, "float64 in rows of 48"),
        ({"data": np.zeros((4, 50), np.uint8)}, "uint8 in rows of 50"),
        ({"data": np.zeros((4, 4, 4, 3), np.uint8)}, "values to unpack"),
        ({"labels": np.arange(4)}, "from 0"),
        ({"labels": np.arange(1, 6)}, r"labels are int64 \(5,\)"),
        ({"labels": np.arange(1, 5) / 2}, "labels are float64"),
        ({"labels": np.array([Unpickled()] * 4)}, "allow_pickle=False"),
        ({"data": np.array([Unpickled()] * 4)}, "unpack"),
        ({"data": np.array([[Unpickled()] * 48] * 4)}, "object in rows of 48"),
    ],
)
def test_npz_of_another_layout_is_refused_and_never_unpickled(tmp_path, monkeypatch, arrays, words):
    monkeypatch.chdir(tmp_path)
    bad_npz("bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"^bad.npz: not of the downsampled-ImageNet format .*{words}.*") as caught:
        opened("bad.npz")
    assert "\n" not in str(caught.value) and os.listdir() == ["bad.npz"]


def test_damaged_npz_files_are_named(tmp_path, pixels):
    whole = write_npz(tmp_path / "whole.npz", pixels, np.zeros(50, int)).read_bytes()
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Unpickled()))
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    flipped = bytearray(whole)
    flipped[20_000] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("pickle", "cut", "flipped"):
        with pytest.raises(ValueError, match=f"{name}.npz: not of the downsampled-ImageNet format"):
            pack(opened(tmp_path / f"{name}.npz"), tmp_path / name, 50)
    write_npz(tmp_path / "other.npz", pixels[:, :8, :8], np.zeros(50, int))
    with pytest.raises(ValueError, match=r"other.npz: pictures of 8 pixels a side, but .*whole.npz has 16"):
        opened(tmp_path / "{whole,other}.npz")


def test_bad_sources_are_told_in_one_line(folder, tmp_path, pixels):
    (tmp_path / "sets").mkdir()
    for name in ("train_data_batch_1", "val_data"):
        write_npz(tmp_path / "sets" / f"{name}.npz", pixels, np.zeros(50, int))
    (tmp_path / "l.csv").write_text("name,label\nx.png,1\n")
    (tmp_path / "l.json").write_text("[1, 2]")
    (tmp_path / "empty").mkdir()
    (folder / "dog").mkdir()
    for place, labels, words in [
        (tmp_path / "nowhere", None, "no such folder"),
        (tmp_path / "empty", None, "no pictures (.jpg, .jpeg, .png) in sub-folders"),
        (folder / "cat" / "deeper", None, "no pictures"),
        (folder, None, "no pictures (.jpg, .jpeg, .png) in the class 'dog'"),
        (folder, tmp_path / "l.csv", "not a list of labels"),
        (folder, tmp_path / "l.json", "not a list of labels"),
        (tmp_path / "sets", None, "files of several sets (train_data_batch_*.npz, val_data.npz)"),
        ("http://host/a.npz", None, "not from http: addresses"),
    ]:
        with pytest.raises((ValueError, OSError), match=re.escape(words)) as caught:
            opened(place, labels)
        assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named(folder, tmp_path):
    path = folder / "ant" / "deeper" / "5.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"^{path}: not a readable JPEG or PNG picture"):
        pack(opened(folder), tmp_path / "set", 4)
    with pytest.raises(ValueError, match="no braces"):
        pack(opened(folder), tmp_path / "set{}", 4)


def test_made_pictures_are_a_source(tmp_path):
    pattern = pack(synthetic.source(range(5, 305), seed=3), tmp_path / "set", 290)
    read, labels = stored(pattern)
    pictures, classes = synthetic.make(range(5, 305), 3)
    assert read == [encode_png(picture) for picture in pictures] and labels == classes.tolist()


def test_an_index_is_of_the_stored_shard(tmp_path):
    (url,) = expand(pack(noise(4), tmp_path / "set", 4))
    index = ShardIndex.from_bytes(Path(url + SUFFIX).read_bytes())
    assert index.stored_bytes == index.num_bytes == Path(url).stat().st_size and index.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs of ../shared/data are not here")
def test_photographs_cut_anew_and_halved(tmp_path):
    source = opened(REAL / "val-{000000..000001}.tar")
    same, half = (pack(source, tmp_path / str(size), 700, size) for size in (64, 32))
    before = stored(str(REAL / "val-{000000..000001}.tar"))
    assert stored(same) == before and len(contents(same)) == 3
    pictures, labels = stored(half)
    assert labels == before[1]
    for number in range(0, 2000, 50):
        expected = decode(before[0][number], 32, True, "")
        assert np.array_equal(decode(pictures[number], 32, False, ""), expected)
