"""Which kind of source the word on the command line means."""

from pathlib import Path

from ..config.schema import S3
from .downsampled_imagenet import downsampled_imagenet, files_of_one_set
from .image_folder import image_folder
from .shard_source import shard_source
from .source import Source
from .store import expand

_SHARDS = (".tar", ".tar.gz", ".tgz")


def open_source(place: str, labels: Path | None, settings: S3, processes: int = 1) -> Source:
    """An image folder, files of the downsampled-ImageNet format or their folder, or a shard set by its pattern.

    Raises ValueError or OSError with one line.
    """
    folder = Path(place)
    if folder.is_dir():
        batches = [] if labels else files_of_one_set(folder)
        return downsampled_imagenet(batches) if batches else image_folder(folder, labels)
    names = expand(place)
    if all(name.endswith(".npz") for name in names):
        return downsampled_imagenet([Path(name) for name in names])
    if all(name.endswith(_SHARDS) for name in names):
        return shard_source(names, settings, processes)
    raise FileNotFoundError(
        f"{place}: no such folder; a source is a folder of pictures, .npz files or their folder, or a pattern of shards"
    )
