"""Indexes beside shards: found when they belong to the shard, made when not.  Run: pytest tests/unit/test_sidecar.py"""

import gzip
import os
from pathlib import Path

import pytest
from shard_files import write_shards

from nnce_dist.config.schema import S3
from nnce_dist.data.files import FileStore
from nnce_dist.data.index import SUFFIX, index_shard
from nnce_dist.data.sidecar import add_indexes, stored_index
from nnce_dist.data.store import expand


@pytest.fixture
def urls(tmp_path):
    return expand(write_shards(tmp_path / "set", [7, 5, 9]))


def add(urls, processes=1):
    progress = []
    had = add_indexes(urls, S3(), processes, progress.append)
    assert progress == list(range(len(urls) + 1))
    return had


def stored(url):
    return stored_index(FileStore().peek(url, 1)[0], FileStore())


def test_missing_indexes_are_added_and_valid_ones_left(urls):
    assert add(urls[:1]) == [] and add(urls, processes=2) == urls[:1] and add(urls) == urls
    for url in urls:
        assert stored(url).to_bytes() == index_shard(Path(url), url).to_bytes()
    assert len(os.listdir(Path(urls[0]).parent)) == 6


def test_a_compressed_shard_has_the_index_of_its_content(urls, tmp_path):
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(Path(urls[0]).read_bytes()))
    assert add([str(packed)]) == []
    index, plain = stored(str(packed)), index_shard(Path(urls[0]), "plain")
    assert (index.sha256, index.num_bytes, index.stored_bytes) == (plain.sha256, plain.num_bytes, packed.stat().st_size)


def change_size(url):
    with open(url, "ab") as file:
        file.write(bytes(512))
    os.utime(url + SUFFIX)


def change_content(url):
    os.utime(url, ns=(0, os.stat(url + SUFFIX).st_mtime_ns + 1))


def damage_index(url):
    Path(url + SUFFIX).write_bytes(Path(url + SUFFIX).read_bytes()[:-30])


@pytest.mark.parametrize("change", [change_size, change_content, damage_index])
def test_an_index_of_another_shard_is_made_again(urls, change):
    add(urls)
    change(urls[1])
    assert stored(urls[1]) is None
    assert add(urls) == [urls[0], urls[2]] and stored(urls[1]).num_bytes == os.path.getsize(urls[1])


def test_bad_shards_are_named(urls, tmp_path):
    os.truncate(urls[2], 3000)
    with pytest.raises(ValueError, match=f"^{urls[2]}: the archive is damaged or was cut short"):
        add(urls)
    with pytest.raises(ValueError, match="may not mix"):
        add([urls[0], "s3://bucket/a.tar"])
    assert os.path.exists(urls[1] + SUFFIX) and not os.path.exists(urls[2] + SUFFIX)
