"""Going on from the newest whole checkpoint: rank 0 chooses and says why, every rank loads the same one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from . import checkpoint
from .mirror import Mirror
from .runtime import Runtime, from_rank_zero
from .saver import Saver
from .state import TrainState


def choose(directory: Path, mirror: Mirror | None = None) -> tuple[Path | None, str]:
    """The newest whole checkpoint, if any, and how it was found; damaged ones are named and set aside.

    One that only the mirror has whole is brought here.
    """
    here, there, story = {checkpoint.position(path) for path in checkpoint.committed(directory)}, set(), []
    if mirror:
        there = _listed(mirror, bool(here), story)
    for number in sorted(here | there, reverse=True):
        path = checkpoint.at(directory, number)
        if number in here and not (reason := checkpoint.problem(path)):
            return path, _why(f"the newest of {len(here | there)}", story)
        if number in here:
            story.append(f"{path.name} passed over: {reason}")
            checkpoint.set_aside(path)
        if number in there and not (reason := mirror.fetch(number, directory)):
            return path, _why(f"the newest of {len(here | there)}, fetched from {mirror.url}", story)
        if number in there:
            story.append(f"{path.name} in {mirror.url} passed over: {reason}")
    return None, _why("none can be used", story)


def _listed(mirror: Mirror, has_others: bool, story: list[str]) -> set[int]:
    """What the mirror holds; a store that does not answer matters only where there is nothing else to begin with."""
    try:
        return mirror.positions()
    except OSError as error:
        if not has_others:
            raise
        story.append(f"not looked for in {mirror.url}: {' '.join(str(error).split())}")
        return set()


def _why(choice: str, story: list[str]) -> str:
    return f"({'; '.join([choice, *story])})"


def resume(saver: Saver, state: TrainState, total: int, runtime: Runtime) -> tuple[bool, str]:
    """Loads the newest whole checkpoint, on every rank the same: whether there was one, and a line about the choice.

    Raises ValueError if it was made by other networks or with other facts.
    """
    directory = saver.directory
    chosen, why = choose(directory, saver.mirror) if runtime.rank == 0 else (None, "")
    samples_seen = from_rank_zero(runtime, checkpoint.position(chosen) if chosen else -1)
    if samples_seen < 0:
        story = f"starting from the beginning: no checkpoint in {directory} {why}"
        return False, story if "passed over" in why else ""
    chosen = checkpoint.at(directory, samples_seen)
    load(chosen, state, saver.facts)
    return True, f"continuing at {state.samples_seen:,} of {total:,} samples from {chosen} {why}"


def load(path: Path, state: TrainState, facts: Mapping[str, str]) -> None:
    """Loads one whole checkpoint. Raises ValueError if it belongs to other networks or other `facts`."""
    scalars = checkpoint.read_scalars(path)
    for name, now in facts.items():
        if (then := scalars.get(name, now)) != now:
            raise ValueError(f"checkpoint {path}: its {name} is {then}, now it is {now}; choose another run.name")
    try:
        state.load_tensors(checkpoint.read_tensors(path))
    except (RuntimeError, KeyError, SafetensorError) as error:
        line = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint {path} does not fit these networks ({line}); use another run.name") from error
    state.load_scalars(scalars)


def share(observed: Mapping[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
    """This rank's part of what all ranks had observed: its own, or with another number of ranks all of it on rank 0."""
    mine = {}
    for name, ranks in observed.items():  # (ranks, ...)
        if len(ranks) == runtime.world_size:
            part = ranks[runtime.rank]
        else:
            part = ranks.sum(0) if runtime.rank == 0 else torch.zeros_like(ranks[0])
        mine[name] = part.to(runtime.device)
    return mine
