"""A small U-Net for laptops: patches in, a convolutional head on [x, features] out.

Pixels are folded into patches before the first convolution, so the expensive part works on a coarse grid; the head sees
the full-resolution input again, without which fine edges are lost. Under 2 ms per 64x64 picture and forward pass on one
core.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import dropout as drop

_GROUPS = 8
_HEAD_WIDTH = 8


def harmonics(level: Tensor, num: int) -> Tensor:
    """Sines and cosines (B, num) of a noise level (B,) at geometric frequencies."""
    frequency = torch.exp(torch.linspace(0, math.log(200.0), num // 2, device=level.device))
    angle = level.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights and bias 0, so that a residual branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """norm-SiLU-conv twice, with scale and shift from the embedding between."""

    def __init__(self, num_in: int, num_out: int, num_embedding: int, dropout: float):
        super().__init__()
        self.norm0 = nn.GroupNorm(_GROUPS, num_in)
        self.conv0 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.affine = nn.Linear(num_embedding, 2 * num_out)
        self.norm1 = nn.GroupNorm(_GROUPS, num_out)
        self.dropout = dropout
        self.conv1 = zeroed(nn.Conv2d(num_out, num_out, 3, padding=1))
        self.skip = nn.Conv2d(num_in, num_out, 1) if num_in != num_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C_in, h, w), embedding (B, E) -> (B, C_out, h, w)."""
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv1(drop(h, self.dropout, self.training))


class SelfAttention(nn.Module):
    """One head of attention over all positions, residual."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, num_channels)
        self.qkv = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.proj = zeroed(nn.Conv2d(num_channels, num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1)  # each (B, h*w, C)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.mT.unflatten(2, x.shape[2:]))


class PatchUNet(nn.Module):
    """F(x; noise, labels) on patches: levels of `widths` channels, each half as fine as the one before."""

    def __init__(
        self,
        num_channels: int = 3,
        num_classes: int = 0,
        patch_size: int = 4,
        widths: Sequence[int] = (32, 128),
        num_blocks: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.patch_size, self.num_embedding = num_classes, patch_size, widths[-1]
        size = widths[-1]
        self.map_noise = nn.Linear(size, size)
        self.map_label = nn.Linear(num_classes, size, bias=False) if num_classes else None
        self.map_out = nn.Linear(size, size)
        folded = num_channels * patch_size**2

        def blocks(num_in: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResidualBlock(num_in if i == 0 else width, width, size, dropout) for i in range(num_blocks)
            )

        self.conv_in = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(blocks(width, width) for width in widths)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.attention = SelfAttention(size)
        self.decoder = nn.ModuleList(blocks(2 * width, width) for width in widths)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.conv_out = nn.Conv2d(widths[0], _HEAD_WIDTH * patch_size**2, 1)
        self.head = nn.Sequential(
            nn.Conv2d(_HEAD_WIDTH + num_channels, 2 * _HEAD_WIDTH, 3, padding=1),
            nn.SiLU(),
            zeroed(nn.Conv2d(2 * _HEAD_WIDTH, num_channels, 3, padding=1)),
        )
        self.to(memory_format=torch.channels_last)  # twice as fast in bfloat16 on CPUs

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        """Embedding (B, E) of the noise level and the class."""
        embedding = self.map_noise(harmonics(noise_labels, self.num_embedding))
        if self.map_label is not None and class_labels is not None:
            embedding = embedding + self.map_label(class_labels * self.num_classes**0.5)
        return F.silu(self.map_out(F.silu(embedding)))

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The output of every level, finest first."""
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size).to(memory_format=torch.channels_last))
        levels = []
        for i, level in enumerate(self.encoder):
            h = self.down[i - 1](h) if i else h
            for block in level:
                h = block(h, embedding)
            levels.append(h)
        return levels

    def decode(self, levels: list[Tensor], embedding: Tensor) -> Tensor:
        """Features (B, head, H, W) from the encoder's levels."""
        h = self.attention(levels[-1])
        for i in reversed(range(len(levels))):
            h = torch.cat([h, levels[i]], 1)
            for block in self.decoder[i]:
                h = block(h, embedding)
            h = self.up[i - 1](F.interpolate(h, scale_factor=2)) if i else h
        return F.pixel_shuffle(self.conv_out(F.silu(h)), self.patch_size)

    def with_encoding(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(F, encoding) for x (B, C, H, W); the encoding (B, C', h, w) is the coarsest encoder level."""
        embedding = self.embed(noise_labels, class_labels)
        levels = self.encode(x, embedding)
        return self.head(torch.cat([self.decode(levels, embedding), x], 1)), levels[-1]

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F alone; see `with_encoding`. Augmentation labels are ignored."""
        return self.with_encoding(x, noise_labels, class_labels, augment_labels)[0]
