"""Feature networks: 8-bit images in, feature vectors out. `shapes` is bundled, `inception` needs the user's weights."""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SHAPES_WEIGHTS = Path(__file__).parent / "assets" / "shapes.safetensors"


class FeatureNetwork(Protocol):
    """What the evaluation needs of a feature network."""

    name: str  # part of every figure's name
    digest: str  # sha256 of the weights: figures compare only under the same one
    dim: int  # length d of a feature vector

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, d) float32 of 8-bit images (B, 3, H, W)."""


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit pixels: 127.5 x + 128, clipped and truncated (as in EDM's and SiD's figures)."""
    return images if images.dtype == torch.uint8 else (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


class ShapesNet(nn.Module):
    """A small convolutional network on 64x64 pictures: 64 features, from which linear heads read class and factors."""

    size = 64
    dim = 64

    def __init__(self, num_classes: int, num_factors: int):
        super().__init__()
        widths = (3, 16, 32, 48, 48)  # four halvings: 64 -> 4 pixels a side
        stages = [_stage(c_in, c_out) for c_in, c_out in zip(widths, widths[1:], strict=False)]
        self.trunk = nn.Sequential(*stages, nn.Flatten(), nn.Linear(widths[-1] * 4 * 4, self.dim, bias=False))
        self.standardise = nn.BatchNorm1d(self.dim, affine=False)  # every feature weighs the same in a distance
        self.class_head = nn.Linear(self.dim, num_classes)
        self.factor_head = nn.Linear(self.dim, num_factors)

    def features(self, pixels: Tensor) -> Tensor:
        """Features (B, 64) of pictures (B, 3, 64, 64) in [-1, 1]."""
        return self.standardise(self.trunk(pixels))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, num_classes) and factor estimates (B, num_factors)."""
        hidden = F.silu(self.features(pixels))
        return self.class_head(hidden), self.factor_head(hidden)


def _stage(c_in: int, c_out: int) -> nn.Sequential:
    """Halves the resolution: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""
    convolution = nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(c_out), act=nn.ReLU()))


def _fold_norms(trunk: nn.Sequential) -> None:
    """Puts every batch norm's fixed scale and shift into the convolution before it: the same function, less work."""
    for stage in trunk:
        if isinstance(stage, nn.Sequential):
            stage.conv = fuse_conv_bn_eval(stage.conv, stage.norm)
            stage.norm = nn.Identity()


class Shapes:
    """The bundled network for the project's own pictures: features, and the class that each picture shows."""

    name = "shapes"
    dim = ShapesNet.dim

    def __init__(self, weights: Path = SHAPES_WEIGHTS, device: torch.device | str = "cpu"):
        state = load_file(weights)
        self.digest = file_digest(weights)
        self._net = ShapesNet(len(state["class_head.bias"]), len(state["factor_head.bias"]))
        self._net.load_state_dict(state)
        self._net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        _fold_norms(self._net.trunk)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, 64) of 8-bit images (B, 3, H, W), resized to 64x64."""
        return self._net.features(self._pixels(images))

    def classify(self, images: Tensor) -> Tensor:
        """The class (B,) that each 8-bit image (B, 3, H, W) shows."""
        return self.classes(self(images))

    def classes(self, features: Tensor) -> Tensor:
        """The same from features (B, 64) at hand."""
        return self._net.class_head(F.silu(features)).argmax(1)

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.to(self._device).float() / 127.5 - 1
        if pixels.shape[-2:] == (ShapesNet.size, ShapesNet.size):
            return pixels
        return F.interpolate(pixels, (ShapesNet.size, ShapesNet.size), mode="bilinear", antialias=True)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_features(kind: str, weights: str = "", device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network by name; `auto` is inception when its weights are given and shapes otherwise.

    Raises ValueError or FileNotFoundError with what to do when inception is asked for and its weights are missing.
    """
    if kind == "shapes" or (kind == "auto" and not weights):
        return Shapes(device=device)
    if not weights:
        raise ValueError("inception features need evaluation.inception_weights=<pt_inception-2015-12-05 file>")
    if not Path(weights).is_file():
        raise FileNotFoundError(f"evaluation.inception_weights: no file {weights}")
    from .inception import Inception  # only who asks for it pays for building it

    return Inception(Path(weights), device=device)
