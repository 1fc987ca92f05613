"""Trials that differ in numbers alone, stacked and stepped together: one process, one data stream, large kernels.

Every tensor of the trials' network gets a leading dimension, that of the trials; the loss is mapped over it by
`torch.vmap`, and the gradient of the sum of all losses holds every trial's own. Adam works on each entry alone, so it
is torch's, at learning rate 1: each trial then goes its own rate's share of that way. So a pack is one training with
one `Task`, one network and one checkpoint, and each trial in it is what it would have been alone, to rounding.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..tasks.auto_magnitude import AutoMagnitude
from ..tasks.objective import NoiseMagnitude
from ..tasks.task import Batch, LossAndObservations, OptimiserSettings, Random, StackableTask, Update
from .loop import Stream
from .packed_trainee import Members, PackedTrainee
from .state import TrainState

_STEP = "step"  # what Adam counts, which trials of a pack have in common


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """A network of the same tensor names, each tensor (trials, ...); to be called through `torch.func` only."""
    stacked = copy.deepcopy(networks[0])
    for name, _ in networks[0].named_parameters():
        owner, _, leaf = name.rpartition(".")
        values = torch.stack([network.get_parameter(name).detach() for network in networks])
        setattr(stacked.get_submodule(owner), leaf, nn.Parameter(values))
    return stacked


def one_of(stacked: nn.Module, trial: int) -> dict[str, Tensor]:
    """The tensors of one trial's network by name."""
    return {name: tensor.detach()[trial] for name, tensor in stacked.named_parameters()}


class PackedTask:
    """Trials of one task as one task, whose network is theirs stacked and whose batches are x (B, seeds, ...).

    `seeds` says for each trial which of a batch's seeds it learns from.
    """

    def __init__(self, tasks: Sequence[StackableTask], seeds: Sequence[int]):
        ((self.network, _),) = tasks[0].networks.items()
        self.tasks, self.members = tasks, Members(len(tasks))
        self.networks = {self.network: stack([task.networks[self.network] for task in tasks])}
        self.optimisers: Mapping[str, OptimiserSettings] = tasks[0].optimisers
        self.magnitudes = PackedMagnitudes([task.magnitude for task in tasks])
        self._seeds = torch.tensor(seeds)

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """One optimiser step for every trial: losses and observations (trials, b)."""
        each = [task.numbers(m) for task, m in zip(self.tasks, self.magnitudes.at(samples_seen), strict=True)]
        numbers = {name: torch.tensor([one[name] for one in each], device=batch.x.device) for name in each[0]}

        def on(part: slice) -> LossAndObservations:
            losses, seen = self._losses(batch.x[part], numbers)
            self.magnitudes.show(seen["log_ratio_data"], seen["log_ratio_noise"])
            return losses, seen

        yield Update(self.network, on, len(batch))
        self.magnitudes.conclude(mean_over_ranks)

    def _losses(self, x: Tensor, numbers: Mapping[str, Tensor]) -> LossAndObservations:
        network = self.networks[self.network]

        def of_one(parameters: Mapping[str, Tensor], x: Tensor, numbers: Mapping[str, Tensor]) -> LossAndObservations:
            return self.tasks[0].loss(lambda inputs: functional_call(network, parameters, (inputs,)), x, numbers)

        shared = x.shape[1] == 1
        x = x[:, 0] if shared else x.transpose(0, 1)[self._seeds]
        return torch.vmap(of_one, in_dims=(0, None if shared else 0, 0))(dict(network.named_parameters()), x, numbers)

    def unpack(self, stacked: nn.Module) -> None:
        """Puts what became of every trial back into its own task, the tensors of a stacked network among it."""
        self.magnitudes.unpack()
        for trial, task in enumerate(self.tasks):
            task.networks[self.network].load_state_dict(one_of(stacked, trial))

    def extra_state(self) -> dict[str, Tensor]:
        """Who has left and when, and what automatic magnitudes know."""
        return {"left_at": self.members.left_at, "failed": self.members.failed, **self.magnitudes.extra_state()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores both."""
        self.members.left_at, self.members.failed = state["left_at"].clone(), state["failed"].clone()
        self.magnitudes.load_extra_state(state)


class PackedMagnitudes:
    """Where each trial's M comes from; those that are automatic are one rule with a state (trials,)."""

    def __init__(self, magnitudes: Sequence[NoiseMagnitude | AutoMagnitude]):
        self._each = magnitudes
        self._automatic = [i for i, one in enumerate(magnitudes) if isinstance(one, AutoMagnitude)]
        self._auto = AutoMagnitude.stacked([magnitudes[i] for i in self._automatic]) if self._automatic else None

    def at(self, samples_seen: int) -> list[float]:
        """Every trial's M of the next step."""
        automatic = dict(zip(self._automatic, self._auto.at(samples_seen), strict=True)) if self._auto else {}
        return [automatic.get(i) or one.at(samples_seen) for i, one in enumerate(self._each)]

    def show(self, log_ratio_data: Tensor, log_ratio_noise: Tensor) -> None:
        """The log-ratios (trials, b) of one micro-batch of the step."""
        if self._auto:
            self._auto.show(log_ratio_data[self._automatic], log_ratio_noise[self._automatic])

    def conclude(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Ends the step."""
        if self._auto:
            self._auto.conclude(mean_over_ranks)

    def unpack(self) -> None:
        """Gives every automatic one its own state."""
        for place, i in enumerate(self._automatic):
            self._each[i].load_extra_state({name: value[..., place] for name, value in self.extra_state().items()})

    def extra_state(self) -> dict[str, Tensor]:
        """The automatic ones' state."""
        return self._auto.extra_state() if self._auto else {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        if self._auto:
            self._auto.load_extra_state(state)


def packed_state(task: PackedTask) -> TrainState:
    """A fresh state for a pack."""
    settings = [one.optimisers[task.network] for one in task.tasks]
    return TrainState(task, {task.network: PackedTrainee(task.networks[task.network], settings, task.members)})


def same_place(alone: Sequence[TrainState]) -> bool:
    """Whether trials that were trained alone have come equally far, with no log line begun: then they can be packed."""
    return len({state.samples_seen for state in alone}) == 1 and not any(state.observed for state in alone)


def take_up(state: TrainState, alone: Sequence[TrainState]) -> None:
    """Has a pack go on from where its trials are, each alone; their networks and magnitudes its task has already."""
    (trainee,), each = state.trainees.values(), [_moments(one) for one in alone]
    moments = {
        parameter: {key: _together(key, [one[parameter][key] for one in each]) for key in values}
        for parameter, values in each[0].items()
    }
    trainee.load_moments(moments)
    state.samples_seen = alone[0].samples_seen


def hand_back(state: TrainState, alone: Sequence[TrainState]) -> None:
    """Gives each trial's own state what became of it in the pack: its network and magnitude, moments and place."""
    state.task.unpack(state.best[state.task.network])
    moments, left_at = _moments(state), state.task.members.left_at.tolist()
    for trial, one in enumerate(alone):
        (trainee,) = one.trainees.values()
        own = {parameter: {k: v if k == _STEP else v[trial] for k, v in m.items()} for parameter, m in moments.items()}
        trainee.load_moments(own)
        one.samples_seen = state.samples_seen if left_at[trial] < 0 else left_at[trial]


def _moments(state: TrainState) -> dict[int, dict[str, Tensor]]:
    """What the optimiser of the one network knows of each parameter, by its number."""
    (trainee,) = state.trainees.values()
    return trainee.optimiser.state_dict()["state"]


def _together(key: str, values: list[Tensor]) -> Tensor:
    return values[0] if key == _STEP else torch.stack(values)


class PackedStream:
    """The streams of several seeds side by side: batches x (B, seeds, ...)."""

    def __init__(self, streams: Mapping[int, Stream]):
        self._streams = streams  # by the seed of their order
        self.digest = "-".join(stream.digest for stream in streams.values())

    def batches(
        self, seed: int, start_samples_seen: int, global_batch: int, rank: int, world_size: int, micro_batch: int
    ) -> Iterator[Batch]:
        """One rank's share of every seed's global batches; `seed` is not used."""
        where = (start_samples_seen, global_batch, rank, world_size, micro_batch)
        each = [stream.batches(own, *where) for own, stream in self._streams.items()]
        for batches in zip(*each, strict=True):
            yield Batch(torch.stack([batch.x for batch in batches], dim=1), None)
