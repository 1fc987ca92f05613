"""The stream of batches: exact, resumable, decoded right.  Run: pytest tests/unit/test_stream.py"""

import dataclasses
import io
import os
import pickle
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from shard_files import picture, write_shards, write_tar

from nnce_dist.config.schema import Data
from nnce_dist.data import images, pictures
from nnce_dist.data.check import check
from nnce_dist.data.images import decode
from nnce_dist.data.pictures import to_unit
from nnce_dist.data.shards import flips, order
from nnce_dist.data.stream import open_stream

SMALL = Data(num_classes=5, image_size=16, loader_workers=0)
REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenet64"
needs_photographs = pytest.mark.skipif(not REAL.is_dir(), reason="the photographs of ../shared/data are not here")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """23 pictures in 4 uneven shards; gives the pattern."""
    return write_shards(tmp_path_factory.mktemp("set"), [9, 1, 6, 7])


@pytest.fixture
def opened(shards, tmp_path):
    return lambda train=True, **changes: open_stream(
        shards, dataclasses.replace(SMALL, **changes), tmp_path / "cache", train
    )


def global_batch(seed, start, size, num_samples):
    """The ids at some global positions of the uniform order."""
    epochs = range(start // num_samples, (start + size - 1) // num_samples + 1)
    first = epochs.start * num_samples
    return np.concatenate([order(seed, epoch, num_samples) for epoch in epochs])[start - first : start - first + size]


def take(source, count, *args, **kwargs):
    batches = list(islice(source.batches(*args, **kwargs), count))
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.labels for batch in batches])


def unit(pixels):
    return torch.from_numpy(to_unit(pixels.numpy()))


def test_raw_pictures_are_those_that_were_stored(opened):
    pixels, labels = opened(train=False).raw()
    for number in range(23):
        stored = np.asarray(Image.open(io.BytesIO(picture(number))))
        assert np.array_equal(pixels[number].numpy().transpose(1, 2, 0), stored)
    assert labels.tolist() == [number % 5 for number in range(23)]
    some, _ = opened(train=False).raw([22, 3])
    assert torch.equal(some, pixels[[22, 3]])


def test_batches_follow_the_order_with_flips_of_their_positions(opened):
    source = opened()
    pixels, labels = source.raw()
    x, y = take(source, 7, seed=11, start_samples_seen=0, global_batch=8)
    ids, mirrored = global_batch(11, 0, 56, 23), flips(11, range(56))
    expected = torch.stack([pixels[n].flip(-1) if flip else pixels[n] for n, flip in zip(ids, mirrored, strict=True)])
    assert torch.equal(x, unit(expected)) and torch.equal(y, labels[ids])
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and 20 < mirrored.sum() < 36


def test_unit_range_is_the_inverse_of_the_rounding_to_pixels():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = unit(pixels)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal((127.5 * x + 128).clip(0, 255).to(torch.uint8), pixels)


def test_flips_only_in_training_and_if_wanted(opened):
    for source in (opened(flip=False), opened(train=False)):
        pixels, _ = source.raw()
        x, _ = take(source, 1, seed=11, start_samples_seen=0, global_batch=23)
        assert {tuple(row) for row in x.flatten(1).tolist()} == {tuple(row) for row in unit(pixels).flatten(1).tolist()}
    assert torch.equal(x, unit(pixels))  # held-out data come in the order of the shards


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_ranks_and_threads_give_the_same_global_batches_from_any_position(opened, world_size, threads):
    x, y = take(opened(), 9, seed=4, start_samples_seen=0, global_batch=6)
    source = opened(loader_workers=threads)
    ranks = [take(source, 5, 4, 4 * 6, 6, rank, world_size) for rank in range(world_size)]
    joined = torch.stack([xs.view(5, -1, 3, 16, 16) for xs, _ in ranks], 1).reshape(30, 3, 16, 16)
    labels = torch.stack([ys.view(5, -1) for _, ys in ranks], 1).reshape(30)
    assert torch.equal(joined, x[24:]) and torch.equal(labels, y[24:])


def test_large_sets_are_decoded_on_the_fly_with_the_same_result(opened, monkeypatch):
    kept = take(opened(), 5, 1, 0, 8)
    monkeypatch.setattr(pictures, "MEMORY_BOUND", 1000)
    source = opened(loader_workers=2)
    assert source._pictures._kept is None
    assert all(torch.equal(a, b) for a, b in zip(kept, take(source, 5, 1, 0, 8), strict=True))


def test_batches_own_their_memory(opened):
    source = opened(flip=False)
    before, _ = source.raw()
    next(source.batches(0, 0, 23)).x.zero_()
    source.raw()[0].zero_()
    assert torch.equal(source.raw()[0], before)


def test_wrong_divisions_and_small_sets_fail_at_once(opened):
    with pytest.raises(ValueError, match="23 samples are fewer than one global batch of 24"):
        opened().batches(0, 0, 24)
    with pytest.raises(ValueError, match="cannot be shared equally by 3 workers"):
        opened().batches(0, 0, 8, 0, 3)


def test_an_abandoned_stream_stops_its_threads(opened, monkeypatch):
    def workers():
        return [thread for thread in threading.enumerate() if thread.name == "decode"]

    slow = threading.Event()
    monkeypatch.setattr(pictures, "decode", lambda *picture: slow.wait(0.02) or np.zeros((3, 16, 16), np.uint8))
    batches = opened(loader_workers=2).batches(0, 0, 4)
    next(batches)
    working = workers()
    batches.close()
    for thread in working:
        thread.join(5)
    assert working and not workers()


def test_statistics(opened):
    source = opened()
    assert len(source) == 23 and source.num_classes == 5 and source.label_counts.tolist() == [5, 5, 5, 4, 4]


def test_a_webdataset_pipeline_can_start_with_the_exact_order(opened):
    source = opened()
    decoded = wds.DataPipeline(
        source.first_stage(seed=8, start_samples_seen=30),
        wds.decode("rgb8"),
        wds.to_tuple("png", "cls"),
        wds.batched(5),
    )
    pixels, labels = next(iter(decoded))
    ids = global_batch(8, 30, 5, 23)
    expected, classes = source.raw(ids)
    assert np.array_equal(np.stack(pixels).transpose(0, 3, 1, 2), expected.numpy()) and list(labels) == classes.tolist()
    sample = next(iter(source.first_stage(seed=8, start_samples_seen=30)))
    assert (
        sample["__key__"] == f"{ids[0]:06d}"
        and sample["__url__"].endswith(".tar")
        and sample["png"] == picture(int(ids[0]))
    )


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_members_that_webdataset_would_unpickle_are_never_seen(tmp_path):
    attack, torch_file = pickle.dumps(Attack(tmp_path / "ran")), io.BytesIO()
    torch.save(Attack(tmp_path / "ran"), torch_file)
    members = [("a.png", picture(0)), ("a.cls", b"3"), ("a.pyd", attack), ("a.pickle", attack)]
    write_tar(tmp_path / "a.tar", [*members, ("a.pth", torch_file.getvalue()), ("b.pkl", attack)])
    source = open_stream(str(tmp_path / "a.tar"), SMALL, tmp_path / "cache", train=True)
    sample = next(iter(wds.DataPipeline(source.first_stage(0), wds.decode())))
    assert sorted(sample) == ["__key__", "__url__", "cls", "png"] and len(source) == 1
    assert not (tmp_path / "ran").exists()
    list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode().slice(1))
    assert (tmp_path / "ran").exists()  # the attack works where it is let in


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_workers_and_ranks_keep_the_order(opened, num_workers):
    source = opened()
    ranks = [
        wds.WebLoader(source.first_stage(8, 3, rank, 2), batch_size=None, num_workers=num_workers) for rank in range(2)
    ]
    keys = [[int(sample["__key__"]) for sample in islice(iter(loader), 25)] for loader in ranks]
    assert np.array_equal(np.array(keys).T.ravel(), global_batch(8, 3, 50, 23))


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("RGB", "JPEG")]
)
def test_pictures_of_other_modes_become_rgb(mode, form):
    encoded = picture(1, 16, mode, form)
    pixels = decode(encoded, 16, False, "x")
    stored = np.asarray(Image.open(io.BytesIO(encoded)))
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    if mode == "L":
        assert all(np.array_equal(channel, stored) for channel in pixels)
    if mode in ("RGBA", "RGB"):
        assert np.array_equal(pixels, stored[..., :3].transpose(2, 0, 1))


def png(image, **options):
    return saved(image, "PNG", **options)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def by_pil(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [16, 37])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_the_pixels_of_pil(subsampling, progressive, size, mode, monkeypatch):
    rng = np.random.default_rng(size)
    for quality in (40, 75, 95):
        image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((size, size)).convert(mode)
        encoded = saved(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", lambda *args, **options: pytest.fail("this was to be fast"))
            pixels = decode(encoded, size, False, "x")
        assert np.array_equal(pixels, by_pil(encoded))
        with monkeypatch.context() as patch:
            patch.setattr(images, "_turbo_jpeg", lambda *arguments: None)
            slow = decode(encoded, 8, True, "x")
        assert np.array_equal(decode(encoded, 8, True, "x"), slow)


@pytest.mark.parametrize(
    ("encoded", "resize", "words"),
    [
        (picture(1, 20), False, "x: the picture is 20x20, not 16x16; set data.resize=true"),
        (saved(Image.new("RGB", (32, 8)), "JPEG"), False, "x: the picture is 32x8, not 16x16; set data.resize=true"),
        (png(Image.new("1", (9_000, 9_000))), True, "9000x9000 is more than"),
        (saved(Image.new("RGB", (9_000, 9_000)), "JPEG", quality=1), True, "9000x9000 is more than"),
        (png(Image.new("1", (20_000, 20_000))), True, "decompression bomb"),
        (png(Image.new("I;16", (16, 16))), False, "mode 'I;16' .* 8 bits"),
        (b"not a picture", False, "x: not a readable JPEG or PNG"),
        (picture(1)[:-200], False, "x: not a readable JPEG or PNG"),
        (picture(1, form="JPEG")[:-20], False, "x: not a readable JPEG or PNG"),
        (picture(1, form="GIF"), False, "x: not a readable JPEG or PNG"),
    ],
)
def test_bad_pictures_are_refused(encoded, resize, words):
    with pytest.raises(ValueError, match=words) as caught:
        decode(encoded, 16, resize, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "form"), [("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "JPEG")])
def test_whatever_is_wrong_with_a_picture_the_line_names_it(mode, form):
    rng, good, refused = np.random.default_rng(0), picture(1, 16, mode, form), 0
    for _ in range(150):
        damaged = bytearray(good)
        damaged[rng.integers(0, 100)] ^= rng.integers(1, 256)
        try:
            decode(bytes(damaged[: rng.integers(1, 2 * len(good))]), 16, False, "here")
        except ValueError as error:
            assert str(error).startswith("here: ") and "\n" not in str(error)
            refused += 1
    assert refused > 75


def test_resizing_averages_the_centred_square():
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, 2:10] = np.random.default_rng(0).integers(0, 64, (8, 8, 3)) * 4
    expected = pixels[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(decode(png(Image.fromarray(pixels)), 4, True, "x").transpose(1, 2, 0) - expected).max() <= 0.5


def broken_set(folder, number, content, extension="png"):
    """23 good samples of which one has another member; gives the pattern."""
    members = [(f"{n:06d}.{e}", c) for n in range(23) for e, c in (("png", picture(n)), ("cls", str(n % 5).encode()))]
    write_tar(folder / "b.tar", [(name, content if name == f"{number:06d}.{extension}" else c) for name, c in members])
    return str(folder / "b.tar")


@pytest.mark.parametrize(
    ("content", "extension", "words"),
    [
        (picture(1, 20), "png", r"b.tar: sample '000007': the picture is 20x20, not 16x16"),
        (b"5", "cls", r"b.tar: sample '000007' has label 5, outside 0..4; set data.num_classes"),
        (b"-1", "cls", r"b.tar: sample '000007' has label -1, outside 0..4"),
        (b"garbage", "png", r"b.tar: sample '000007': not a readable JPEG or PNG"),
    ],
)
def test_bad_samples_are_named_by_the_stream_and_by_the_check(tmp_path, content, extension, words):
    pattern = broken_set(tmp_path, 7, content, extension)
    with pytest.raises(ValueError, match=words):
        open_stream(pattern, dataclasses.replace(SMALL, loader_workers=2), tmp_path / "cache", True).batches(
            0, 0, 23
        ).__next__()
    with pytest.raises(ValueError, match=words):
        check(pattern, SMALL)


def test_check_looks_at_every_file_and_passes_good_sets(shards, tmp_path):
    check(shards, SMALL)
    with pytest.raises(FileNotFoundError, match="a-004.tar: no such file"):
        check(shards.replace("003}", "004}"), SMALL)
    write_tar(tmp_path / "cut.tar", [("a.png", picture(0)), ("a.cls", b"0")])
    os.truncate(tmp_path / "cut.tar", 1536)
    with pytest.raises(ValueError, match="cut short"):
        check(str(tmp_path / "cut.tar"), SMALL)


def test_check_of_the_beginning_of_a_large_shard(tmp_path):
    members = [(f"{n:06d}.{e}", c) for n in range(700) for e, c in (("png", picture(n % 9, 40)), ("cls", b"1"))]
    large = write_tar(tmp_path / "large.tar", members)
    assert large.stat().st_size > 2**22
    check(str(large), dataclasses.replace(SMALL, image_size=40))
    with pytest.raises(ValueError, match="sample '000000': the picture is 40x40"):
        check(str(large), SMALL)


@needs_photographs
def test_held_out_photographs(tmp_path):
    val = open_stream(f"{REAL}/val-{{000000..000001}}.tar", Data(num_classes=200), tmp_path, train=False)
    pixels, labels = val.raw(range(0, 2000, 10))
    assert len(val) == 2000 and val.label_counts.tolist() == [10] * 200
    assert pixels.shape == (200, 3, 64, 64) and 80 < pixels.float().mean() < 160 and len(labels.unique()) > 100


@needs_photographs
@pytest.mark.slow
@pytest.mark.parametrize(("part", "last", "count", "num_grey"), [("train", 16, 17_000, 287), ("val", 1, 2_000, 36)])
def test_all_photographs_decode_and_the_grey_ones_become_rgb(tmp_path, part, last, count, num_grey):
    data = Data(num_classes=200, loader_workers=0)
    source = open_stream(f"{REAL}/{part}-{{000000..{last:06d}}}.tar", data, tmp_path, train=False)
    encoded = (sample["jpg"] for sample in islice(source.first_stage(0), count))
    grey = [n for n, content in enumerate(encoded) if Image.open(io.BytesIO(content)).mode == "L"]
    pixels, _ = source.raw()
    assert source.label_counts.tolist() == [count // 200] * 200
    assert pixels.shape == (count, 3, 64, 64) and len(grey) == num_grey
    assert all((pixels[n] == pixels[n][:1]).all() for n in grey)
