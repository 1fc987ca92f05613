"""What DDPM++ and ADM share as EDM arranges them: the U-Net block, encoder, decoder and the noise level's sinusoids.

Modules and tensors carry the names of NVIDIA's released checkpoints, so that their weights load here
(Karras et al. 2022, table 7; block maths after Song et al. 2021 and Dhariwal & Nichol 2021).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import dropout

Resampling = Literal["up", "down"] | None


def resample(x: Tensor, box: Tensor, mode: Resampling) -> Tensor:
    """x (B, C, H, W) made twice as fine or coarse by the filter `box` (1, 1, 2, 2), channel by channel."""
    num_channels = x.shape[1]
    kernel = box.expand(num_channels, -1, -1, -1)
    if mode == "up":
        return F.conv_transpose2d(x, 4 * kernel, stride=2, groups=num_channels)
    return F.conv2d(x, kernel, stride=2, groups=num_channels)


class Resample(nn.Module):
    """A box filter, stored as a buffer because the checkpoints store it."""

    def __init__(self, mode: Resampling):
        super().__init__()
        self.mode = mode
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        return resample(x, self.resample_filter, self.mode)


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size, after an optional box resampling."""

    def __init__(self, num_in: int, num_out: int, kernel_size: int, mode: Resampling = None):
        super().__init__(num_in, num_out, kernel_size, padding=kernel_size // 2)
        self.mode = mode
        if mode:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, num_in, H, W) -> (B, num_out, H', W')."""
        return super().forward(resample(x, self.resample_filter, self.mode) if self.mode else x)


def group_norm(num_channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels."""
    return nn.GroupNorm(min(32, num_channels // 4), num_channels, eps)


@dataclass(frozen=True)
class BlockStyle:
    """Where the blocks of DDPM++ and ADM differ."""

    num_embedding: int  # width of the embedding
    dropout: float
    adaptive_scale: bool  # the embedding scales and shifts (ADM) or only shifts (DDPM++)
    project_resampled: bool  # a resampled skip has a 1x1 convolution even between equal widths (DDPM++)
    residual_scale: float  # factor on every residual sum
    eps: float  # of the group norms
    channels_per_head: int | None  # of the attention; None: one head

    def num_heads(self, num_channels: int) -> int:
        """Attention heads for a width."""
        head = self.channels_per_head or num_channels
        if num_channels % head:
            raise ValueError(
                f"attention over {num_channels} channels cannot be cut into heads of {head}; change the width"
            )
        return num_channels // head


class UNetBlock(nn.Module):
    """norm-SiLU-conv twice with the embedding between, a skip, then attention where asked for."""

    def __init__(self, num_in: int, num_out: int, style: BlockStyle, mode: Resampling = None, attention: bool = False):
        super().__init__()
        self.in_channels, self.out_channels, self.style = num_in, num_out, style
        self.norm0 = group_norm(num_in, style.eps)
        self.conv0 = Conv2d(num_in, num_out, 3, mode)
        self.affine = nn.Linear(style.num_embedding, num_out * (2 if style.adaptive_scale else 1))
        self.norm1 = group_norm(num_out, style.eps)
        self.conv1 = Conv2d(num_out, num_out, 3)
        if num_in != num_out or (mode and style.project_resampled):
            self.skip = Conv2d(num_in, num_out, 1, mode)
        else:
            self.skip = Resample(mode) if mode else nn.Identity()
        self.num_heads = style.num_heads(num_out) if attention else 0
        if attention:
            self.norm2 = group_norm(num_out, style.eps)
            self.qkv = Conv2d(num_out, 3 * num_out, 1)
            self.proj = Conv2d(num_out, num_out, 1)

    def modulate(self, h: Tensor, embedding: Tensor) -> Tensor:
        """The embedding's scale and shift around the second norm (ADM), or its shift before it (DDPM++)."""
        parameters = self.affine(embedding)[:, :, None, None]
        if not self.style.adaptive_scale:
            return self.norm1(h + parameters)
        scale, shift = parameters.chunk(2, 1)
        return shift + self.norm1(h) * (1 + scale)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over positions; q, k and v are interleaved along the channels, their index fastest."""
        q, k, v = self.qkv(self.norm2(x)).reshape(len(x), self.num_heads, -1, 3, x[0, 0].numel()).unbind(3)
        y = F.scaled_dot_product_attention(q.mT, k.mT, v.mT)  # (B, heads, H*W, C/heads)
        return self.proj(y.mT.reshape(x.shape))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, num_in, H, W), embedding (B, E) -> (B, num_out, H', W')."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.modulate(h, embedding))
        h = self.conv1(dropout(h, self.style.dropout, self.training))
        x = (h + self.skip(x)) * self.style.residual_scale
        return (self.attend(x) + x) * self.style.residual_scale if self.num_heads else x


@dataclass(frozen=True)
class Layout:
    """Sizes of a U-Net's levels, finest first."""

    image_size: int
    num_channels: int  # of the image
    stem: int  # channels after the first convolution
    width: int  # channels that `multipliers` multiply
    multipliers: Sequence[int]
    num_blocks: int  # per encoder level; the decoder has one more
    attention: Sequence[int]  # image sizes with self-attention

    def __post_init__(self):
        finest = 2 ** (len(self.multipliers) - 1)
        if self.image_size % finest:
            raise ValueError(
                f"an image size of {self.image_size} cannot be halved {len(self.multipliers) - 1} times; "
                f"use a multiple of {finest} or fewer multipliers"
            )

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(image size, channels) of each level."""
        return [(self.image_size >> i, self.width * multiplier) for i, multiplier in enumerate(self.multipliers)]


def build_encoder(layout: Layout, style: BlockStyle) -> nn.ModuleDict:
    """The encoder's modules in the order in which they run."""
    blocks = nn.ModuleDict()
    channels = layout.stem
    for i, (size, width) in enumerate(layout.levels):
        if i == 0:
            blocks[f"{size}x{size}_conv"] = Conv2d(layout.num_channels, channels, 3)
        else:
            blocks[f"{size}x{size}_down"] = UNetBlock(channels, channels, style, "down")
        for j in range(layout.num_blocks):
            attention = size in layout.attention
            blocks[f"{size}x{size}_block{j}"] = UNetBlock(channels, width, style, attention=attention)
            channels = width
    return blocks


def build_decoder(
    layout: Layout, style: BlockStyle, skips: list[int], attends: Callable[[int, int], bool]
) -> nn.ModuleDict:
    """The decoder's modules in the order in which they run.

    `skips` are the widths of the encoder's outputs; `attends(size, block)` says which blocks have attention.
    """
    blocks = nn.ModuleDict()
    skips = list(skips)
    channels = skips[-1]
    for i, (size, width) in enumerate(reversed(layout.levels)):
        if i == 0:
            blocks[f"{size}x{size}_in0"] = UNetBlock(channels, channels, style, attention=True)
            blocks[f"{size}x{size}_in1"] = UNetBlock(channels, channels, style)
        else:
            blocks[f"{size}x{size}_up"] = UNetBlock(channels, channels, style, "up")
        for j in range(layout.num_blocks + 1):
            attention = attends(size, j)
            blocks[f"{size}x{size}_block{j}"] = UNetBlock(channels + skips.pop(), width, style, attention=attention)
            channels = width
    return blocks


def encode(encoder: nn.ModuleDict, x: Tensor, embedding: Tensor) -> list[Tensor]:
    """The output of every encoder module; the last is the encoding."""
    outputs = []
    for block in encoder.values():
        x = block(x, embedding) if isinstance(block, UNetBlock) else block(x)
        outputs.append(x)
    return outputs


def decode(decoder: nn.ModuleDict, outputs: list[Tensor], embedding: Tensor) -> Tensor:
    """The decoder's features (B, C, H, W) from the encoder's outputs."""
    x, outputs = outputs[-1], list(outputs)
    for block in decoder.values():
        if not isinstance(block, UNetBlock):
            break  # DDPM++ keeps its tail among the decoder's modules
        if x.shape[1] != block.in_channels:
            x = torch.cat([x, outputs.pop()], 1)
        x = block(x, embedding)
    return x


def or_zeros(labels: Tensor | None, num: int, like: Tensor) -> Tensor:
    """The labels (B, num), or zeros for missing ones: data-parallel wrappers want a gradient in every layer."""
    return like.new_zeros(1, num) if labels is None else labels


def sinusoids(level: Tensor, num: int, endpoint: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, num/2) of noise labels (B,) at frequencies from 1 down to 1e-4 (`endpoint`: inclusive)."""
    half = num // 2
    exponent = torch.arange(half, dtype=torch.float32, device=level.device) / (half - endpoint)
    angle = level.float()[:, None] * 1e-4**exponent
    return angle.cos(), angle.sin()
