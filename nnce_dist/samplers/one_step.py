"""One network evaluation per sample: G(z) = D(sigma_init z; sigma_init) (SiD, Zhou et al. 2024)."""

from torch import Tensor

from .heun import Denoise, Normal


def one_step(denoise: Denoise, shape: tuple[int, ...], sigma_init: float, random: Normal) -> Tensor:
    """Samples (B, *shape) from one call of `denoise(x, sigma (B,))`; the batch size is that of `random`."""
    z = random.normal(*shape)
    return denoise(sigma_init * z, z.new_full((len(z),), sigma_init))
