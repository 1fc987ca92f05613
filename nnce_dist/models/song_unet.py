"""DDPM++ as EDM trains it (SongUNet of the released checkpoints; Song et al. 2021, Karras et al. 2022, table 7)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .edm_blocks import (
    BlockStyle,
    Conv2d,
    Layout,
    build_decoder,
    build_encoder,
    decode,
    encode,
    group_norm,
    or_zeros,
    sinusoids,
)

_EPS = 1e-6
_MULTIPLIERS = {32: (2, 2, 2), 64: (1, 2, 2, 2)}  # EDM's CIFAR-10; its FFHQ and AFHQv2


class SongUNet(nn.Module):
    """F(x; noise, labels) with one attention head at `layout.attention` and residual sums scaled by sqrt(1/2)."""

    def __init__(self, layout: Layout, num_classes: int = 0, augment_dim: int = 9, dropout: float = 0.13):
        super().__init__()
        width, num_embedding = layout.width, 4 * layout.width
        self.num_classes = num_classes
        self.map_label = nn.Linear(num_classes, width) if num_classes else None
        self.map_augment = nn.Linear(augment_dim, width, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(width, num_embedding)
        self.map_layer1 = nn.Linear(num_embedding, num_embedding)
        style = BlockStyle(
            num_embedding,
            dropout,
            adaptive_scale=False,
            project_resampled=True,
            residual_scale=0.5**0.5,
            eps=_EPS,
            channels_per_head=None,
        )

        def attends(size: int, block: int) -> bool:
            return size in layout.attention and block == layout.num_blocks

        self.enc = build_encoder(layout, style)
        self.dec = build_decoder(layout, style, [block.out_channels for block in self.enc.values()], attends)
        finest = layout.levels[0]
        self._tail = f"{finest[0]}x{finest[0]}_aux"
        self.dec[f"{self._tail}_norm"] = group_norm(finest[1], _EPS)
        self.dec[f"{self._tail}_conv"] = Conv2d(finest[1], layout.num_channels, 3)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier weights, biases 0; layers that end a residual branch almost 0."""
        gains = {"conv1": 1e-5, "proj": 1e-5, f"{self._tail}_conv": 1e-5, "qkv": 0.2**0.5}
        for name, layer in self.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            nn.init.xavier_uniform_(layer.weight, gains.get(name.rpartition(".")[2], 1.0))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding (B, E) of the noise level, the class and the augmentation (missing: zeros)."""
        cos, sin = sinusoids(noise_labels, self.map_layer0.in_features, endpoint=True)
        embedding = torch.cat([sin, cos], 1)
        if self.map_label is not None:
            labels = or_zeros(class_labels, self.num_classes, embedding)
            embedding = embedding + self.map_label(labels * self.num_classes**0.5)
        if self.map_augment is not None:
            embedding = embedding + self.map_augment(or_zeros(augment_labels, self.map_augment.in_features, embedding))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def with_encoding(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(F, encoding) for x (B, C, H, W), noise labels (B,), one-hot classes (B, n) and augmentation labels (B, 9).

        The encoding (B, C', h, w) is the output of the last encoder block.
        """
        embedding = self.embed(noise_labels, class_labels, augment_labels)
        outputs = encode(self.enc, x, embedding)
        h = decode(self.dec, outputs, embedding)
        return self.dec[f"{self._tail}_conv"](F.silu(self.dec[f"{self._tail}_norm"](h))), outputs[-1]

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F alone; see `with_encoding`."""
        return self.with_encoding(x, noise_labels, class_labels, augment_labels)[0]


def ddpmpp(
    num_classes: int,
    image_size: int,
    num_channels: int = 3,
    width: int = 128,
    multipliers: Sequence[int] | None = None,
    num_blocks: int = 4,
    attention: Sequence[int] = (16,),
    augment_dim: int = 9,
    dropout: float = 0.13,
) -> SongUNet:
    """DDPM++ at EDM's published sizes; `num_classes` 0 is unconditional, `augment_dim` 0 has no augmentation labels.

    Raises ValueError for an image size without published multipliers when none are given.
    """
    if multipliers is None and image_size not in _MULTIPLIERS:
        raise ValueError(f"ddpmpp has published multipliers for image sizes {sorted(_MULTIPLIERS)}, not {image_size}")
    multipliers = multipliers or _MULTIPLIERS[image_size]
    layout = Layout(image_size, num_channels, width, width, multipliers, num_blocks, attention)
    return SongUNet(layout, num_classes, augment_dim, dropout)
