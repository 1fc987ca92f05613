"""Checkpoints: tensors in safetensors, scalars in JSON, digests in a manifest written last, all renamed into place.

<directory>/<samples seen, 12 digits>/{state.safetensors, state.json, manifest.json}
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .state import TrainState

FORMAT = 1
KEEP_LAST = 2


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    """Writes JSON beside and renames, so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    _sync(temporary)
    os.replace(temporary, path)


def save(directory: Path, state: TrainState) -> Path:
    """Commits the state as a new checkpoint and drops all but the last `KEEP_LAST`."""
    final = directory / f"{state.samples_seen:012d}"
    if final.exists():
        return final
    temporary = directory / f".saving-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors().items()}
    save_file(tensors, temporary / "state.safetensors")
    scalars = {"samples_seen": state.samples_seen, "skipped_steps": state.skipped_steps, **state.scalars}
    write_json(temporary / "state.json", scalars)
    _sync(temporary / "state.safetensors")
    digests = {name: sha256(temporary / name) for name in ("state.safetensors", "state.json")}
    write_json(temporary / "manifest.json", {"format": FORMAT, "sha256": digests})
    os.replace(temporary, final)
    _sync(directory)
    for old in sorted(committed(directory))[:-KEEP_LAST]:
        shutil.rmtree(old)
    return final


def committed(directory: Path) -> Iterator[Path]:
    """Checkpoint folders in place; half-written ones have another name."""
    return (path for path in directory.glob("[0-9]" * 12) if path.is_dir())


def problem(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        bad = [name for name, digest in manifest["sha256"].items() if sha256(checkpoint / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        return f"unreadable ({error})"
    if manifest["format"] != FORMAT:
        return f"format {manifest['format']}, this version reads {FORMAT}"
    return f"digest of {', '.join(bad)} does not match" if bad else None


def restore_newest(directory: Path, state: TrainState, say: Callable[[str], None]) -> bool:
    """Restores the newest valid checkpoint; damaged ones are passed over and named. False if there is none."""
    for checkpoint in sorted(committed(directory), reverse=True):
        if reason := problem(checkpoint):
            say(f"checkpoint {checkpoint} passed over: {reason}")
            continue
        restore(checkpoint, state)
        return True
    return False


def restore(checkpoint: Path, state: TrainState) -> None:
    """Restores one checkpoint. Raises ValueError if it belongs to other networks."""
    scalars = json.loads((checkpoint / "state.json").read_text())
    try:
        state.load_tensors(load_file(checkpoint / "state.safetensors"))
    except (RuntimeError, KeyError, SafetensorError) as error:
        line = " ".join(str(error).split())[:300]
        raise ValueError(
            f"checkpoint {checkpoint} does not fit these networks ({line}); use another run.name"
        ) from error
    state.samples_seen, state.skipped_steps = scalars.pop("samples_seen"), scalars.pop("skipped_steps")
    state.scalars = scalars
