"""EDM preconditioning: a raw network F becomes a denoiser D(x; sigma) (Karras et al. 2022, section 5, equation 7)."""

import torch
from torch import Tensor, nn


def c_skip(sigma: Tensor, sigma_data: float) -> Tensor:
    """Weight of the noisy input in the output."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def c_out(sigma: Tensor, sigma_data: float) -> Tensor:
    """Scale of the network's output."""
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


def c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """Scale of the network's input: unit variance."""
    return 1 / (sigma**2 + sigma_data**2).sqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """The noise level as the network sees it."""
    return sigma.log() / 4


class EDMPrecond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise, labels).

    `model` is a backbone with `with_encoding`. x, sigma and the combination stay float32; `precision` is the type in
    which the backbone runs (autocast).
    """

    def __init__(self, model: nn.Module, sigma_data: float = 0.5, precision: torch.dtype = torch.float32):
        super().__init__()
        self.model = model
        self.sigma_data = sigma_data
        self.precision = precision

    def _run(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augment: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.float()
        level = sigma.float().reshape(-1, *[1] * (x.ndim - 1))
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            f, encoding = self.model.with_encoding(
                c_in(level, self.sigma_data) * x, c_noise(level.flatten()), labels, augment
            )
        d = c_skip(level, self.sigma_data) * x + c_out(level, self.sigma_data) * f.float()
        return d, encoding

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Denoised x (B, ...) for noise levels sigma (B,), one-hot labels (B, num_classes) and augmentation labels."""
        return self._run(x, sigma, labels, augment)[0]

    def with_critic(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Denoised x and the critic's logits (B, 1, h, w) from one forward pass.

        The logits are the channel mean of the last encoder block's output: a critic without weights of its own (SiDA).
        """
        d, encoding = self._run(x, sigma, labels, augment)
        return d, encoding.float().mean(1, keepdim=True)
