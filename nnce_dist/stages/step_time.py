"""How long a step takes on this machine, measured in a few seconds."""

import statistics
import time
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from ..config.schema import Config
from ..training.errors import one_line
from ..training.step import GpuMemoryError
from .manifest import processor
from .rehearsal import CPU, Rehearsal, TooSlowError, checkpoint_bytes, threads

BOUND = 4.0  # seconds for measuring
PATIENCE = 10.0  # seconds until a step is given up
LARGEST_STATE = 2**28  # bytes; more than that is not built on a CPU only to be measured
_GROWTH, _REPEATS = 4, 3


@dataclass(frozen=True)
class Step:
    """How long one worker needs for its share of a global batch, and how that is known, or why it is not."""

    seconds: float | None
    how: str
    measured: bool = True  # here; not read off records


def measured(config: Config, stage: str) -> Step:
    """A step of one worker on this machine, in a few seconds."""
    if not config.workers.gpus:
        if (size := checkpoint_bytes(config, stage)) > LARGEST_STATE:
            return Step(None, f"not measured: a state of {size / 2**30:.1f} GiB is too large to be tried on this CPU")
        return _measured(config, stage, CPU)
    if not torch.cuda.is_available():
        return Step(None, "not measured: it is trained on GPUs, and this machine has none")
    with ProcessPoolExecutor(1, get_context("spawn")) as child:  # the driver must not hold a part of a GPU
        try:
            return child.submit(_measured, config, stage, torch.device("cuda")).result()
        except BrokenExecutor:
            return Step(None, "not measured: the process that tried a step died")


def _measured(config: Config, stage: str, device: torch.device) -> Step:
    share = getattr(config, stage).training.batch // config.workers.count
    try:
        with threads(config.workers.threads):
            times = _timed(Rehearsal(config, stage, device, time.perf_counter() + PATIENCE), share)
    except TooSlowError:
        return Step(None, f"not measured: a step takes more than {PATIENCE:g} s on {_name(device)}")
    except (GpuMemoryError, torch.OutOfMemoryError) as error:
        return Step(None, f"not measured on {_name(device)}: {one_line(error)}")
    sizes = " and ".join(f"{samples:,}" for samples in times)
    scaled = f" of {share:,}" if share not in times else ""
    return Step(_at(share, times), f"measured on {_name(device)} with {sizes}{scaled} samples")


def _timed(rehearsal: Rehearsal, share: int) -> dict[int, float]:
    """Seconds by samples: of the share if there is time for it, otherwise of the two largest numbers there is."""
    end, times = time.perf_counter() + BOUND, {}
    rehearsal.step(1)  # what torch loads at its first step is not counted
    size, seconds = 1, rehearsal.step(1)
    while size < share and time.perf_counter() + _GROWTH * seconds < end:
        times = {size: seconds}
        size = min(_GROWTH * size, share)
        seconds = rehearsal.step(size)
    repeated = [seconds]
    while len(repeated) < _REPEATS and time.perf_counter() + seconds < end:
        repeated.append(rehearsal.step(size))
    times[size] = statistics.median(repeated)
    return {share: times[share]} if share in times else times


def _at(samples: int, times: Mapping[int, float]) -> float:
    """The seconds of a step of so many samples, on the line through those that were measured."""
    (size, seconds), (smaller, less) = max(times.items()), min(times.items())
    per_sample = (seconds - less) / (size - smaller) if size > smaller else seconds / size
    return seconds + max(per_sample, 0.0) * (samples - size)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else processor()
