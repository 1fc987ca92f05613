"""From configuration to the optimiser settings that a task hands to the training loop."""

from collections.abc import Mapping

from ..config import schema
from .task import OptimiserSettings


def optimiser_settings(
    settings: schema.Optimiser,
    ema_half_life: float | None = None,
    ema_rampup: float = 0.05,
    lr_scales: Mapping[str, float] | None = None,
) -> OptimiserSettings:
    """Adam's settings for one network; zeros in the configuration switch clipping and the average off."""
    return OptimiserSettings(
        lr=settings.lr,
        kind=settings.kind,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        warmup_samples=settings.warmup_samples,
        decay_fraction=settings.decay_fraction,
        clip_norm=settings.clip_norm or None,
        clip_value=settings.clip_value or None,
        ema_half_life=ema_half_life or None,
        ema_rampup=ema_rampup,
        lr_scales=lr_scales or {},
    )
