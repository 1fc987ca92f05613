"""The recorder of a pack: one for all its trials, each of which gets the records that it would have got alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .names import Record
from .recorder import FanOut, Recorder, Sink


@dataclass(frozen=True)
class Member:
    """One trial's part: what every record of it says, and where its records go."""

    constants: Record
    sinks: Iterable[Sink]


class _Each(Sink):
    """Hands what concerns all trials to every one of them."""

    def __init__(self, members: Sequence[tuple[Record, FanOut]]):
        self._members = members

    def write(self, record: Record) -> None:
        """Writes the record with each trial's constants."""
        for constants, fan_out in self._members:
            fan_out.write({**constants, **record})

    def resume(self, samples_seen: int) -> Record:
        """Tells every trial's sinks; gives what the first of them knows, which the others began with."""
        return [fan_out.resume(samples_seen) for _, fan_out in self._members][0]

    def close(self) -> None:
        """Closes every trial's sinks."""
        for _, fan_out in self._members:
            fan_out.close()


class PackedRecorder(Recorder):
    """As `Recorder`, for observations (trials, b).

    `training()` tells which trials still are: the others, by their number, get no more records. `after(records)` is
    called after each flush with the records of those, by number.
    """

    def __init__(
        self,
        members: Sequence[Member],
        batch: int,
        all_reduce: Callable[[Tensor], None],
        totals: Callable[[], Mapping[str, float]],
        training: Callable[[], Iterable[int]],
        after: Callable[[Mapping[int, Record]], None] = lambda records: None,
    ):
        self._members = [(dict(member.constants), FanOut(member.sinks)) for member in members]
        super().__init__({}, batch, [_Each(self._members)], all_reduce, totals)
        self._shape = (len(members),)
        self._training, self._after = training, after

    def flush(self, samples_seen: int, **scalars: float) -> dict[str, float | int | str]:
        """Writes one record per trial; returns what they have in common."""
        reduced = self._reduced()
        means = {key: values for key, values in reduced.items() if isinstance(values, list)}
        common = {**self._position(samples_seen), **scalars, **{k: v for k, v in reduced.items() if k not in means}}
        records = {
            i: {**self._members[i][0], **common, **{k: v[i] for k, v in means.items()}} for i in self._training()
        }
        for i, record in records.items():
            self._members[i][1].write(record)
        self._after(records)
        return common
