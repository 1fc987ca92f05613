"""`nnce pack` and `nnce index` as people run them: on disk and S3, killed and started again.

Run: pytest tests/integration/test_data_commands.py
"""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from processes import MARK, marked, wait_until
from s3_servers import moto_server, only_credentials, s3_client

from nnce_dist.config.schema import S3, Data
from nnce_dist.data.index import SUFFIX, index_shard
from nnce_dist.data.set_index import set_url
from nnce_dist.data.store import expand, open_store
from nnce_dist.data.stream import open_stream

NNCE = str(Path(sys.executable).with_name("nnce"))
BUCKET = "sets"
COUNT, SIDE = 1500, 64
SLOW_ENOUGH = ["--processes", "2", "--shard-size", "50"]


@pytest.fixture(scope="module", autouse=True)
def credentials():
    with only_credentials("AKIADATACOMMANDS0000", "secret/of/the/data/commands+000000000000"):
        yield


@pytest.fixture(scope="module")
def endpoint():
    """A bucket of a real HTTP server."""
    with moto_server() as port:
        url = f"http://127.0.0.1:{port}"
        s3_client(url).create_bucket(Bucket=BUCKET)
        yield url


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Noise in two files of the downsampled-ImageNet format, 1,500 pictures of 7 classes; gives their folder."""
    folder = tmp_path_factory.mktemp("npz")
    rng = np.random.default_rng(0)
    for number, count in ((1, 600), (2, COUNT - 600)):
        pixels = rng.integers(0, 256, (count, 3 * SIDE**2), dtype=np.uint8)
        np.savez(folder / f"train_data_batch_{number}.npz", data=pixels, labels=1 + np.arange(count) % 7)
    return folder


def run(*words, timeout=120) -> subprocess.CompletedProcess:
    return subprocess.run([NNCE, *map(str, words)], capture_output=True, text=True, timeout=timeout)


def settings_of(finished: subprocess.CompletedProcess) -> tuple[str, int]:
    """The shard pattern and the number of classes that a pack printed."""
    assert finished.returncode == 0, finished.stderr
    return re.fullmatch(r"data.train='(.*)' data.num_classes=(\d+)\n", finished.stdout).groups()


def objects(place: str, endpoint: str) -> dict[str, bytes]:
    """Contents by name, of a folder or a prefix."""
    store = open_store([place], S3(endpoint_url=endpoint, addressing="path"))
    return {blob.url.rpartition("/")[2]: store.read(blob.url) for blob in store.objects(place)}


@pytest.fixture(scope="module")
def whole(batches, tmp_path_factory, endpoint):
    """What a pack in one process, never interrupted, writes."""
    out = tmp_path_factory.mktemp("whole") / "set"
    settings_of(run("pack", batches, out, "--processes", 1, "--shard-size", 50))
    return objects(str(out), endpoint)


def killed(words: list, begun, endpoint: str) -> None:
    """Starts a command, kills it without warning when `begun`, and waits until its processes are gone."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen([NNCE, *words], env=os.environ | {MARK: mark}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not begun() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL, "it ended before it could be killed"
    wait_until(lambda: not marked(mark), 10, "the end of the workers")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_killed_pack_goes_on(batches, whole, endpoint, tmp_path, where):
    out = f"s3://{BUCKET}/killed" if where == "s3" else str(tmp_path / "set")
    words = ["pack", str(batches), out, *SLOW_ENOUGH, "--endpoint-url", endpoint, "--addressing", "path"]
    killed(words, lambda: sum(name.endswith(SUFFIX) for name in objects(out, endpoint)) > 3, endpoint)
    left = objects(out, endpoint)
    indexed = [name for name in left if name.endswith(SUFFIX)]
    assert 3 < len(indexed) < 30
    assert all(left[name] == whole[name] for name in left)  # whole or not there at all, also shards without an index
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("set/*")}
    finished = run(*words)
    pattern, num_classes = settings_of(finished)
    assert objects(out, endpoint) == whole and num_classes == "7"
    assert all((tmp_path / "set" / name).stat().st_mtime_ns == times[name] for name in indexed if times)
    assert where == "s3" or sorted(os.listdir(out)) == sorted(whole)  # nothing unfinished is left
    data = Data(num_classes=7, image_size=SIDE, s3=S3(endpoint_url=endpoint, addressing="path"))
    assert len(open_stream(pattern, data, tmp_path / "cache", train=True)) == COUNT


def test_a_finished_pack_is_told_again_and_another_one_refused(batches, tmp_path):
    out = tmp_path / "set"
    first = run("pack", batches / "train_data_batch_1.npz", out)
    again = run("pack", batches / "train_data_batch_1.npz", out)
    assert settings_of(first) == settings_of(again) == (f"{out}/shard-{{000000..000000}}.tar", "7")
    other = run("pack", batches / "train_data_batch_2.npz", out)
    assert other.returncode == 2 and re.fullmatch(r"error: .*another source.*\n", other.stderr)
    for words, line in [
        ((tmp_path / "nowhere", out), f"error: {tmp_path}/nowhere: no such folder.*"),
        ((batches, batches / "set"), "error: .* lies within the source.*"),
        ((batches, "s3://"), "error: 's3:': write s3://bucket/prefix"),
    ]:
        bad = run("pack", *words)
        assert bad.returncode == 2 and re.fullmatch(f"{line}\n", bad.stderr), bad.stderr


def index_of(path: Path, stored_bytes: int | None = None) -> bytes:
    return index_shard(path, "shard", stored_bytes).to_bytes()


@pytest.mark.slow
def test_shards_of_others_are_indexed_on_s3(batches, endpoint, tmp_path):
    pattern, _ = settings_of(run("pack", batches / "train_data_batch_1.npz", tmp_path / "set", "--shard-size", 300))
    shards = sorted((tmp_path / "set").glob("*.tar"))
    compressed = gzip.compress(shards[1].read_bytes(), 1)
    store = s3_client(endpoint)
    for key, content in [("in/a.tar", shards[0].read_bytes()), ("in/b.tar.gz", compressed)]:
        store.put_object(Bucket=BUCKET, Key=key, Body=content)
    options = ("--endpoint-url", endpoint, "--addressing", "path", "--processes", 1)
    words = ("index", f"s3://{BUCKET}/in/{{a.tar,b.tar.gz}}", *options)
    first, again = run(*words), run(*words)
    assert first.stdout == "2 shards indexed, 0 had a valid index\n", first.stderr
    assert re.findall("^(.*): its index is there and valid$", again.stdout, re.M) == [
        f"s3://{BUCKET}/in/a.tar",
        f"s3://{BUCKET}/in/b.tar.gz",
    ]
    found = objects(f"s3://{BUCKET}/in", endpoint)
    assert found["a.tar" + SUFFIX] == index_of(shards[0]) and len(found) == 4
    assert found["b.tar.gz" + SUFFIX] == index_of(shards[1], len(compressed))
    cut = run("pack", words[1], tmp_path / "cut", "--shard-size", 300, *options)
    assert [Path(url).read_bytes() for url in expand(settings_of(cut)[0])] == [path.read_bytes() for path in shards]
    store.put_object(Bucket=BUCKET, Key="in/a.tar", Body=compressed[:999])
    bad = run(*words)
    assert bad.returncode == 2 and f"error: s3://{BUCKET}/in/a.tar: not a tar archive" in bad.stderr
    assert found == objects(f"s3://{BUCKET}/in", endpoint) | {"a.tar": found["a.tar"]}


@pytest.mark.slow
def test_a_killed_index_goes_on(batches, endpoint, tmp_path):
    pattern, _ = settings_of(run("pack", batches / "train_data_batch_1.npz", tmp_path / "set", "--shard-size", 6))
    indexes = sorted((tmp_path / "set").glob(f"*{SUFFIX}"))
    own = Path(set_url(expand(pattern)))
    whole = {path: path.read_bytes() for path in [*indexes, own]}
    own.unlink()
    for path in indexes:
        path.unlink()
    killed(["index", pattern], lambda: len(list((tmp_path / "set").glob(f"*{SUFFIX}"))) > 3, endpoint)
    there = [path for path in indexes if path.exists()]
    assert 3 < len(there) < 100 and all(path.read_bytes() == whole[path] for path in there)
    assert f"{100 - len(there)} shards indexed, {len(there)} had" in run("index", pattern).stdout
    assert {path: path.read_bytes() for path in [*indexes, own]} == whole  # the set's own is made last
