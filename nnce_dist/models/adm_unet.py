"""ADM as EDM trains it, DhariwalUNet in its checkpoints (Dhariwal & Nichol 2021; Karras et al. 2022, table 7)."""

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

_EPS = 1e-5


class DhariwalUNet(nn.Module):
    """F(x; noise, labels) with attention in every block at the sizes `layout.attention`."""

    def __init__(
        self,
        layout: Layout,
        num_classes: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.1,
        channels_per_head: int = 64,
    ):
        super().__init__()
        width, num_embedding = layout.width, 4 * layout.width
        self.num_classes = num_classes
        self.map_augment = nn.Linear(augment_dim, width, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(width, num_embedding)
        self.map_layer1 = nn.Linear(num_embedding, num_embedding)
        self.map_label = nn.Linear(num_classes, num_embedding, bias=False) if num_classes else None
        style = BlockStyle(
            num_embedding,
            dropout,
            adaptive_scale=True,
            project_resampled=False,
            residual_scale=1.0,
            eps=_EPS,
            channels_per_head=channels_per_head,
        )

        def attends(size: int, block: int) -> bool:
            return size in layout.attention

        self.enc = build_encoder(layout, style)
        self.dec = build_decoder(layout, style, [block.out_channels for block in self.enc.values()], attends)
        self.out_norm = group_norm(layout.levels[0][1], _EPS)
        self.out_conv = Conv2d(layout.levels[0][1], layout.num_channels, 3)
        self._initialise()

    def _initialise(self) -> None:
        """torch's uniform weights and biases; layers that end a residual branch 0; class weights of unit variance."""
        for name, layer in self.named_modules():
            if name.rpartition(".")[2] in ("conv1", "proj", "out_conv", "map_augment"):
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding (B, E) of the noise level, the augmentation and the class (missing: zeros)."""
        cos, sin = sinusoids(noise_labels, self.map_layer0.in_features, endpoint=False)
        embedding = torch.cat([cos, sin], 1)
        if self.map_augment is not None:
            embedding = embedding + self.map_augment(or_zeros(augment_labels, self.map_augment.in_features, embedding))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(or_zeros(class_labels, self.num_classes, embedding))
        return F.silu(embedding)

    def with_encoding(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(F, encoding) for x (B, C, H, W), noise labels (B,), one-hot classes (B, n) and augmentation labels.

        The encoding (B, C', h, w) is the output of the last encoder block.
        """
        embedding = self.embed(noise_labels, class_labels, augment_labels)
        outputs = encode(self.enc, x, embedding)
        h = decode(self.dec, outputs, embedding)
        return self.out_conv(F.silu(self.out_norm(h))), outputs[-1]

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F alone; see `with_encoding`."""
        return self.with_encoding(x, noise_labels, class_labels, augment_labels)[0]


def adm(
    num_classes: int,
    image_size: int,
    num_channels: int = 3,
    width: int = 192,
    multipliers: Sequence[int] = (1, 2, 3, 4),
    num_blocks: int = 3,
    attention: Sequence[int] = (32, 16, 8),
    augment_dim: int = 0,
    dropout: float = 0.1,
    channels_per_head: int = 64,
) -> DhariwalUNet:
    """ADM at EDM's published sizes for ImageNet 64x64; `num_classes` 0 is unconditional."""
    layout = Layout(image_size, num_channels, width * multipliers[0], width, multipliers, num_blocks, attention)
    return DhariwalUNet(layout, num_classes, augment_dim, dropout, channels_per_head)
