"""Multi-layer perceptrons for vectors: a denoiser's backbone and a value network, for problems of few dimensions."""

import torch
from torch import Tensor, nn


class HarmonicMLP(nn.Module):
    """A backbone of four linear layers over vectors, with the noise level as harmonics (contract of `EDMPrecond`).

    The first three layers are its encoder. The encoding is taken before the non-linearity: its channel mean serves as a
    log-ratio, which must be free to take any value, and SiLU is bounded below. With two layers the critic, then a
    network of one hidden layer, hardly tells a ring of narrow modes from its blurred copy.
    """

    def __init__(self, dim: int = 2, width: int = 64, num_classes: int = 0, num_harmonics: int = 4):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("frequencies", 2.0 ** torch.arange(num_harmonics), persistent=False)
        self.encoder = nn.Sequential(
            *(nn.Linear(dim + 2 * num_harmonics + num_classes, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            nn.Linear(width, width),
        )
        self.decoder = nn.Sequential(nn.SiLU(), nn.Linear(width, dim))

    def with_encoding(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """F (B, dim) and the encoding (B, width, 1, 1), for x (B, dim) and noise labels (B,)."""
        if augment_labels is not None:
            raise ValueError("HarmonicMLP has no input for augmentation labels; train it without augmentation")
        if class_labels is None:
            class_labels = x.new_zeros(len(x), self.num_classes)
        phase = noise_labels[:, None] * self.frequencies
        encoding = self.encoder(torch.cat([x, phase.sin(), phase.cos(), class_labels], dim=1))
        return self.decoder(encoding), encoding[:, :, None, None]

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, dim)."""
        return self.with_encoding(x, noise_labels, class_labels, augment_labels)[0]


class ValueMLP(nn.Module):
    """V(x, labels) -> (B,) for vectors of any scale, with a trainable affine map at its end.

    It sees 2x/(1+|x|) and log(1+|x|) per coordinate: a value without a time input meets all from data to noise of
    standard deviation 80, and with raw x it fits the far states only.
    """

    def __init__(self, dim: int = 2, width: int = 64, num_classes: int = 0):
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            *(nn.Linear(2 * dim + num_classes, width), nn.LeakyReLU(0.2)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2)),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Values (B,) of x (B, dim) and one-hot labels (B, num_classes); None stands for zeros."""
        if labels is None:
            labels = x.new_zeros(len(x), self.num_classes)
        return self.layers(torch.cat([2 * x / (1 + x.abs()), x.abs().log1p(), labels], dim=1)).squeeze(1)
