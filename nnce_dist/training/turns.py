"""Several trainings in one process, a step of each in turn: for trials that cannot be stacked (`packed.py`)."""

from collections.abc import Iterator, Mapping
from itertools import count

from ..tasks.task import Batch
from .checkpoint import FencedError
from .loop import Stream
from .state import TrainState
from .stopping import Stopped


def take_turns(trainings: Mapping[str, Iterator[TrainState]]) -> dict[str, Exception]:
    """Advances whichever has seen the fewest samples until all have ended; gives the errors of those that failed.

    Raises `Stopped`, when the run was asked to end, after every training has saved its state.
    """
    positions, stopped, errors = dict.fromkeys(trainings, -1), {}, {}
    while positions:
        name = min(positions, key=positions.get)
        try:
            positions[name] = next(trainings[name]).samples_seen
            continue
        except StopIteration:
            pass
        except Stopped as asked:
            stopped[name] = asked
        except FencedError:
            raise  # the run is another job's now
        except Exception as error:  # whatever it is, it ends this trial alone
            errors[name] = error
        del positions[name]
    if stopped:
        raise Stopped.together(stopped)
    return errors


class SharedStream:
    """A stream whose batches are made once for all trainings of a seed that are at the same place."""

    def __init__(self, stream: Stream):
        self._stream, self.digest = stream, stream.digest
        self._latest: dict[tuple, tuple[int, Batch]] = {}  # by seed and share: position and batch
        self._following: dict[tuple, tuple[int, Iterator[Batch]]] = {}  # position and batches from there on

    def batches(
        self, seed: int, start_samples_seen: int, global_batch: int, rank: int, world_size: int, micro_batch: int
    ) -> Iterator[Batch]:
        """As the stream's own."""
        for position in count(start_samples_seen, global_batch):
            yield self._at(position, (seed, global_batch, rank, world_size, micro_batch))

    def _at(self, position: int, share: tuple) -> Batch:
        at, batch = self._latest.get(share, (-1, None))
        if at != position:
            following, batches = self._following.pop(share, (-1, None))  # or two would hold their shards at a time
            if following != position:
                seed, *rest = share
                batches = self._stream.batches(seed, position, *rest)
            batch = next(batches)
            self._latest[share], self._following[share] = (position, batch), (position + share[1], batches)
        return batch
