"""Disk and S3 keep the same promises about objects.  Run: pytest tests/integration/test_store.py"""

import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from marks import slow
from s3_servers import only_credentials, s3_client

from nnce_dist.config.schema import S3
from nnce_dist.data import s3
from nnce_dist.data.store import open_store

BUCKET = "runs"


@contextmanager
def proxied(port):
    """A server over HTTP behind a proxy that can fail, with our bucket."""
    with only_credentials(), FaultyStore(port) as proxy:
        s3_client(proxy.url).create_bucket(Bucket=BUCKET)
        yield proxy


@pytest.fixture(scope="module")
def proxy(s3_port):
    """Each kind of server in turn."""
    with proxied(s3_port) as proxy:
        yield proxy


@pytest.fixture(params=["file", "moto", slow("radosgw")])
def place(request, tmp_path):
    """A store and a folder in it that is empty."""
    if request.param == "file":
        yield open_store([str(tmp_path / "a")], S3()), str(tmp_path / "run")
        return
    with proxied(request.getfixturevalue(request.param)) as proxy:
        yield remote(proxy, tmp_path)


def remote(proxy, tmp_path, timeout=6.0):
    proxy.fail("nothing", 0)
    folder = f"s3://{BUCKET}/{tmp_path.name}"
    return open_store([folder], S3(endpoint_url=proxy.url, timeout=timeout, addressing="path")), folder


def test_what_is_put_is_read_listed_and_deleted(place, tmp_path):
    store, folder = place
    assert store.objects(folder) == []
    (tmp_path / "local").write_bytes(b"of a file")
    store.put(f"{folder}/b", b"first")
    store.put(f"{folder}/b", b"second")
    store.put(f"{folder}/a/deep", tmp_path / "local")
    store.put(f"{folder}/a/empty", b"")
    store.put(f"{folder}-other/c", b"")
    assert store.read(f"{folder}/b") == b"second" and store.read(f"{folder}/a/deep") == b"of a file"
    found = store.objects(folder)
    assert [(blob.url, blob.size) for blob in found] == [
        (f"{folder}/a/deep", 9),
        (f"{folder}/a/empty", 0),
        (f"{folder}/b", 6),
    ]
    assert all(store.peek(blob.url, 3)[0] == blob for blob in found if blob.size)
    assert all(abs(store.stored_at(blob.url) - datetime.now(UTC)) < timedelta(minutes=1) for blob in found if blob.size)
    for name in ("b", "b", "a/empty"):
        store.delete(f"{folder}/{name}")
    assert [blob.url for blob in store.objects(folder)] == [f"{folder}/a/deep"]
    with pytest.raises(FileNotFoundError, match="/b"):
        store.read(f"{folder}/b")
    with pytest.raises(FileNotFoundError, match="/b"):
        store.stored_at(f"{folder}/b")


def test_of_many_who_create_one_wins(place):
    store, folder = place
    store.create(f"{folder}/twice", b"mine")
    store.create(f"{folder}/twice", b"mine")
    store.delete(f"{folder}/twice")
    won, lost = [], []
    start = threading.Barrier(6)

    def create(name):
        start.wait(10)
        try:
            store.create(f"{folder}/lease", name)
            won.append(name)
        except FileExistsError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=create, args=(b"%d" % n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [store.read(f"{folder}/lease")] == won and len(lost) == 5
    assert all(f"{folder}/lease: exists already" in line for line in lost)
    assert len(store.objects(folder)) == 1


def test_a_put_that_fails_leaves_what_was_there(place, tmp_path):
    store, folder = place
    store.put(f"{folder}/a", b"old")
    with pytest.raises(FileNotFoundError):
        store.put(f"{folder}/a", tmp_path / "none")
    assert store.read(f"{folder}/a") == b"old" and len(store.objects(folder)) == 1


def test_a_listing_goes_over_pages(proxy, tmp_path, monkeypatch):
    store, folder = remote(proxy, tmp_path)
    for number in range(5):
        store.put(f"{folder}/{number}", b"")
    call = store._client.call
    monkeypatch.setattr(store._client, "call", lambda method, **request: call(method, MaxKeys=2, **request))
    proxy.fail("nothing", 0)
    assert len(store.objects(folder)) == 5 and proxy.requests == 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["slow down", slow("reset"), slow("internal")])
def test_writes_are_repeated_after_passing_faults(proxy, tmp_path, fault):
    store, folder = remote(proxy, tmp_path)
    for write in (store.put, store.create):
        proxy.fail(fault, 2)
        write(f"{folder}/{write.__name__}", b"content")
        assert proxy.requests == 3 and store.read(f"{folder}/{write.__name__}") == b"content"
    proxy.fail(fault, 2)
    assert len(store.objects(folder)) == 2 and proxy.requests == 3
    proxy.fail(fault, 2)
    store.delete(f"{folder}/put")
    assert proxy.requests == 3 and len(store.objects(folder)) == 1


def test_a_creation_whose_answer_is_lost_is_still_ours(proxy, tmp_path):
    store, folder = remote(proxy, tmp_path)
    proxy.fail("unanswered", 1)
    store.create(f"{folder}/lease", b"mine")
    assert proxy.requests == 3  # stored but not answered, refused as there, read
    store.delete(f"{folder}/lease")
    store.create(f"{folder}/lease", b"theirs")
    proxy.fail("unanswered", 1)
    with pytest.raises(FileExistsError):
        store.create(f"{folder}/lease", b"mine")


def test_a_denied_action_is_named_at_once(proxy, tmp_path):
    store, folder = remote(proxy, tmp_path)
    asks = [
        (lambda: store.put(f"{folder}/a", b""), "s3:PutObject"),
        (lambda: store.create(f"{folder}/a", b""), "s3:PutObject"),
        (lambda: store.delete(f"{folder}/a"), "s3:DeleteObject"),
        (lambda: store.objects(folder), "s3:ListBucket"),
        (lambda: store.read(f"{folder}/a"), "s3:GetObject"),
    ]
    for ask, action in asks:
        proxy.fail("denied")
        with pytest.raises(PermissionError) as caught:
            ask()
        assert f"{action} on bucket 'runs', key '{tmp_path.name}" in str(caught.value) and proxy.requests == 1


@pytest.mark.parametrize("fault", [slow("nothing"), "internal", slow("reset")])
def test_large_files_go_in_parts_and_appear_whole(proxy, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(s3, "_PART", 5 * 2**20)  # the least that S3 allows
    store, folder = remote(proxy, tmp_path, timeout=30)
    content = np.random.default_rng(0).bytes(11 * 2**20)
    (tmp_path / "large").write_bytes(content)
    proxy.fail(fault, 2)
    store.put(f"{folder}/large", tmp_path / "large")
    blob, _ = store.peek(f"{folder}/large", 1)
    assert blob.size == len(content)
    proxy.fail("cut", 1)
    with open(tmp_path / "copy", "w+b") as file:
        store.fetch(blob, file)
    assert proxy.requests == 4  # three parts, of which one was cut
    assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.slow
def test_an_upload_that_fails_leaves_no_parts_behind(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "_PART", 5 * 2**20)
    store, folder = remote(proxy, tmp_path)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(11 * 2**20)
    monkeypatch.setattr(store, "_put_part", lambda *arguments: os.fstat(-1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.put(f"{folder}/large", tmp_path / "large")
    client = s3_client(proxy.url)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET) and store.objects(folder) == []


def test_a_full_disk_is_named_with_what_was_wanted(tmp_path):
    store = open_store([str(tmp_path)], S3())
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "a").write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnce_dist.data.files._copy", lambda source, file: full().write(source))
        with pytest.raises(OSError, match="no space left for 3 bytes") as caught:
            store.put(str(tmp_path / "a"), b"new")
    assert caught.value.errno == 28 and str(tmp_path / "a") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def full():
    """A file of a device that is full."""
    return open("/dev/full", "wb", buffering=0)  # noqa: SIM115
