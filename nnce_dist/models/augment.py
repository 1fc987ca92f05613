"""EDM's non-leaking augmentation: random flips and affine maps of the images, told to the network as nine labels.

The geometry of StyleGAN2-ADA (Karras et al. 2020, appendix B) as EDM uses it (Karras et al. 2022, appendix F.2). The
horizontal flip is always on, the other five each act with a probability. Sampling passes no labels: "as it is".
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_LABELS = 9

_STD_SCALE = 0.2  # of log2 of the isotropic and of the anisotropic scale
_STD_SHIFT = 0.125  # of the translation, in image sizes
_ALIGNED = 0.5  # chance that a stretch follows the axes of the image

# Low-pass filter of the sym6 wavelet: shifted by even steps it is orthonormal, so that refining an image with it and
# coarsening it again changes nothing.
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_TAPS = len(_SYM6)
_BEFORE = 5  # filter taps before the one at an image's own pixel
_PAD = _TAPS // 2  # mirrored pixels around an image that is refined
_MARGIN = _TAPS // 4  # of them, pixels for which the finer grid knows both sides


class Random(Protocol):
    """One random stream per image."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape)."""


@dataclass(frozen=True)
class Geometry:
    """How each image of a batch is changed; all fields (B,) but `shift` (B, 2). All zero: as it is."""

    flip_x: Tensor  # 0 or 1
    flip_y: Tensor
    scale: Tensor  # log2 of the zoom, in standard deviations
    angle: Tensor  # rotation, radians
    stretch: Tensor  # log2 of the zoom along `axis` and of the shrinking across it, in standard deviations
    axis: Tensor  # radians
    shift: Tensor  # (x, y), in standard deviations

    @property
    def labels(self) -> Tensor:
        """(B, 9), in the order in which EDM's networks were trained on them."""
        turn = (self.angle.cos() - 1, self.angle.sin())
        pull = (self.stretch * self.axis.cos(), self.stretch * self.axis.sin())
        columns = (self.flip_x, self.flip_y, self.scale, *turn, *pull, *self.shift.unbind(1))
        return torch.stack(columns, 1)

    @property
    def affine(self) -> Tensor:
        """(B,) whether there is more than flips."""
        return self.labels[:, 2:].ne(0).any(1)


def drawn(random: Random, probability: float) -> Geometry:
    """A random geometry per image; every one takes the same number of draws."""
    coin, angle, normal = random.uniform(8), 2 * math.pi * (random.uniform(2) - 0.5), random.normal(4)
    acts = (coin[:, :5] < probability).float()
    return Geometry(
        flip_x=(coin[:, 5] < 0.5).float() * (probability > 0),
        flip_y=(coin[:, 6] < 0.5).float() * acts[:, 0],
        scale=normal[:, 0] * acts[:, 1],
        angle=angle[:, 0] * acts[:, 2],
        stretch=normal[:, 1] * acts[:, 3],
        axis=angle[:, 1] * (coin[:, 7] >= _ALIGNED),
        shift=normal[:, 2:] * acts[:, 4:],
    )


def flipped(x: Tensor, geometry: Geometry) -> Tensor:
    """x (B, C, H, W) with the images mirrored that are to be."""
    x = torch.where(geometry.flip_x.bool()[:, None, None, None], x.flip(3), x)
    return torch.where(geometry.flip_y.bool()[:, None, None, None], x.flip(2), x)


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2) acting on (x, y)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def sources(geometry: Geometry, points: Tensor, size: Tensor) -> Tensor:
    """Where in the old image (B, ..., 2) the new one takes its `points` (..., 2); pixels (x, y) from the centre.

    `size` (2,) is the image's width and height.
    """
    pull = torch.stack([-geometry.stretch, geometry.stretch], 1) * _STD_SCALE
    stretching = _rotation(-geometry.axis) @ torch.diag_embed(pull.exp2()) @ _rotation(geometry.axis)
    zoom = (-_STD_SCALE * geometry.scale).exp2()[:, None, None]
    moved = points.reshape(1, -1, 2) - (geometry.shift * _STD_SHIFT * size)[:, None]
    turned = moved @ (zoom * _rotation(geometry.angle) @ stretching).mT
    return turned.reshape(-1, *points.shape)


def _mirrored(position: Tensor, last: Tensor) -> Tensor:
    """Positions far outside [0, last] folded into it, as if the image went on mirrored; up to `_MARGIN` it does."""
    folded = last - (last - position % (2 * last)).abs()
    return torch.where((position < -_MARGIN) | (position > last + _MARGIN), folded, position)


def _output_points(last: Tensor) -> Tensor:
    """Positions (h, w, 2) of the twice finer grid that coarsening needs: pixels (x, y) from the first one's centre."""
    num = (2 * last).long() + 1 + _TAPS
    x, y = (torch.arange(int(n), device=last.device, dtype=last.dtype) / 2 - _BEFORE / 2 for n in num)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def warped(x: Tensor, geometry: Geometry) -> Tensor:
    """x (B, C, H, W) under the affine part of the geometry, read off a grid twice as fine to keep aliasing low."""
    batch, channels, height, width = x.shape
    kernel = x.new_tensor(_SYM6).outer(x.new_tensor(_SYM6))[None, None]
    last = x.new_tensor([width - 1, height - 1])
    position = sources(geometry, _output_points(last) - last / 2, last + 1) + last / 2  # (B, h, w, 2)
    index = 2 * (_mirrored(position, last) + _PAD) + _BEFORE  # on the finer grid
    padded = F.pad(x, [_PAD] * 4, mode="reflect").reshape(batch * channels, 1, height + 2 * _PAD, width + 2 * _PAD)
    fine = F.conv_transpose2d(padded, kernel, stride=2).unflatten(0, (batch, channels)).squeeze(2)
    finest = last.new_tensor([fine.shape[3] - 1, fine.shape[2] - 1])
    moved = F.grid_sample(fine, 2 * index / finest - 1, mode="bilinear", align_corners=True)
    return F.conv2d(moved.flatten(0, 1)[:, None], kernel, stride=2).reshape(x.shape)


def augmented(x: Tensor, random: Random, probability: float = 0.12) -> tuple[Tensor, Tensor]:
    """Images x (B, C, H, W) randomly changed, and the labels (B, 9) that say how.

    Images without an affine change are copied or flipped, exactly; the others may ring slightly beyond the range of x.
    """
    geometry = drawn(random, probability)
    x = flipped(x, geometry)
    affine = geometry.affine
    if affine.any():
        x = torch.where(affine[:, None, None, None], warped(x, geometry), x)
    return x, geometry.labels
