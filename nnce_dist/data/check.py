"""What can be found wrong with a shard pattern in a second or two, before anything is started."""

import io
import zlib
from dataclasses import replace

from ..config.checks import tolerated
from ..config.schema import Data
from .images import check_size
from .index import outside_classes, read_label
from .store import expand, open_store
from .tar import IMAGES, Member, members, samples

_PREFIX = 2 * 2**20  # bytes of the first shard that are looked at
_PATIENCE = 4.0  # seconds for each question to the store, retries included


def check(pattern: str, data: Data) -> None:
    """Looks whether the shards exist (of an s3 set the first and the last) and at the first samples of the first one.

    Raises ValueError or OSError with one line. Samples further on are checked by `open_stream`. Loads no torch.
    """
    urls = expand(pattern)
    store = open_store(urls, replace(data.s3, timeout=min(data.s3.timeout, _PATIENCE)))
    blob, start = store.peek(urls[0], _PREFIX)
    others = urls[1:] if store.endpoint == "file" else urls[1:][-1:]
    for size, url in [(blob.size, urls[0])] + [(store.peek(url, 1)[0].size, url) for url in others]:
        if not size:
            raise ValueError(f"{url}: the shard is empty (0 bytes); copy or make it again")
    _check_samples(urls[0], start, whole=len(start) == blob.size, data=data)


def _check_samples(url: str, start: bytes, whole: bool, data: Data) -> None:
    if url.endswith((".gz", ".tgz")):
        start, whole = _decompressed(url, start), False
    file = io.BytesIO(start)
    found = list(members(file, url, partial=not whole))
    if not whole and found:
        found = [member for member in found if member.key != found[-1].key]  # the last sample may go on
    bad = 0
    for sample in samples(iter(found), url):
        _check_label(file, sample, url, data)
        try:
            _check_picture(file, sample, url, data)
        except ValueError:
            bad += 1
            if bad > tolerated(data.on_error):
                raise


def _check_label(file: io.BytesIO, sample: dict[str, Member], url: str, data: Data) -> None:
    label = read_label(file, sample, url)
    if not 0 <= label < data.num_classes:
        raise ValueError(outside_classes(_name(sample, url), label, data.num_classes))


def _check_picture(file: io.BytesIO, sample: dict[str, Member], url: str, data: Data) -> None:
    picture = next(member for extension, member in sample.items() if extension in IMAGES)
    file.seek(picture.offset)
    check_size(file.read(picture.size), data.image_size, data.resize, _name(sample, url))


def _name(sample: dict[str, Member], url: str) -> str:
    return f"{url}: sample {next(iter(sample.values())).key!r}"


def _decompressed(url: str, start: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _PREFIX)
    except zlib.error as error:
        raise ValueError(f"{url}: not a gzip stream ({error}); copy the shard again") from error
