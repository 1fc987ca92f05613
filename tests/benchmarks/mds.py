"""Copies packed shards into MosaicML's format, with as many pictures in a shard.

Run, with a Python that has mosaicml-streaming: python tests/benchmarks/mds.py PATTERN FOLDER
"""

import sys

from streaming import MDSWriter

from nnce_dist.config.schema import S3
from nnce_dist.data.sources import open_source


def main(pattern: str, folder: str) -> None:
    """The same encoded pictures and labels, in the same order."""
    samples = open_source(pattern, None, S3()).samples
    size_limit = sum(len(sample.picture) + 20 for sample in samples[:1000])
    with MDSWriter(out=folder, columns={"picture": "bytes", "label": "int"}, size_limit=size_limit) as writer:
        for start in range(0, len(samples), 1000):
            for sample in samples[start : start + 1000]:
                writer.write({"picture": sample.picture, "label": int(sample.others["cls"])})


if __name__ == "__main__":
    main(*sys.argv[1:])
