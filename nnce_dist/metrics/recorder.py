"""Observations on their way from the step to the sinks: accumulated on the device, reduced once per log interval."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from .names import Record

logger = logging.getLogger(__name__)


class Sink:
    """Somewhere records go; a sink overrides what it needs."""

    def write(self, record: Record) -> None:
        """Takes one record."""
        raise NotImplementedError

    def resume(self, samples_seen: int) -> None:
        """Training goes on from `samples_seen`: forget records from beyond it."""

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

    def resume(self, samples_seen: int) -> None:
        """Tells every sink where training goes on."""
        self._each("resume", samples_seen)

    def close(self) -> None:
        """Closes every sink."""
        self._each("close")

    def _each(self, method: str, *arguments) -> None:
        for sink in self._sinks:
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:
                self._warn_once(sink, error)

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

    def __init__(
        self,
        constants: Record,
        batch: int,
        sinks: Iterable[Sink] = (),
        all_reduce: Callable[[Tensor], None] = lambda tensor: None,
    ):
        self._fan_out = FanOut(sinks)
        self._all_reduce = all_reduce
        self._constants = dict(constants)
        self._batch = batch
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._samples_seen, self._clock = 0, time.perf_counter()

    def resume(self, samples_seen: int) -> None:
        """Training goes on from here: sinks forget what they hold from beyond, the clock starts."""
        self._samples_seen, self._clock = samples_seen, time.perf_counter()
        self._fan_out.resume(samples_seen)

    @torch.no_grad()
    def observe(self, network: str, observations: Mapping[str, Tensor]) -> None:
        """Adds per-sample observations (b,) as `<network>/<name>`; nothing waits for the device."""
        for name, values in observations.items():
            key, total = f"{network}/{name}", values.detach().double().sum()
            self._sums[key] = self._sums[key] + total if key in self._sums else total
            self._counts[key] = self._counts.get(key, 0) + values.numel()

    def flush(self, samples_seen: int, **scalars: float) -> dict[str, float | int | str]:
        """Reduces what was observed since the last flush, writes one record and returns it.

        `scalars` are the same on every rank and are not reduced.
        """
        means, speed = self._means(), self._speed(samples_seen)
        record = {**self._constants, "time": time.time(), "samples_seen": samples_seen, **speed, **scalars, **means}
        self._fan_out.write(record)
        return record

    def close(self) -> None:
        """Closes the sinks."""
        self._fan_out.close()

    def _means(self) -> dict[str, float]:
        keys = sorted(self._sums)
        if not keys:
            return {}
        sums = torch.stack([self._sums[key] for key in keys])
        counts = torch.tensor([self._counts[key] for key in keys], dtype=sums.dtype, device=sums.device)
        both = torch.stack([sums, counts])  # (2, keys): one reduction, one transfer
        self._all_reduce(both)
        self._sums, self._counts = {}, {}
        return dict(zip(keys, (both[0] / both[1]).tolist(), strict=True))

    def _speed(self, samples_seen: int) -> dict[str, float]:
        """Throughput since the last flush; read after the reduction, which waits for the device."""
        now = time.perf_counter()
        per_second = (samples_seen - self._samples_seen) / max(now - self._clock, 1e-9)
        self._samples_seen, self._clock = samples_seen, now
        speed = {"steps": samples_seen // self._batch, "images_per_second": per_second}
        return speed | ({"step_seconds": self._batch / per_second} if per_second > 0 else {})
