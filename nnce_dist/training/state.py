"""Everything that training changes: networks, their averages, optimisers, and how many samples were seen."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..tasks.task import OptimiserSettings, Task

_OPTIMISERS = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}


def learning_rate_factor(samples_seen: int, total_samples: int, settings: OptimiserSettings) -> float:
    """Linear warm-up, then constant, then linear to 0 over the last `decay_fraction` of the run."""
    warmup = min((samples_seen + 1) / settings.warmup_samples, 1.0) if settings.warmup_samples else 1.0
    tail = settings.decay_fraction * total_samples
    return warmup * (min((total_samples - samples_seen) / tail, 1.0) if tail else 1.0)


def ema_decay(batch: int, samples_seen: int, settings: OptimiserSettings) -> float:
    """beta = 0.5^(batch / half-life), the half-life at most `ema_rampup` of the samples seen (EDM, appendix F.2)."""
    half_life = settings.ema_half_life
    if settings.ema_rampup:
        half_life = min(half_life, settings.ema_rampup * samples_seen)
    return 0.5 ** (batch / max(half_life, 1e-8))


def parameter_groups(network: nn.Module, settings: OptimiserSettings) -> list[dict]:
    """One group per learning rate: parameters whose name starts with a prefix of `lr_scales` get that factor."""
    groups: dict[float, list] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            scale = next((s for prefix, s in settings.lr_scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(scale, []).append(parameter)
    return [{"params": parameters, "lr_scale": scale} for scale, parameters in groups.items()]


class Trainee:
    """One network with its optimiser and, where asked for, its moving average."""

    def __init__(self, network: nn.Module, settings: OptimiserSettings):
        self.network, self.settings = network, settings
        self.optimiser = _OPTIMISERS[settings.kind](
            parameter_groups(network, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps
        )
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.ema = copy.deepcopy(network).requires_grad_(False).eval() if settings.ema_half_life else None

    def set_learning_rate(self, factor: float) -> None:
        """Sets every group's rate to lr * group scale * factor."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * group["lr_scale"] * factor

    @torch.no_grad()
    def update_ema(self, batch: int, samples_seen: int) -> None:
        """Moves the average towards the network; buffers are copied."""
        if self.ema is None:
            return
        weight = 1 - ema_decay(batch, samples_seen, self.settings)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), weight)
        for average, buffer in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            average.copy_(buffer)

    @property
    def best(self) -> nn.Module:
        """The network to use after training: the average where there is one."""
        return self.network if self.ema is None else self.ema


@dataclass
class TrainState:
    """The state of one run: what a checkpoint holds."""

    task: Task
    trainees: Mapping[str, Trainee]
    samples_seen: int = 0
    skipped_steps: int = 0
    scalars: dict = field(default_factory=dict)  # of the run, kept in the checkpoint

    @classmethod
    def of(cls, task: Task) -> "TrainState":
        """A fresh state for a task."""
        return cls(task, {name: Trainee(net, task.optimisers[name]) for name, net in task.networks.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name."""
        flat = {f"task/{key}": value for key, value in self.task.extra_state().items()}
        for name, trainee in self.trainees.items():
            flat |= {f"network/{name}/{key}": value for key, value in trainee.network.state_dict().items()}
            if trainee.ema is not None:
                flat |= {f"ema/{name}/{key}": value for key, value in trainee.ema.state_dict().items()}
            for index, moments in trainee.optimiser.state_dict()["state"].items():
                flat |= {f"optimiser/{name}/{index}/{key}": value for key, value in moments.items()}
        return flat

    def load_tensors(self, flat: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` gave."""
        tree: dict = {}
        for path, value in flat.items():
            kind, rest = path.split("/", 1)
            tree.setdefault(kind, {})[rest] = value
        self.task.load_extra_state(tree.get("task", {}))
        for name, trainee in self.trainees.items():
            trainee.network.load_state_dict(_under(tree["network"], name))
            if trainee.ema is not None:
                trainee.ema.load_state_dict(_under(tree["ema"], name))
            _load_moments(trainee.optimiser, _under(tree.get("optimiser", {}), name))


def _under(tree: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tree.items() if key.startswith(f"{name}/")}


def _load_moments(optimiser: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in flat.items():
        index, key = path.split("/")
        moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
