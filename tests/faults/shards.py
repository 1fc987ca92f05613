"""The run's own pictures as shards that a row may damage, on disk or in a bucket behind a server that fails at will."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from bed import CANARY_ID, CANARY_SECRET, Bed
from faulty_store import FaultyStore
from s3_servers import moto_server

from nnce_dist.data.index import SUFFIX, ShardIndex

BUCKET = "photos"
TRAIN, VAL = "shard-{000000..000007}.tar", "shard-{000000..000000}.tar"  # 512 and 64 pictures, 64 in a shard


def copied(bed: Bed) -> Path:
    """Gives the run shards of its own, with the pictures of all other runs; the folder of the training ones."""
    for name, source in (("train", "made-*-0-512-*"), ("val", "made-*-512-576-*")):
        shutil.copytree(next(bed.cache.glob(source)), bed.folder / name)
    bed.settings += [f"data.train={bed.folder}/train/{TRAIN}", f"data.val={bed.folder}/val/{VAL}"]
    return bed.folder / "train"


@contextmanager
def in_bucket(bed: Bed, timeout: float = 8.0) -> Iterator[FaultyStore]:
    """The same shards in a bucket that is reached through a proxy, which is given, and a cache that is empty."""
    copied(bed)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    with moto_server() as port, FaultyStore(port) as store:
        keys = {"aws_access_key_id": CANARY_ID, "aws_secret_access_key": CANARY_SECRET, "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
        client.create_bucket(Bucket=BUCKET)
        for path in bed.folder.glob("*/shard-*"):
            client.upload_file(str(path), BUCKET, f"{path.parent.name}/{path.name}")
        bed.settings += [
            f"data.train=s3://{BUCKET}/train/{TRAIN}",
            f"data.val=s3://{BUCKET}/val/{VAL}",
            f"data.cache_dir={bed.folder}/cache",
            f"data.s3.endpoint_url={store.url}",
            "data.s3.addressing=path",
            f"data.s3.timeout={timeout:g}",
        ]
        yield store


def overwrite(shard: Path, pictures: range, content: bytes | None = None) -> None:
    """Writes garbage over pictures of a shard, or flips a bit in each; size, names and index stay as they were."""
    index = ShardIndex.from_bytes(shard.with_name(shard.name + SUFFIX).read_bytes())
    data = bytearray(shard.read_bytes())
    for offset, size in index.image_spans[pictures.start : pictures.stop]:
        if content is None:
            data[offset + size // 2] ^= 1
        else:
            data[offset : offset + size] = (content * size)[:size]
    shard.write_bytes(data)
    shard.with_name(shard.name + SUFFIX).touch()  # the index stays newer than the shard
