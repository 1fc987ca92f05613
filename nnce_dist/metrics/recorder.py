"""Observations on their way from the step to the sinks: accumulated on the device, reduced once per log interval."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from .goodput import Goodput
from .names import Record

logger = logging.getLogger(__name__)


class Sink:
    """Somewhere records go; a sink overrides what it needs."""

    def write(self, record: Record) -> None:
        """Takes one record."""
        raise NotImplementedError

    def resume(self, samples_seen: int) -> Record:
        """Training goes on from `samples_seen`: forget records from beyond it. Gives what is known from before it."""
        return {}

    def close(self) -> None:
        """Let go of what the sink holds."""


class FanOut(Sink):
    """Writes to several sinks; one that fails is named once and never stops the others or the training."""

    def __init__(self, sinks: Iterable[Sink]):
        self._sinks = list(sinks)
        self._warned: set[int] = set()

    def write(self, record: Record) -> None:
        """Offers the record to every sink."""
        self._each("write", record)

    def resume(self, samples_seen: int) -> Record:
        """Tells every sink where training goes on; gives what one of them knows from before it."""
        return next(filter(None, self._each("resume", samples_seen)), {})

    def close(self) -> None:
        """Closes every sink."""
        self._each("close")

    def _each(self, method: str, *arguments) -> list:
        given = []
        for sink in self._sinks:
            try:
                given.append(getattr(sink, method)(*arguments))
            except Exception as error:
                self._warn_once(sink, error)
        return given

    def _warn_once(self, sink: Sink, error: Exception) -> None:
        if id(sink) not in self._warned:
            self._warned.add(id(sink))
            logger.warning("metrics: %s failed and may miss records: %s", type(sink).__name__, error)


class Recorder:
    """Means of per-sample observations over samples, micro-batches and ranks, and how fast training goes.

    `all_reduce` sums a tensor over the ranks in place; one call per `flush`, whatever the number of observations. Every
    rank must observe the same names between two flushes. Ranks other than 0 pass no sinks. `constants` go into every
    record: run, stage, trial, samples_total, noise_magnitude; `batch` is the global batch.
    """

    _shape: tuple[int, ...] = ()  # of an observation's sum

    def __init__(
        self,
        constants: Record,
        batch: int,
        sinks: Iterable[Sink] = (),
        all_reduce: Callable[[Tensor], None] = lambda tensor: None,
        totals: Callable[[], Mapping[str, float]] = dict,
    ):
        self._fan_out = FanOut(sinks)
        self._all_reduce = all_reduce
        self._totals = totals
        self._constants = dict(constants)
        self._batch = batch
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._samples_seen, self._clock = 0, time.perf_counter()
        self._goodput = Goodput({})

    def resume(self, samples_seen: int, pending: Mapping[str, Tensor] | None = None) -> None:
        """Training goes on from here, with what was `pending` here; sinks forget what they hold from beyond."""
        self._samples_seen, self._clock = samples_seen, time.perf_counter()
        self._sums = {key: both[:-1].view(self._shape) for key, both in (pending or {}).items()}
        self._counts = {key: int(both[-1]) for key, both in (pending or {}).items()}
        before = self._fan_out.resume(samples_seen)
        self._goodput = Goodput(before)
        if "started" not in before:
            self._fan_out.write({**self._constants, "time": time.time(), **self._goodput.start})

    def pending(self) -> dict[str, Tensor]:
        """What this rank has observed since the last flush: by name its sum, then the count; float64."""
        counts = {key: self._sums[key].new_tensor([self._counts[key]]) for key in sorted(self._sums)}
        return {key: torch.cat([self._sums[key].flatten(), count]) for key, count in counts.items()}

    def note(self, event: str) -> None:
        """Writes a line of words to the log, beside the figures: where training went on from, and why."""
        self._fan_out.write({**self._constants, "time": time.time(), "event": event})

    @torch.no_grad()
    def observe(self, network: str, observations: Mapping[str, Tensor]) -> None:
        """Adds per-sample observations (b,) as `<network>/<name>`; nothing waits for the device."""
        for name, values in observations.items():
            key, total = f"{network}/{name}", values.detach().double().sum(-1)
            self._sums[key] = self._sums[key] + total if key in self._sums else total
            self._counts[key] = self._counts.get(key, 0) + values.shape[-1]

    def flush(self, samples_seen: int, **scalars: float) -> dict[str, float | int | str]:
        """Reduces what was observed since the last flush, writes one record and returns it.

        `scalars` are the same on every rank and are not reduced.
        """
        reduced = self._reduced()
        record = {**self._constants, **self._position(samples_seen), **scalars, **reduced}
        self._fan_out.write(record)
        return record

    def close(self) -> None:
        """Closes the sinks."""
        self._fan_out.close()

    def _reduced(self) -> dict[str, float]:
        """Means of the observations and sums of the totals over ranks: one message, one transfer.

        A mean is a number, or a list where the observations have a dimension before that of the samples.
        """
        keys, totals = sorted(self._sums), self._totals()
        if not keys:
            return {}
        sums = torch.stack([self._sums[key] for key in keys])
        numbers = [*(self._counts[key] for key in keys), *totals.values()]
        message = torch.cat([sums.flatten(), torch.tensor(numbers, dtype=sums.dtype, device=sums.device)])
        self._all_reduce(message)
        self._sums, self._counts = {}, {}
        flat, counts, counted = message.split([sums.numel(), len(keys), len(totals)])
        means = flat.view_as(sums) / counts.view(-1, *[1] * len(self._shape))
        by_name = dict(zip(keys, means.tolist(), strict=True))
        return by_name | {f"data/{name}": total for name, total in zip(totals, counted.tolist(), strict=True)}

    def _position(self, samples_seen: int) -> dict[str, float]:
        """Time, place and throughput since the last flush; after the reduction, which waits for the device."""
        now = time.perf_counter()
        per_second = (samples_seen - self._samples_seen) / max(now - self._clock, 1e-9)
        self._samples_seen, self._clock = samples_seen, now
        where = {"time": time.time(), "samples_seen": samples_seen, "steps": samples_seen // self._batch}
        if per_second <= 0:
            return {**where, "images_per_second": per_second}
        pace = {"images_per_second": per_second, "step_seconds": self._batch / per_second}
        return {**where, **pace, **self._goodput.at(samples_seen, per_second)}
