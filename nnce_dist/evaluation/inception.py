"""The feature network `inception`: Inception-v3 with the user's own weights, fed the way published figures feed it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .features import file_digest
from .inception_v3 import InceptionV3

IMAGE_SIZE = 299
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"


class Inception:
    """The feature network `inception` of the evaluation (see `features.FeatureNetwork`).

    Args:
        weights: a local `pt_inception-2015-12-05-*.pth`, or the same tensors as safetensors.
        device: where it runs.

    Raises:
        FileNotFoundError, ValueError: no such file, unreadable, or not these tensors; in one line.
    """

    name = "inception"
    dim = 2048

    def __init__(self, weights: Path, device: torch.device | str = "cpu"):
        self._net = InceptionV3()
        self._net.load_state_dict(load_weights(weights), strict=False)  # lacks only the batch norms' counters
        self._net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._device = device
        self.digest = file_digest(weights)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, 2048) float32 of 8-bit images (B, 3, H, W) of any size."""
        if images.dtype != torch.uint8:
            raise ValueError(f"inception features are of 8-bit images, not of {images.dtype}")
        return self._net((resized(images.to(self._device), IMAGE_SIZE) - 128) / 128)


def resized(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize, corners not aligned: (B, C, H, W) -> (B, C, size, size) float32.

    Output pixel i reads at i * H / size, which shifts the picture by up to half a pixel against other bilinears.
    """
    return _resized_along(_resized_along(images.float(), 3, size), 2, size)


def _resized_along(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    position = torch.arange(size, device=x.device, dtype=torch.float32) * torch.tensor(length / size)
    low = position.long()
    weight = (position - low).view(-1, *[1] * (x.dim() - 1 - dim))
    left, right = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
    return left + (right - left) * weight


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file after comparing their names and shapes with the network's; runs no pickled code.

    Raises FileNotFoundError or ValueError, in one line, as `Inception` does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a local copy of {PUBLISHED}")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything; torch's own text advises to run it
        raise ValueError(f"{path}: not a file of tensors; give {PUBLISHED} or its tensors as safetensors") from error
    if problem := _difference(tensors):
        raise ValueError(f"{path}: not the weights of {PUBLISHED}: {problem}")
    return tensors


def _difference(tensors: object) -> str:
    """What keeps these tensors from being the network's, counters of batch norms aside; empty when nothing does."""
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return "it holds something else than tensors by name"
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items() if not _is_counter(name)}
    given = {name: tensor.shape for name, tensor in tensors.items() if not _is_counter(name)}
    differing = {
        "missing": wanted.keys() - given.keys(),
        "unexpected": given.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & given.keys() if wanted[name] != given[name]},
    }
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in differing.items() if names)


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _some(names: set[str], limit: int = 3) -> str:
    return ", ".join(sorted(names)[:limit]) + (", ..." if len(names) > limit else "")
