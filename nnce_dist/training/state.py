"""Everything that training changes: networks, their averages, optimisers, and how many samples were seen."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks.task import OptimiserSettings, Task
from .eager import eager

_OPTIMISERS = {"adam": eager(torch.optim.Adam), "radam": eager(torch.optim.RAdam)}


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


def clip(gradients: list[Tensor], norm: Tensor, max_norm: float | None, max_value: float | None) -> None:
    """Clips by value, or scales to a norm, in place."""
    if max_value is not None:
        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)
    if max_norm is not None:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))


class Trainee:
    """One network with its optimiser and, where asked for, its moving average."""

    def __init__(self, network: nn.Module, settings: OptimiserSettings):
        self.network, self.settings, self._groups = network, settings, parameter_groups(network, settings)
        self.parameters = [p for group in self._groups for p in group["params"]]
        self.ema = copy.deepcopy(network).requires_grad_(False).eval() if settings.ema_half_life else None

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Made when it is needed: a network that others only read has none."""
        settings = self.settings
        return _OPTIMISERS[settings.kind](self._groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)

    def load_moments(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Restores what the optimiser knows of each parameter, by its number."""
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})

    def set_learning_rate(self, samples_seen: int, total_samples: int, rate: float = 1.0) -> None:
        """Sets every group's rate to lr * group scale * `rate` * the factor of the step that starts here."""
        factor = rate * learning_rate_factor(samples_seen, total_samples, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * group["lr_scale"] * factor

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of the whole gradient, a scalar."""
        return torch.nn.utils.get_total_norm(gradients)

    def step(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Clips finite gradients of this norm, then moves the network by them."""
        clip(gradients, norm, self.settings.clip_norm, self.settings.clip_value)
        self.optimiser.step()

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


@dataclass(frozen=True)
class Snapshot:
    """A state at a step's boundary, apart from the networks that move on."""

    tensors: Mapping[str, Tensor]  # in host memory
    scalars: Mapping[str, Any]  # JSON


class HostCopy:
    """Tensors copied to host memory, which is used again for the next copy; pinned where they come from a GPU."""

    def __init__(self):
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The copies, whole when this returns; they are valid until the next call."""
        copies = {name: self._buffer(name, tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()}
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = copies
        return copies

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


@dataclass
class TrainState:
    """The state of one run: what a checkpoint holds."""

    task: Task
    trainees: Mapping[str, Trainee]
    samples_seen: int = 0
    skipped_steps: int = 0
    rate: float = 1.0  # factor on every learning rate, less than 1 after a roll-back
    figure: float | None = None  # what `training.keep_best` names, at the last log line
    observed: dict[str, Tensor] = field(default_factory=dict)  # since the last log line: name -> (ranks, 2)

    @classmethod
    def of(cls, task: Task) -> "TrainState":
        """A fresh state for a task."""
        return cls(task, {name: Trainee(net, task.optimisers[name]) for name, net in task.networks.items()})

    @property
    def best(self) -> dict[str, nn.Module]:
        """The networks to use after training, by name."""
        return {name: trainee.best for name, trainee in self.trainees.items()}

    def lasting_tensors(self) -> dict[str, Tensor]:
        """Those that are there from the first step on, which the optimisers' are not; by a flat name."""
        flat = {f"task/{key}": value for key, value in self.task.extra_state().items()}
        flat |= {f"observed/{key}": value for key, value in self.observed.items()}
        for name, trainee in self.trainees.items():
            flat |= {f"network/{name}/{key}": value for key, value in trainee.network.state_dict().items()}
            if trainee.ema is not None:
                flat |= {f"ema/{name}/{key}": value for key, value in trainee.ema.state_dict().items()}
        return {key: value.detach() for key, value in flat.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name."""
        flat = self.lasting_tensors()
        for name, trainee in self.trainees.items():
            for index, moments in trainee.optimiser.state_dict()["state"].items():
                flat |= {f"optimiser/{name}/{index}/{key}": value.detach() for key, value in moments.items()}
        return flat

    def scalars(self) -> dict[str, float | None]:
        """Every number outside the tensors."""
        numbers = {"samples_seen": self.samples_seen, "skipped_steps": self.skipped_steps, "rate": self.rate}
        return numbers | {"figure": self.figure}

    def load_scalars(self, scalars: Mapping[str, Any]) -> None:
        """Restores what `scalars` gave."""
        self.samples_seen, self.skipped_steps = scalars["samples_seen"], scalars["skipped_steps"]
        self.rate, self.figure = scalars.get("rate", 1.0), scalars.get("figure")  # the first checkpoints had neither

    def num_bytes(self) -> int:
        """Bytes of a checkpoint once the optimisers have their two moments of each parameter."""
        moments = [parameter for trainee in self.trainees.values() for parameter in trainee.parameters]
        lasting = self.lasting_tensors().values()
        return sum(tensor.nbytes for tensor in lasting) + 2 * sum(parameter.nbytes for parameter in moments)

    def load_tensors(self, flat: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` gave."""
        tree: dict = {}
        for path, value in flat.items():
            kind, rest = path.split("/", 1)
            tree.setdefault(kind, {})[rest] = value
        self.task.load_extra_state(tree.get("task", {}))
        self.observed = tree.get("observed", {})
        for name, trainee in self.trainees.items():
            trainee.network.load_state_dict(_under(tree["network"], name))
            if trainee.ema is not None:
                trainee.ema.load_state_dict(_under(tree["ema"], name))
            trainee.load_moments(_by_parameter(_under(tree.get("optimiser", {}), name)))


def _under(tree: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tree.items() if key.startswith(f"{name}/")}


def _by_parameter(flat: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in flat.items():
        index, key = path.split("/")
        moments.setdefault(int(index), {})[key] = value
    return moments
