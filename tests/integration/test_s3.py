"""Shards behind an S3 server over HTTP, whole and failing.  Run: pytest tests/integration/test_s3.py"""

import dataclasses
import io
import logging
import multiprocessing
import pickle
import re
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from cache_files import in_use
from faulty_store import FaultyStore
from marks import slow
from s3_servers import KEY_ID, SECRET, only_credentials, s3_client

from nnce_dist.config.schema import S3, Config, Data
from nnce_dist.data import counters
from nnce_dist.data.cache import DamagedShardError
from nnce_dist.data.check import check
from nnce_dist.data.images import encode_png
from nnce_dist.data.pack import pack
from nnce_dist.data.set_index import MANY
from nnce_dist.data.sidecar import add_indexes
from nnce_dist.data.source import Source, labelled
from nnce_dist.data.store import expand, open_store
from nnce_dist.data.stream import open_stream
from nnce_dist.stages import preflight
from nnce_dist.stages.folder import claim, run_root
from nnce_dist.stages.manifest import write_manifest

BUCKET = "photos"
URL = f"s3://{BUCKET}/set/shard-000000.tar"
by_the_proxy = pytest.mark.parametrize("s3_port", ["moto"], indirect=True)  # which alone answers: one server will do


@pytest.fixture(scope="module", autouse=True)
def credentials():
    """A key in the environment that must never be seen again."""
    with only_credentials():
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Three shards of 32x32 noise on disk; gives their pattern."""
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(50))
    pictures = [labelled(str(n), encode_png(pixels), n % 4) for n, pixels in enumerate(noise)]
    return pack(Source(pictures, "noise", 4), tmp_path_factory.mktemp("local") / "set", 20)


@pytest.fixture(scope="module")
def bucket_port(local, s3_port):
    """The port of a real HTTP server that has the same shards in a bucket."""
    client = s3_client(f"http://127.0.0.1:{s3_port}")
    client.create_bucket(Bucket=BUCKET)
    for shard in Path(local).parent.glob("*.tar"):
        client.upload_file(str(shard), BUCKET, f"set/{shard.name}")
    client.put_object(Bucket=BUCKET, Key="empty.tar", Body=b"")
    return s3_port


@pytest.fixture
def store(bucket_port):
    """The bucket behind a proxy that can fail, a new one for each test: what ends late asks none but its own."""
    with FaultyStore(bucket_port) as proxy:
        yield proxy


@pytest.fixture
def has_checksums(request):
    """Whether the server sends the checksums that objects came with."""
    return "moto" in request.node.callspec.id


@pytest.fixture
def data(store):
    return Data(num_classes=4, image_size=32, s3=S3(endpoint_url=store.url, timeout=20, addressing="path"))


def impatient(data, seconds=2.5):
    return dataclasses.replace(data, s3=dataclasses.replace(data.s3, timeout=seconds))


def failure(kind, pattern, data, cache):
    """The one line of the error, and the seconds until it came."""
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        open_stream(pattern, data, cache, train=True)
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - start


def test_the_stream_from_s3_equals_the_stream_from_disk(local, store, data, tmp_path):
    pattern = f"s3://{BUCKET}/set/" + Path(local).name
    check(pattern, data)
    sources = [open_stream(where, data, tmp_path, train=True) for where in (local, pattern)]
    assert sources[0].digest == sources[1].digest
    here, there = (list(islice(source.batches(3, 16, 16), 8)) for source in sources)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.labels, b.labels)
    store.fail("nothing", 0)
    open_stream(pattern, data, tmp_path, train=True)
    assert store.requests == 3  # each shard is asked for its identity only; the copies are there
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_only_what_is_needed_soon_is_fetched_and_kept(store, data, tmp_path):
    """40 shards of which a cache holds 8; their indexes lie beside them."""
    noise = np.random.default_rng(1).integers(0, 256, (640, 32, 32, 3), dtype=np.uint8)
    pictures = [labelled(str(n), encode_png(pixels), n % 4) for n, pixels in enumerate(noise)]
    local = Path(pack(Source(pictures, "noise", 4), tmp_path / "set", 16))
    there, remote = open_store([URL], data.s3), f"s3://{BUCKET}/many/{local.name}"
    for path in local.parent.iterdir():
        there.put(f"s3://{BUCKET}/many/{path.name}", path)
    size = max(path.stat().st_size for path in local.parent.glob("*.tar"))
    small = dataclasses.replace(data, cache_bytes=8 * size, loader_workers=2)
    store.fail("nothing", 0)
    source, cache = open_stream(remote, small, tmp_path / "cache", train=True), tmp_path / "cache"
    assert store.whole_shards == 0  # the indexes tell what is in the shards
    expected = open_stream(str(local), small, tmp_path / "none", train=True)
    assert source.digest == expected.digest != open_stream(str(local), data, tmp_path / "none", train=True).digest
    pairs = zip(source.batches(3, 0, 4), expected.batches(3, 0, 4), strict=True)
    for number, (batch, other) in enumerate(islice(pairs, 320)):
        assert torch.equal(batch.x, other.x)
        assert in_use(cache) <= 8 * size
        assert number or store.whole_shards <= 9
    assert store.whole_shards <= 1.3 * 2 * 40  # two epochs


@pytest.mark.slow
def test_training_starts_and_goes_on_from_the_cache_while_the_store_is_away(local, store, data, tmp_path):
    pattern, lines = f"s3://{BUCKET}/set/" + Path(local).name, []
    before = list(islice(open_stream(pattern, data, tmp_path, train=True).batches(3, 0, 16), 8))
    store.fail("unavailable")
    impatiently = impatient(data)
    source = open_stream(pattern, impatiently, tmp_path, train=True, say=lines.append)
    after = list(islice(source.batches(3, 0, 16), 8))
    assert all(torch.equal(a.x, b.x) for a, b in zip(before, after, strict=True))
    assert len(lines) == 1 and "going on with the copies in" in lines[0] and store.url in lines[0]
    with pytest.raises(TimeoutError, match="no whole answer"):
        open_stream(pattern, impatiently, tmp_path / "empty", train=True)


@pytest.mark.slow
def test_loader_workers_read_from_the_store(local, store, data, tmp_path):
    pattern = f"s3://{BUCKET}/set/" + Path(local).name
    patient = dataclasses.replace(data, s3=dataclasses.replace(data.s3, timeout=60))
    source = open_stream(pattern, patient, tmp_path, train=True)
    stage = source.first_stage(8)
    loader = wds.WebLoader(stage, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for path in tmp_path.glob("*.tar"):  # of the pass that made the indexes
        path.unlink()
    keys = [sample["__key__"] for sample in islice(iter(loader), 50)]
    assert keys == [sample["__key__"] for sample in islice(stage, 50)] and len(list(tmp_path.glob("*.tar"))) == 3


@pytest.mark.slow
def test_processes_of_one_node_fetch_each_shard_once(store, data, tmp_path):
    pattern = f"s3://{BUCKET}/set/shard-{{000000..000002}}.tar"
    patient = dataclasses.replace(data, s3=dataclasses.replace(data.s3, timeout=60))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        opened = [pool.submit(open_stream, pattern, patient, tmp_path, True) for _ in range(3)]
        digests = {future.result(timeout=120).digest for future in opened}
    assert digests == {open_stream(pattern, patient, tmp_path, True).digest}
    assert store.whole_shards == 3  # each is downloaded once
    assert (
        sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".json")
        == [""] + [".npz"] * 3 + [".tar"] * 3
    )


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        slow("internal", "unavailable"),
        slow("unavailable", "unavailable"),
        slow("gateway", "unavailable"),
        ("slow down", "throttled"),
        slow("too many", "throttled"),
        slow("timeout", "stalled"),
        slow("reset", "disconnected"),
        ("cut", "truncated"),
        slow("short", "truncated"),
        ("flipped", "damaged"),
    ],
)
def test_passing_faults_are_survived_and_counted(store, data, tmp_path, local, fault, cause, has_checksums):
    if fault == "flipped" and not has_checksums:
        pytest.skip("this server keeps no checksums, so only the shard's index can tell")
    if fault == "short" and has_checksums:
        cause = "damaged"
    store.fail(fault, 2, whole_only=True)
    counted = counters.since_now()
    source = open_stream(URL, data, tmp_path, train=False)
    assert store.requests == 5  # identity, no index beside it, two failures, success
    retries = {name: total for name, total in counted().items() if name.startswith("retries/") and total}
    again = 1 if fault == "reset" else 2  # aiohttp itself asks again where a kept connection turns out to be closed
    assert retries == {f"retries/{cause}": again}
    expected = open_stream(local, data, tmp_path, train=False).raw(range(20))
    assert all(torch.equal(a, b) for a, b in zip(source.raw(), expected, strict=True))


@pytest.mark.slow
@by_the_proxy
@pytest.mark.parametrize("fault", ["silent", slow("stalled")])
def test_a_server_that_stalls_is_left_in_time(store, data, tmp_path, fault):
    store.fail(fault, 1)
    start = time.monotonic()
    assert len(open_stream(URL, impatient(data, 6), tmp_path, train=True)) == 20
    assert 1.9 < time.monotonic() - start < 8  # a third of the deadline is lost to the stall


@by_the_proxy
@pytest.mark.parametrize("fault", ["slow down", slow("internal"), slow("silent"), slow("cut"), slow("short")])
def test_lasting_faults_end_at_the_deadline(store, data, tmp_path, fault):
    store.fail(fault)
    line, seconds = failure(TimeoutError, URL, impatient(data), tmp_path)
    assert URL in line and store.url in line and "within 2.5 s" in line and "data.s3.timeout" in line
    tries = int(re.search(r"(\d+) tries", line)[1])
    assert seconds < 8 and tries - 1 <= store.requests <= tries  # no layer below repeats; the deadline may cut the last
    assert list(tmp_path.iterdir()) == []  # nothing half-read stays


@pytest.mark.slow
def test_a_store_that_gives_up_in_training_is_told_as_it_is(store, data, tmp_path):
    source = open_stream(URL, impatient(data), tmp_path, train=True)
    for copy in tmp_path.glob("*.tar"):
        copy.unlink()
    store.fail("unavailable")
    with closing(source.batches(0, 0, 4)) as batches, pytest.raises(TimeoutError, match=r"data\.s3\.timeout"):
        next(batches)


@by_the_proxy
@pytest.mark.parametrize(
    ("fault", "code", "advice"),
    [
        ("denied", "AccessDenied", "role or profile"),
        slow("signature", "SignatureDoesNotMatch", "role or profile"),
        slow("skewed", "RequestTimeTooSkewed", "clock"),
    ],
)
def test_denied_fails_at_once_and_says_what(store, data, tmp_path, fault, code, advice):
    store.fail(fault)
    line, seconds = failure(PermissionError, URL, data, tmp_path)
    assert store.requests == 1 and seconds < 5
    assert code in line and "s3:GetObject on bucket 'photos', key 'set/shard-000000.tar'" in line and advice in line


@by_the_proxy
def test_one_denied_shard_stops_the_others(store, data, tmp_path):
    store.fail("denied")
    failure(PermissionError, f"s3://{BUCKET}/set/shard-{{000000..000099}}.tar", data, tmp_path)
    assert store.requests <= 1 + 40  # a listing, and of 100 those that were on their way


@pytest.mark.slow
def test_expired_credentials_are_looked_up_again_once(store, data, tmp_path):
    store.fail("expired", 1)
    assert len(open_stream(URL, data, tmp_path / "a", train=True)) == 20 and store.requests == 4
    store.fail("expired")
    line, _ = failure(PermissionError, URL, data, tmp_path / "b")
    assert store.requests == 2 and "have expired (ExpiredToken); log in again" in line


@pytest.fixture
def source_of_keys(tmp_path, monkeypatch):
    """Makes a program the only source of credentials: the second time, it does what is given."""

    def make(second_time):
        keys = f'{{"Version": 1, "AccessKeyId": "{KEY_ID}", "SecretAccessKey": "{SECRET}"}}'
        asked, program, settings = (tmp_path / name for name in ("asked", "keys.sh", "config"))
        program.write_text(f"if [ -e {asked} ]; then {second_time}; fi\ntouch {asked}\necho '{keys}'\n")
        settings.write_text(f"[default]\ncredential_process = /bin/sh {program}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    return make


@pytest.mark.slow
@by_the_proxy
@pytest.mark.parametrize(
    ("second_time", "kind", "words"),
    [
        (
            "echo out of luck >&2; exit 1",
            PermissionError,
            r"their source gives no new ones \(.*out of luck.*\); log in",
        ),
        ("exec sleep 12", TimeoutError, "within 5 s .*no new credentials in place of expired ones"),
    ],
)
def test_credentials_that_cannot_be_looked_up_again_are_told_in_time(
    store, data, tmp_path, source_of_keys, second_time, kind, words
):
    source_of_keys(second_time)
    store.fail("expired")
    line, seconds = failure(kind, URL, impatient(data, 5), tmp_path / "cache")  # s, in which a program starts twice
    assert re.search(words, line) and line.startswith(URL)
    assert store.requests == 1 and seconds < 10


@by_the_proxy
@pytest.mark.slow
def test_other_refusals_fail_at_once(store, data, tmp_path):
    store.fail("elsewhere")
    line, _ = failure(ValueError, URL, data, tmp_path)
    assert store.requests == 1 and "301 PermanentRedirect" in line and "region" in line
    store.fail("overwritten", whole_only=True)
    line, _ = failure(OSError, URL, data, tmp_path)
    assert store.requests == 3 and "overwritten while it was read" in line


@by_the_proxy
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, MANY])
def test_a_shard_that_was_replaced_by_one_of_equal_size_is_indexed_anew(store, data, tmp_path, count):
    def labels(first):
        pixels = np.zeros((count, 32, 32, 3), np.uint8)
        pictures = [labelled(str(n), encode_png(pixels[n]), (n + first) % 4) for n in range(count)]
        return pack(Source(pictures, "black", 4), tmp_path / f"{first}", 1)

    def opened():
        store.fail("denied", count == MANY)  # a listing would tell that there are other indexes
        return open_stream(pattern, data, tmp_path / "cache", train=False)

    there, pattern = open_store([URL], data.s3), f"s3://{BUCKET}/replaced/{count}/{Path(labels(0)).name}"
    urls = expand(pattern)
    for url, path in zip(urls, expand(labels(0)), strict=True):
        there.put(url, Path(path))
    assert add_indexes(urls, data.s3, 1, print) == []
    assert opened().raw([1])[1].tolist() == [1]
    time.sleep(1.1)  # the service tells seconds
    there.put(urls[1], Path(expand(labels(1))[1]))
    with pytest.raises(DamagedShardError, match="run `nnce index` on it"):
        opened().raw([1])
    store.fail("nothing", 0)
    assert add_indexes(urls, data.s3, 1, print) == [urls[0], *urls[2:]] and store.whole_shards == 1
    assert opened().raw([1])[1].tolist() == [2]
    assert add_indexes(urls, data.s3, 1, print) == urls


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (f"s3://{BUCKET}/set/none.tar", FileNotFoundError, "s3:GetObject on bucket 'photos', key 'set/none.tar'"),
        ("s3://nowhere/a.tar", FileNotFoundError, "no bucket 'nowhere': s3:GetObject on bucket 'nowhere', key 'a.tar'"),
        (f"s3://{BUCKET}/empty.tar", ValueError, "the shard is empty"),
        slow("s3://BAD_bucket!/a.tar", ValueError, "bucket name"),
    ],
)
def test_what_is_not_there_fails_at_once(store, data, tmp_path, url, kind, words):
    line, seconds = failure(kind, url, data, tmp_path)
    assert words in line and store.requests <= 1 and seconds < 5
    with pytest.raises(kind):
        check(url, data)


@by_the_proxy
def test_a_store_that_is_not_there_is_given_up(data, tmp_path):
    gone = dataclasses.replace(data, s3=S3(endpoint_url="http://127.0.0.1:9", timeout=1))
    line, seconds = failure(TimeoutError, URL, gone, tmp_path)
    assert "http://127.0.0.1:9" in line and seconds < 5


@pytest.mark.slow
def test_only_a_run_that_has_begun_starts_while_the_store_is_away(data, tmp_path):
    """It has copies of its shards, or is told in time that it has not."""
    gone = dataclasses.replace(data, train=URL, val=URL, s3=S3(endpoint_url="http://127.0.0.1:9", timeout=1))
    config = Config(data=gone)
    config.run.dir = str(tmp_path)
    with pytest.raises(ValueError, match="http://127.0.0.1:9 within 1 s"):
        preflight.check(config)
    run_root(config).mkdir(parents=True)
    preflight.check(config)


@by_the_proxy
def test_missing_credentials_and_profiles_are_named(data, tmp_path, monkeypatch):
    named = dataclasses.replace(data, s3=dataclasses.replace(data.s3, profile="nobody"))
    assert "profile (nobody) could not be found" in failure(ValueError, URL, named, tmp_path)[0]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no S3 credentials" in failure(PermissionError, URL, data, tmp_path)[0]


@pytest.mark.parametrize("endpoint", ["http://key:secret@127.0.0.1:9", "127.0.0.1:9", "ftp://127.0.0.1"])
def test_endpoints_that_hold_credentials_or_are_none_are_refused(endpoint):
    with pytest.raises(ValueError, match="data.s3.endpoint_url must") as caught:
        open_store([URL], S3(endpoint_url=endpoint))
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_large_objects_are_one_checked_request(store, data):
    """s3fs would split an object of this size into parallel ranges that nobody checks."""
    client = s3_client(f"http://127.0.0.1:{store.upstream_port}")
    content = np.random.default_rng(0).bytes(60 * 2**20)
    client.put_object(Bucket=BUCKET, Key="large", Body=content)
    source = open_store([URL], dataclasses.replace(data.s3, timeout=30))
    blob, _ = source.peek(f"s3://{BUCKET}/large", 1)
    store.fail("cut", 1)
    file = io.BytesIO()
    source.fetch(blob, file)
    assert store.requests == 2 and file.getvalue() == content


@pytest.mark.slow
def test_no_secret_is_ever_told(store, data, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)  # everything, of every library
    told = []
    for fault in ("nothing", "denied", "signature", "expired", "slow down", "cut", "reset"):
        store.fail(fault)
        try:
            open_stream(URL, impatient(data), tmp_path / fault, train=True)
        except OSError:
            told.append(traceback.format_exc())
    assert len(told) == 6 and "trying again" in caplog.text
    store.fail("nothing", 0)
    source = open_stream(URL, data, tmp_path / "nothing", train=True)
    told += [caplog.text, repr(vars(source)), repr(data), *written_by_a_run(data, tmp_path)]
    told += [pickle.dumps(thing).decode("latin-1") for thing in (source, data, open_store([URL], data.s3))]
    for text in told:
        for secret in (SECRET, KEY_ID, "Signature=", "X-Amz-Signature"):
            assert secret not in text


def written_by_a_run(data, folder):
    """The content of all files that a run begins with, and of those that are in the folder already."""
    config = Config(data=data)
    config.run.dir = str(folder / "runs")
    drift = claim(config, print)
    write_manifest(run_root(config), ["imagenet64.py", f"data.s3.endpoint_url={data.s3.endpoint_url}"], drift)
    files = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 4  # configuration, manifest, shard and index
    return files
