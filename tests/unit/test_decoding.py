"""Processes that decode: the same pictures as without, whatever hits them.  Run: pytest tests/unit/test_decoding.py"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import command_line
from shard_files import picture, write_shards

from nnce_dist.config.schema import Data
from nnce_dist.data import decoding, pictures
from nnce_dist.data.decoding import Decoder, Decoders
from nnce_dist.data.images import decode
from nnce_dist.data.parallel import WorkerDiedError
from nnce_dist.data.stream import open_stream

SMALL = Data(num_classes=5, image_size=16, loader_workers=0)
ENCODED = [picture(seed, form=form) for seed in range(3) for form in ("PNG", "JPEG")]
PIXELS = np.stack([decode(one, 16, False, "") for one in ENCODED])


@pytest.fixture
def decoder():
    made = Decoder(len(ENCODED), 16, False)
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A stream of 23 pictures too many to be kept, with processes that are waited for; threads would do meanwhile."""
    shards = write_shards(tmp_path / "set", [9, 1, 6, 7])
    monkeypatch.setattr(pictures, "MEMORY_BOUND", 1000)
    monkeypatch.setattr(Decoder, "is_ready", True)
    return lambda **changes: open_stream(shards, dataclasses.replace(SMALL, **changes), tmp_path / "cache", True)


def children() -> set[int]:
    """The processes of this one that decode."""
    pids = set()
    for each in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            pids |= set(map(int, each.read_text().split()))
    return {pid for pid in pids if decoding.__name__ in command_line(pid)}


def test_pixels_are_those_of_decode(decoder):
    for some in (ENCODED, ENCODED[2:5]):
        pixels, refused = decoder.decode(some)
        assert not refused and np.array_equal(pixels, PIXELS[ENCODED.index(some[0]) :][: len(some)])


def test_what_decode_refuses_is_named_and_the_others_are_there(decoder):
    pixels, refused = decoder.decode([ENCODED[0], b"no picture", picture(0, size=20), ENCODED[3]])
    assert refused == [1, 2] and np.array_equal(pixels[[0, 3]], PIXELS[[0, 3]])


def test_a_killed_process_is_replaced(decoder):
    decoder.decode(ENCODED)
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    pixels, _ = decoder.decode(ENCODED)
    assert np.array_equal(pixels, PIXELS) and children() - {pid}


def test_one_that_dies_again_is_told_in_one_line(decoder, monkeypatch):
    monkeypatch.setattr(decoding, "__spec__", dataclasses.make_dataclass("Spec", ["name"])("nnce_dist.not_there"))
    decoder.decode(ENCODED)
    os.kill(children().pop(), signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="died 3 times over the same 6 .*data.loader_workers=0"):
        decoder.decode(ENCODED)


def test_files_where_it_is_started_do_not_pass_for_modules(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise RuntimeError('of somebody else')")
    monkeypatch.chdir(tmp_path)
    decoder = Decoder(1, 16, False)
    assert np.array_equal(decoder.decode(ENCODED[:1])[0], PIXELS[:1])
    decoder.close()


def test_one_that_is_closed_while_it_is_replaced_leaves_no_process(monkeypatch):
    decoder, end = Decoder(1, 16, False), Decoder._end
    decoder.decode(ENCODED[:1])
    closing = threading.Thread(target=decoder.close)
    monkeypatch.setattr(Decoder, "_end", lambda self: end(self) or closing.ident or closing.start() or time.sleep(0.2))
    os.kill(children().pop(), signal.SIGKILL)
    with suppress(EOFError):
        decoder.decode(ENCODED[:1])
    closing.join(20)
    assert not closing.is_alive() and not children()


def test_none_is_lent_while_it_starts():
    decoders = Decoders(lambda: Decoder(1, 16, False), 1)
    with decoders.lent() as first:
        assert first is None
    deadline = time.monotonic() + 20
    while first is None and time.monotonic() < deadline:
        time.sleep(0.02)
        with decoders.lent() as first:
            assert first is None or np.array_equal(first.decode(ENCODED[:1])[0], PIXELS[:1])
    decoders.close()
    assert first and not children()


@pytest.mark.parametrize(("workers", "world_size"), [(1, 1), (3, 2)])
def test_processes_give_the_same_batches(opened, workers, world_size):
    expected = list(islice(opened().batches(4, 24, 6), 8))
    streams = [opened(loader_workers=workers).batches(4, 24, 6, rank, world_size) for rank in range(world_size)]
    for whole in expected:
        parts = [next(stream) for stream in streams]
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
    assert len(children()) == workers * world_size
    for stream in streams:
        stream.close()
    assert not children()


def test_kills_between_batches_change_nothing(opened):
    expected, stream = islice(opened().batches(4, 0, 6), 12), opened(loader_workers=2).batches(4, 0, 6)
    for number, whole in enumerate(expected):
        if number % 3 == 1:
            os.kill(max(children()), signal.SIGKILL)
        assert torch.equal(next(stream).x, whole.x)
    stream.close()


def test_what_is_kept_decoded_needs_no_process(opened, monkeypatch):
    monkeypatch.setattr(pictures, "MEMORY_BOUND", 10**9)
    stream = opened(loader_workers=2).batches(0, 0, 6)
    next(stream)
    assert not children()
    stream.close()


ENDLESS = """
import os, sys, time
from nnce_dist.data.decoding import Decoder
decoder = Decoder(1, 16, False)
print(decoder._process.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_the_process_that_asks():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    asker = subprocess.Popen([sys.executable, "-c", ENDLESS], **pipes, text=True)
    pid = int(asker.stdout.readline())
    asker.kill()
    assert asker.communicate(timeout=20)[1] == ""  # of both, to the end
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
