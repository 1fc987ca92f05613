"""Weights as safetensors: written whole or not at all, and loaded only into the network that they fit."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_SHOWN = 3  # names of a kind in an error message


def write_atomically(path: Path | str, write) -> None:
    """Calls `write(temporary path)`, then puts that file in the place of `path`; a reader never sees half of it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Writes tensors to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary))


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError with one line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a safetensors file ({error}); turn NVIDIA's pickles into one with `nnce convert`"
        ) from None


def _listed(kind: str, names: Iterable[str]) -> str:
    """'2 missing: a, b', cut after a few names; empty without names."""
    names = sorted(names)
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""


def differences(network: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Which tensors do not fit the network, in one line; empty if all do. Buffers may be missing."""
    expected = network.state_dict()
    needed = expected.keys() - {name for name, _ in network.named_buffers()}
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    parts = (
        _listed("missing", needed - tensors.keys()),
        _listed("unexpected", tensors.keys() - expected.keys()),
        _listed("of another shape", reshaped),
    )
    return "; ".join(part for part in parts if part)


def load_denoiser_weights(denoiser: nn.Module, path: Path | str) -> None:
    """Fills a denoiser from a safetensors file of the same architecture.

    Raises FileNotFoundError or ValueError; the line names the tensors that differ.
    """
    tensors = load_weights(path)
    if differing := differences(denoiser, tensors):
        raise ValueError(
            f"{path}: weights of another architecture ({differing}); "
            "set network.kind, its sizes and the class count to what these weights were trained with"
        )
    denoiser.load_state_dict(tensors, strict=False)
