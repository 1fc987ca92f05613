"""Sets of many shards behind an S3 server over HTTP: opened with two requests, and never from a stale index.

Run: pytest tests/integration/test_s3_sets.py
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from s3_servers import only_credentials, s3_client

from nnce_dist.config.schema import S3, Data
from nnce_dist.data.images import encode_png
from nnce_dist.data.index import SUFFIX
from nnce_dist.data.pack import pack
from nnce_dist.data.set_index import MANY, set_url
from nnce_dist.data.source import Source, labelled
from nnce_dist.data.store import expand, open_store
from nnce_dist.data.stream import open_stream

BUCKET = "many-shards"


def packed(folder, seed=0, settings=None):
    """A set of `MANY` shards, of one picture each; gives its pattern."""
    noise = np.random.default_rng(seed).integers(0, 256, (MANY, 16, 16, 3), dtype=np.uint8)
    pictures = [labelled(str(n), encode_png(pixels), n % 4) for n, pixels in enumerate(noise)]
    return pack(Source(pictures, f"noise {seed}", 4), folder, 1, settings=settings)


@pytest.fixture(scope="module")
def proxy(s3_port):
    with only_credentials(), FaultyStore(s3_port) as proxy:
        s3_client(proxy.url).create_bucket(Bucket=BUCKET)
        yield proxy


@pytest.fixture(scope="module")
def data(proxy):
    return Data(num_classes=4, image_size=16, s3=S3(endpoint_url=proxy.url, timeout=20, addressing="path"))


@pytest.fixture(scope="module")
def remote(proxy, data):
    """A set that was packed there; gives its pattern."""
    return packed(f"s3://{BUCKET}/set", settings=data.s3)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same set on disk."""
    return packed(tmp_path_factory.mktemp("local") / "set")


def requests(proxy, pattern, data, folder):
    """The set's digest, and how many requests it took to open it."""
    proxy.fail("nothing", 0)
    return open_stream(pattern, data, folder, train=True).digest, proxy.requests


def test_a_set_is_opened_with_two_requests_and_then_with_one(proxy, remote, local, data, tmp_path):
    digest, first = requests(proxy, remote, data, tmp_path / "cache")
    assert first == 2 and proxy.whole_shards == 0
    assert requests(proxy, remote, data, tmp_path / "cache") == (digest, 1)
    assert digest == open_stream(local, data, tmp_path / "none", train=True).digest


@pytest.mark.slow
def test_a_set_that_was_packed_elsewhere_brings_its_index_along(proxy, local, data, tmp_path):
    prefix, store = f"s3://{BUCKET}/copied", open_store([f"s3://{BUCKET}/copied"], data.s3)
    for path in Path(local).parent.iterdir():
        store.put(f"{prefix}/{path.name}", path)
    assert requests(proxy, f"{prefix}/{Path(local).name}", data, tmp_path)[1] == 2


@pytest.mark.slow
def test_a_stale_index_of_a_set_is_noticed(proxy, remote, local, data, tmp_path):
    before, _ = requests(proxy, remote, data, tmp_path / "cache")
    files = [(expand(remote)[5] + end, expand(local)[6] + end) for end in ("", SUFFIX)]
    store, kept = open_store([remote], data.s3), Path(set_url(expand(local))).read_bytes()
    assert os.path.getsize(files[0][1]) == os.path.getsize(expand(local)[5])
    for url, path in files:
        store.put(url, Path(path))
    for cache in ("cache", "empty"):
        after, asked = requests(proxy, remote, data, tmp_path / cache)
        assert after != before and asked > 2
        assert requests(proxy, remote, data, tmp_path / cache) == (after, 1)
    for url, path in files:
        store.put(url, Path(path.replace("000006", "000005")))
    assert store.read(set_url(expand(remote))) == kept  # those who read a set write nothing there
    assert requests(proxy, remote, data, tmp_path / "again") == (before, 2)


@pytest.mark.slow
def test_who_may_not_list_opens_the_set_all_the_same(proxy, remote, local, data, tmp_path):
    expected = open_stream(local, data, tmp_path / "none", train=True).digest
    for asked in (1 + 2 * MANY, 1 + MANY):  # without a listing the set's index proves nothing, but for the kept one
        proxy.fail("denied", 1)
        assert open_stream(remote, data, tmp_path / "cache", train=True).digest == expected
        assert proxy.requests == asked


@pytest.mark.slow
def test_a_set_is_opened_from_the_cache_while_the_store_is_away(proxy, remote, data, tmp_path):
    expected, said = requests(proxy, remote, data, tmp_path / "cache")[0], []
    proxy.fail("unavailable")
    impatient = dataclasses.replace(data, s3=dataclasses.replace(data.s3, timeout=1))
    assert open_stream(remote, impatient, tmp_path / "cache", train=True, say=said.append).digest == expected
    assert "going on with the copies" in said[0]


@pytest.mark.slow
def test_a_missing_shard_of_many_is_named(proxy, remote, local, data, tmp_path):
    proxy.fail("nothing", 0)
    store, url = open_store([remote], data.s3), expand(remote)[9]
    store.delete(url)
    with pytest.raises(FileNotFoundError, match="shard-000009.tar"):
        open_stream(remote, data, tmp_path / "cache", train=True)
    store.put(url, Path(expand(local)[9]))
