"""Tar shards, written the same way every time and read strictly: the standard reader stops silently at damage."""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

IMAGES = ("jpg", "jpeg", "png")
LABELS = ("cls", "json")
MAX_MEMBER_BYTES = 32 * 2**20
_BLOCK = 512
_DAMAGED = "the archive is damaged or was cut short; copy or make the shard again"


@dataclass(frozen=True)
class Member:
    """One file in a shard."""

    key: str  # path up to the first dot of the file name: the sample's name
    extension: str  # the rest, in lower case
    offset: int  # of the content within the shard
    size: int  # of the content


def write_tar(file: BinaryIO, contents: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Writes keys and the contents of their members, by extension, as a shard; equal samples give equal bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample in contents:
            for extension, content in sorted(sample.items()):
                info = tarfile.TarInfo(f"{key}.{extension}")  # of nobody and no time
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                archive.members.clear()  # or the archive object grows with every member
    file.flush()


def members(file: BinaryIO, name: str, partial: bool = False) -> Iterator[Member]:
    """The image, label and JSON members in order; other files are left out, as they are never decoded.

    With `partial` the file is only the beginning of a shard, and its whole members are given. Raises ValueError with
    one line naming the shard (`name`) when it is damaged, cut short, or holds names or sizes that are refused.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (it holds nothing but `file`)
    except tarfile.TarError as error:
        raise ValueError(f"{name}: not a tar archive ({error}); copy or make the shard again") from error
    try:
        with archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # or the archive object grows with every member
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if partial and end > length:
                    return
                if (member := _member(info, name)) is not None:
                    yield member
    except (tarfile.TarError, UnicodeError) as error:
        if not partial:
            raise ValueError(f"{name}: {_DAMAGED} ({error})") from error
        return
    if not partial:
        _check_tail(file, end, length, name)


def _member(info: tarfile.TarInfo, name: str) -> Member | None:
    if info.isdir():
        return None
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise ValueError(f"{name}: member {info.name!r} climbs out of the archive; refused")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ValueError(f"{name}: member {info.name!r} is a link or a device; only plain files are read")
    folder, _, base = info.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or extension.lower() not in IMAGES + LABELS:
        return None
    if info.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: member {info.name!r} has {info.size} bytes, more than {MAX_MEMBER_BYTES}; refused")
    return Member(f"{folder}/{stem}" if folder else stem, extension.lower(), info.offset_data, info.size)


def _check_tail(file: BinaryIO, end: int, length: int, name: str) -> None:
    """An archive ends with at least two zero blocks and nothing after them."""
    if length - end < 2 * _BLOCK:
        raise ValueError(f"{name}: {_DAMAGED} (no end-of-archive mark after byte {end} of {length})")
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ValueError(f"{name}: {_DAMAGED} (no readable header at byte {end}, and more data after it)")


def samples(found: Iterator[Member], name: str) -> Iterator[dict[str, Member]]:
    """Neighbouring members of one key, by extension. Raises ValueError for partial or repeated samples."""
    seen: set[str] = set()
    sample: dict[str, Member] = {}
    for member in found:
        if sample and member.key != next(iter(sample.values())).key:
            yield _whole(sample, seen, name)
            sample = {}
        if member.extension in sample:
            raise ValueError(f"{name}: sample {member.key!r} has two members .{member.extension}; make the shard again")
        sample[member.extension] = member
    if sample:
        yield _whole(sample, seen, name)


def _whole(sample: dict[str, Member], seen: set[str], name: str) -> dict[str, Member]:
    key = next(iter(sample.values())).key
    has = ", ".join("." + extension for extension in sample)
    if key in seen:
        raise ValueError(f"{name}: sample {key!r} occurs twice; make the shard again with one name per sample")
    if sum(extension in sample for extension in IMAGES) != 1:
        raise ValueError(f"{name}: sample {key!r} needs one picture (.jpg, .jpeg or .png) but has {has}")
    if not any(extension in sample for extension in LABELS):
        raise ValueError(f"{name}: sample {key!r} has no label (.cls or .json), only {has}")
    seen.add(key)
    return sample
