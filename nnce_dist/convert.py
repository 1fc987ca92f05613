"""Turns NVIDIA's EDM pickles into safetensors, without executing them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnce_dist.models.edm_pickle import PickledNetwork, read_edm_pickle
from nnce_dist.models.weights import save_weights, write_atomically


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote; the file `description` holds the same as JSON."""

    weights: str  # the safetensors file
    weights_sha256: str
    source: str
    source_sha256: str
    class_name: str
    init_kwargs: dict[str, Any]  # of EDM's constructor: image and label sizes, model type, widths
    num_tensors: int
    num_values: int
    warning: str  # empty when the source's digest was given

    @property
    def description(self) -> Path:
        """The JSON file beside the weights."""
        return Path(self.weights).with_suffix(".json")

    def __str__(self) -> str:
        """For people: what was written, and the warning if there is one."""
        written = (
            f"{self.weights}: {self.num_tensors} tensors, {self.num_values:,} numbers; described in {self.description}"
        )
        return f"{written}\nsource sha256 {self.source_sha256}" + (f"\nwarning: {self.warning}" if self.warning else "")


def _sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_source(path: Path | str, expected: str | None) -> str:
    """The digest of a source file that is what the caller expects."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    actual = _sha256(path)
    if expected and actual != expected.lower():
        raise ValueError(f"{path}: its sha256 is {actual}, not {expected}; fetch the file again or correct the digest")
    return actual


def _edm_network(path: Path | str) -> PickledNetwork:
    network = read_edm_pickle(path)
    if network.class_name != "EDMPrecond":
        raise ValueError(
            f"{path}: holds a {network.class_name}, but only EDMPrecond networks are read; use an edm-*.pkl"
        )
    return network


def convert(pickle_path: Path | str, safetensors_path: Path | str, sha256: str | None = None) -> Conversion:
    """Writes the averaged network of an EDM pickle to safetensors, and what it is to a JSON file beside it.

    `sha256` is the digest that the source must have. Nothing in the pickle is executed. Raises FileNotFoundError or
    ValueError with one line; then nothing is written.
    """
    digest = _checked_source(pickle_path, sha256)
    network = _edm_network(pickle_path)
    try:
        json.dumps(network.init_kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{pickle_path}: its constructor arguments are no plain values ({error})") from None
    save_weights(network.tensors, safetensors_path)
    conversion = Conversion(
        weights=str(safetensors_path),
        weights_sha256=_sha256(safetensors_path),
        source=str(pickle_path),
        source_sha256=digest,
        class_name=network.class_name,
        init_kwargs=network.init_kwargs,
        num_tensors=len(network.tensors),
        num_values=sum(tensor.numel() for tensor in network.tensors.values()),
        warning="" if sha256 else f"no --sha256 was given, so nothing shows that {pickle_path} is the file you want",
    )
    text = json.dumps(asdict(conversion), indent=2, allow_nan=False) + "\n"
    write_atomically(conversion.description, lambda temporary: temporary.write_text(text))
    return conversion
