"""From a configuration to networks. The one place where names in the configuration become objects."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..config.schema import Config
from ..models.adm_unet import adm
from ..models.augment import NUM_LABELS, augmented
from ..models.bridges import BridgesMLP, LinearBridges, QuadraticBridges
from ..models.log_ratio import LinearLogRatio, LogRatioMLP, QuadraticLogRatio
from ..models.patch_unet import PatchUNet
from ..models.preconditioning import EDMPrecond
from ..models.song_unet import ddpmpp
from ..models.value_net import ValueNet
from ..models.weights import load_denoiser_weights
from ..samplers.ten_step import TenStepSampler
from ..tasks.dxmi import few_step_schedule
from ..training.seeding import fold

_SHIPPED = Path(__file__).parent.parent / "models" / "assets"
SHIPPED_TEACHER = _SHIPPED / "shapes64-teacher.safetensors"
SHIPPED_VALUE = _SHIPPED / "shapes64-value.safetensors"


def _patch_unet(config: Config) -> nn.Module:
    n = config.network
    return PatchUNet(3, config.data.num_classes, n.patch_size, n.widths, n.num_blocks, n.dropout)


def _ddpmpp(config: Config) -> nn.Module:
    return ddpmpp(config.data.num_classes, config.data.image_size, dropout=config.network.dropout)


def _adm(config: Config) -> nn.Module:
    augment_dim = NUM_LABELS if config.teacher.augment else 0
    return adm(config.data.num_classes, config.data.image_size, augment_dim=augment_dim, dropout=config.network.dropout)


Augment = Callable[..., tuple[torch.Tensor, torch.Tensor]]  # (images, Random) -> images and their labels

BACKBONES = {"patch_unet": _patch_unet, "ddpmpp": _ddpmpp, "adm": _adm}


def seed_networks(config: Config, *keys: int) -> None:
    """Makes the initial weights a function of the run's seed and the network's keys."""
    torch.manual_seed(fold(config.run.seed, *keys))


def denoiser(config: Config) -> EDMPrecond:
    """A fresh EDM denoiser."""
    backbone = BACKBONES[config.network.kind](config)
    return EDMPrecond(backbone, config.network.sigma_data, getattr(torch, config.workers.precision))


def teacher_weights(config: Config, root: Path) -> Path:
    """The file of the teacher's weights: given, shipped, or trained by this run."""
    if config.teacher.weights == "shipped":
        return SHIPPED_TEACHER
    return Path(config.teacher.weights) if config.teacher.weights else root / "teacher" / "weights.safetensors"


def teacher(config: Config, root: Path) -> EDMPrecond:
    """The trained teacher, frozen. Raises ValueError if the weights are of another architecture."""
    network = denoiser(config)
    load_denoiser_weights(network, teacher_weights(config, root))
    return network.eval().requires_grad_(False)


def ten_step_sampler(config: Config, teacher: EDMPrecond) -> TenStepSampler:
    """The untuned few-step sampler around a trainable copy of the teacher."""
    return TenStepSampler(copy.deepcopy(teacher).requires_grad_(True), few_step_schedule(config.ten_step))


def fresh_value(config: Config) -> ValueNet:
    """A new energy network V, its weights a function of the run's seed."""
    s = config.ten_step
    seed_networks(config, 2)
    return ValueNet(
        width=s.value_width,
        num_classes=config.data.num_classes if s.value_conditional else 0,
        squash=s.value_squash,
        contrast=s.value_contrast,
        patch_size=s.value_patch_size,
    )


def value_weights(config: Config) -> Path | None:
    """The file of V's first weights, if any."""
    given = config.ten_step.value_weights
    return SHIPPED_VALUE if given == "shipped" else Path(given) if given else None


def value(config: Config) -> ValueNet:
    """The energy network V as tuning starts with it."""
    network = fresh_value(config)
    if path := value_weights(config):
        load_denoiser_weights(network, path)
    return network


LOG_RATIOS = {
    "linear": lambda s, dim: LinearLogRatio(dim),
    "quadratic": lambda s, dim: QuadraticLogRatio(dim),
    "mlp": lambda s, dim: LogRatioMLP(dim, s.width, s.num_layers),
}
BRIDGES = {
    "linear": lambda s, dim: LinearBridges(dim, s.num_bridges),
    "quadratic": lambda s, dim: QuadraticBridges(dim, s.num_bridges),
    "mlp": lambda s, dim: BridgesMLP(dim, s.width, s.num_layers, s.num_bridges),
}


def log_ratio(config: Config, dim: int) -> nn.Module:
    """A fresh network for the bridges of ln p/q, (B, K, D) -> (B, K), its weights a function of the run's seed."""
    settings = config.density_ratio
    seed_networks(config, 3)
    return (LOG_RATIOS if settings.num_bridges == 1 else BRIDGES)[settings.network](settings, dim)


def augment(config: Config) -> Augment | None:
    """EDM's augmentation for the denoiser's training, or None."""
    return augmented if config.teacher.augment else None
