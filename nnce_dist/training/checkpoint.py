"""Checkpoints: tensors in safetensors, scalars in JSON, digests in a manifest written last, all renamed into place.

<directory>/<samples seen, 12 digits>/{state.safetensors, state.json, manifest.json}
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.files import FileStore, sync_folder
from .state import Snapshot

FORMAT = 1
MANIFEST = "manifest.json"  # written last: a folder without it is no checkpoint
SCALARS, _TENSORS = "state.json", "state.safetensors"
UNFINISHED, _DAMAGED = ".saving-", ".damaged-"


class CheckpointError(RuntimeError):
    """The state could not be saved; one line says where and why. What was committed before is still there."""


class FencedError(CheckpointError):
    """Another job has taken the run over; this one may not commit any more."""


class Guard(Protocol):
    """The right to commit, which a job holds until another one takes the run over."""

    epoch: int  # grows with every job that takes the run over

    def check(self) -> None:
        """Raises FencedError once the right is lost."""


class Unguarded:
    """For a run that nobody else can write."""

    epoch = 0

    def check(self) -> None:
        """There is nobody else."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value) -> None:
    """Writes JSON beside and renames, so that a reader sees the old file or the whole new one."""
    FileStore().put(str(path), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def position(checkpoint: Path) -> int:
    """The samples seen when a checkpoint was made."""
    return int(checkpoint.name)


def at(directory: Path, samples_seen: int) -> Path:
    """The checkpoint's folder for a position."""
    return directory / f"{samples_seen:012d}"


def write(directory: Path, snapshot: Snapshot, guard: Guard) -> Path:
    """Commits a snapshot as a new checkpoint; a whole one of that position stays. Raises OSError or FencedError."""
    final = at(directory, snapshot.scalars["samples_seen"])
    if final.exists() and not problem(final):
        return final
    temporary = directory / f"{UNFINISHED}{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        _write_files(temporary, snapshot, guard)
        if final.exists():
            shutil.rmtree(final)  # damaged: this position was reached again from an older one
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(directory)
    return final


def copy(checkpoint: Path, directory: Path) -> None:
    """Makes a checkpoint of another job the newest of this directory; what is there from as far or further goes."""
    temporary = directory / f"{UNFINISHED}{uuid.uuid4().hex}"
    shutil.copytree(checkpoint, temporary)
    for path in list(committed(directory)):
        if position(path) >= position(checkpoint):
            shutil.rmtree(path)
    os.replace(temporary, directory / checkpoint.name)
    sync_folder(directory)


def _write_files(folder: Path, snapshot: Snapshot, guard: Guard) -> None:
    _save_tensors(snapshot.tensors, folder / _TENSORS)
    write_json(folder / SCALARS, snapshot.scalars)
    digests = {name: sha256(folder / name) for name in (_TENSORS, SCALARS)}
    guard.check()
    write_json(folder / MANIFEST, {"format": FORMAT, "epoch": guard.epoch, "sha256": digests})


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises OSError; safetensors tells the system's error number in its text alone."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def committed(directory: Path) -> Iterator[Path]:
    """Checkpoint folders in place; half-written ones have another name."""
    return (path for path in directory.glob("[0-9]" * 12) if path.is_dir())


def set_aside(checkpoint: Path) -> None:
    """Takes a damaged checkpoint out of the way; it stays for inspection until a later one is committed."""
    aside = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)


def remove_damaged(directory: Path, newest: Path) -> None:
    """Removes what was set aside, once a checkpoint stands at its place or beyond."""
    for path in directory.glob(f"{_DAMAGED}*"):
        if path.name <= f"{_DAMAGED}{newest.name}":
            shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(directory: Path) -> None:
    """Removes what killed processes left half-written; only the one writer of a run may do that."""
    for path in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def size(checkpoint: Path) -> int:
    """Bytes of a checkpoint on disk."""
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def problem(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        bad = [name for name, digest in manifest["sha256"].items() if sha256(checkpoint / name) != digest]
        number = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable ({type(error).__name__}: {' '.join(str(error).split())})"
    if number != FORMAT:
        return f"format {number}, this version reads {FORMAT}"
    return f"digest of {', '.join(bad)} does not match" if bad else None


def read_scalars(checkpoint: Path) -> dict:
    """The numbers and words of a checkpoint."""
    return json.loads((checkpoint / SCALARS).read_text())


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in host memory."""
    return load_file(checkpoint / _TENSORS)
