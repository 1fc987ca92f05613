"""Shards behind an S3 server over HTTP, whole and failing.  Run: pytest tests/integration/test_s3.py"""

import dataclasses
import io
import logging
import multiprocessing
import os
import re
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from faulty_store import FaultyStore
from moto.server import ThreadedMotoServer

from nnce_dist.config.schema import S3, Data
from nnce_dist.data.check import check
from nnce_dist.data.pack import pack
from nnce_dist.data.store import open_store
from nnce_dist.data.stream import open_stream

CANARY_ID, CANARY_SECRET = "AKIACANARYCANARY0000", "canary/secret+canary/secret+canary/secre"
BUCKET = "photos"
URL = f"s3://{BUCKET}/set/shard-000000.tar"


@pytest.fixture(scope="module", autouse=True)
def credentials():
    """A key in the environment that must never be seen again, and no other source of credentials."""
    ours = {
        "AWS_ACCESS_KEY_ID": CANARY_ID,
        "AWS_SECRET_ACCESS_KEY": CANARY_SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in ours.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Three shards of 32x32 noise on disk; gives their pattern."""
    rng = np.random.default_rng(0)
    pictures = ((rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), n % 4) for n in range(50))
    return pack(pictures, tmp_path_factory.mktemp("local") / "set", 20)


@pytest.fixture(scope="module")
def store(local):
    """The same shards in a bucket of a real HTTP server, behind the proxy that can fail."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=BUCKET)
        for shard in Path(local).parent.glob("*.tar"):
            client.upload_file(str(shard), BUCKET, f"set/{shard.name}")
        client.put_object(Bucket=BUCKET, Key="empty.tar", Body=b"")
        with FaultyStore(port) as proxy:
            yield proxy
    finally:
        server.stop()


@pytest.fixture
def data(store):
    store.fail("nothing", 0)
    return Data(num_classes=4, image_size=32, s3=S3(endpoint_url=store.url, timeout=6, addressing="path"))


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
def test_processes_of_one_node_fetch_each_shard_once(store, data, tmp_path):
    pattern = f"s3://{BUCKET}/set/shard-{{000000..000002}}.tar"
    patient = dataclasses.replace(data, s3=dataclasses.replace(data.s3, timeout=60))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        opened = [pool.submit(open_stream, pattern, patient, tmp_path, True) for _ in range(3)]
        digests = {future.result(timeout=120).digest for future in opened}
    assert digests == {open_stream(pattern, patient, tmp_path, True).digest}
    assert store.requests == 4 * 3 + 3  # everyone looks at the identities, each shard is downloaded once
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz"] * 3 + [".tar"] * 3


@pytest.mark.parametrize(
    "fault", ["internal", "unavailable", "slow down", "too many", "timeout", "reset", "cut", "short", "flipped"]
)
def test_passing_faults_are_survived(store, data, tmp_path, local, fault):
    store.fail(fault, 2, whole_only=True)
    source = open_stream(URL, data, tmp_path, train=False)
    assert store.requests == 4  # identity, two failures, success
    expected = open_stream(local, data, tmp_path, train=False).raw(range(20))
    assert all(torch.equal(a, b) for a, b in zip(source.raw(), expected, strict=True))


@pytest.mark.parametrize("fault", ["silent", "stalled"])
def test_a_server_that_stalls_is_left_in_time(store, data, tmp_path, fault):
    store.fail(fault, 1)
    start = time.monotonic()
    assert len(open_stream(URL, data, tmp_path, train=True)) == 20
    assert 1.9 < time.monotonic() - start < 6  # a third of the deadline is lost to the stall


@pytest.mark.parametrize("fault", ["slow down", "internal", "silent", "cut", "short"])
def test_lasting_faults_end_at_the_deadline(store, data, tmp_path, fault):
    store.fail(fault)
    line, seconds = failure(TimeoutError, URL, impatient(data), tmp_path)
    assert URL in line and store.url in line and "within 2.5 s" in line and "data.s3.timeout" in line
    tries = int(re.search(r"(\d+) tries", line)[1])
    assert seconds < 8 and tries - 1 <= store.requests <= tries  # no layer below repeats; the deadline may cut the last
    assert list(tmp_path.iterdir()) == []  # nothing half-read stays


@pytest.mark.parametrize(("fault", "code"), [("denied", "AccessDenied"), ("signature", "SignatureDoesNotMatch")])
def test_denied_fails_at_once_and_says_what(store, data, tmp_path, fault, code):
    store.fail(fault)
    line, seconds = failure(PermissionError, URL, data, tmp_path)
    assert store.requests == 1 and seconds < 5
    assert (
        code in line
        and "s3:GetObject on bucket 'photos', key 'set/shard-000000.tar'" in line
        and "role or profile" in line
    )


def test_one_denied_shard_stops_the_others(store, data, tmp_path):
    store.fail("denied")
    failure(PermissionError, f"s3://{BUCKET}/set/shard-{{000000..000099}}.tar", data, tmp_path)
    assert store.requests <= 24  # of 100: those that were on their way


def test_expired_credentials_are_looked_up_again_once(store, data, tmp_path):
    store.fail("expired", 1)
    assert len(open_stream(URL, data, tmp_path / "a", train=True)) == 20 and store.requests == 3
    store.fail("expired")
    line, _ = failure(PermissionError, URL, data, tmp_path / "b")
    assert store.requests == 2 and "have expired (ExpiredToken); log in again" in line


def test_other_refusals_fail_at_once(store, data, tmp_path):
    store.fail("elsewhere")
    line, _ = failure(ValueError, URL, data, tmp_path)
    assert store.requests == 1 and "301 PermanentRedirect" in line and "region" in line
    store.fail("overwritten", whole_only=True)
    line, _ = failure(OSError, URL, data, tmp_path)
    assert store.requests == 2 and "overwritten while it was read" in line


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (f"s3://{BUCKET}/set/none.tar", FileNotFoundError, "bucket 'photos' has no key 'set/none.tar'"),
        ("s3://nowhere/a.tar", FileNotFoundError, "no bucket 'nowhere' at http"),
        (f"s3://{BUCKET}/empty.tar", ValueError, "the shard is empty"),
        ("s3://BAD_bucket!/a.tar", ValueError, "bucket name"),
    ],
)
def test_what_is_not_there_fails_at_once(store, data, tmp_path, url, kind, words):
    line, seconds = failure(kind, url, data, tmp_path)
    assert words in line and store.requests <= 1 and seconds < 5
    with pytest.raises(kind):
        check(url, data)


def test_a_store_that_is_not_there_is_given_up(data, tmp_path):
    gone = dataclasses.replace(data, s3=S3(endpoint_url="http://127.0.0.1:9", timeout=1))
    line, seconds = failure(TimeoutError, URL, gone, tmp_path)
    assert "http://127.0.0.1:9" in line and seconds < 5


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
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{store.upstream_port}")
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
    told += [caplog.text, repr(vars(source)), repr(data)]
    for text in told:
        for secret in (CANARY_SECRET, CANARY_ID, "Signature=", "X-Amz-Signature"):
            assert secret not in text
