"""The open files of a set's shards: those that are needed soon are fetched ahead and held, the others may go."""

import os
import resource
import threading
import time
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import cache, partial
from itertools import islice
from weakref import ref

from . import parallel
from .cache import ShardCache, is_copied
from .index import ShardIndex
from .store import Blob

_READERS = 8  # shards fetched at a time
_EXTRAS = 4  # shards held that nobody announced
_LOOK = 0.2  # seconds between two looks whether another reader waits for room
_FETCH_DEADLINE = 3600.0  # seconds until a batch gives up its shards; each request to the store has its own


class OpenFile:
    """A file descriptor that is closed when nobody uses it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self):
        os.close(self.descriptor)


class ShardShelf:
    """Reads the shards of a set, whichever process it is in; see `index.Shelf`."""

    def __init__(self, blobs: Sequence[Blob], indexes: Sequence[ShardIndex], cache: ShardCache):
        self._blobs, self._indexes, self._cache = blobs, indexes, cache
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._held: dict[int, Future[OpenFile]] = {}
        self._wants: dict[Hashable, set[int]] = {}
        self._wanted: set[int] = set()  # by any reader
        self._pool = parallel.DaemonPool(_READERS, "fetch")
        self._looking: threading.Thread | None = None

    def __getstate__(self) -> tuple:
        return self._blobs, self._indexes, self._cache

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def want(self, shards: Iterable[int], reader: Hashable = None) -> None:
        """Holds exactly these shards for a reader from now on; those that are not near are fetched in this order.

        What other readers want stays. A reader that is done wants nothing.
        """
        wanted = [int(shard) for shard in islice(shards, _most_open())]
        with self._own():
            self._wants[reader] = set(wanted)
            if not wanted:
                del self._wants[reader]
            self._wanted = set().union(*self._wants.values())
            for shard in self._held.keys() - self._wanted:
                self._held.pop(shard).cancel()
            for shard in wanted:
                self._hold(shard)

    def wait_for(self, shards: Iterable[int]) -> None:
        """Until those of the shards that are wanted are there, or cannot be had. Raises TimeoutError with one line."""
        end = time.monotonic() + _FETCH_DEADLINE
        for shard in map(int, shards):  # one by one: whoever waits for all keeps those that are there from giving way
            with self._own():
                fetch = self._held.get(shard)
            if fetch and not wait((fetch,), max(end - time.monotonic(), 0)).done:
                raise self._late(shard)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """See `index.Shelf.read`; CancelledError where nobody wants the shard any more who did."""
        file = self._file(shard)  # has a name, so that it stays open: others may let go of it
        return os.pread(file.descriptor, size, offset)

    def discard(self, shard: int) -> bool:
        """See `index.Shelf.discard`."""
        blob = self._blobs[shard]
        if not is_copied(blob):
            return False
        with self._own():
            self._held.pop(shard, None)
            self._cache.copy_path(blob, self._indexes[shard].num_bytes).unlink(missing_ok=True)
        return True

    def absent_bytes(self, shards: Iterable[int]) -> int:
        """The bytes of those shards that are read from copies and have none yet."""
        copied = [(self._blobs[shard], self._indexes[shard].num_bytes) for shard in shards]
        paths = {self._cache.copy_path(blob, size): size for blob, size in copied if is_copied(blob)}
        return sum(size for path, size in paths.items() if not path.exists())

    def _file(self, shard: int) -> OpenFile:
        with self._own():
            future = self._hold(shard)
        try:
            file = future.result(_FETCH_DEADLINE)
        except TimeoutError:
            if future.done():  # the store gave up
                raise
            raise self._late(shard) from None
        if parallel.ending.is_set():
            raise CancelledError
        return file

    def _late(self, shard: int) -> TimeoutError:
        return TimeoutError(
            f"{self._blobs[shard].url}: not copied within {_FETCH_DEADLINE:g} s; the store is too slow for all that "
            "a batch needs: set data.shuffle_bytes, so that it needs fewer shards"
        )

    def _hold(self, shard: int) -> "Future[OpenFile]":
        if shard not in self._held or _failed(self._held[shard]):
            if shard not in self._wanted:
                extras = [other for other in self._held if other not in self._wanted]
                for other in islice(extras, max(len(extras) - _EXTRAS + 1, 0)):
                    del self._held[other]
            self._held[shard] = self._pool.submit(self._open, shard)
            self._start_looking()
        return self._held[shard]

    def _open(self, shard: int) -> OpenFile:
        index, give_way = self._indexes[shard], partial(self._give_way, shard)
        return OpenFile(self._cache.hold(self._blobs[shard], index.num_bytes, index.sha256, give_way))

    def _give_way(self, shard: int) -> None:
        """Lets go while this shard waits for room. Raises CancelledError where nobody wants it any more."""
        with self._own():
            if shard not in self._held:
                raise CancelledError
            self._let_go()

    def _let_go(self) -> None:
        """Holds nothing any more that is not being read or fetched; what is wanted is held again when it is read."""
        for shard in [shard for shard, future in self._held.items() if future.done()]:
            del self._held[shard]

    def _start_looking(self) -> None:
        """A thread that ends with what is held: who holds shards may do something else for long, and not read."""
        if self._cache.max_bytes and not self._looking:
            self._looking = threading.Thread(target=_look, args=(ref(self),), name="room", daemon=True)
            self._looking.start()

    def look(self) -> bool:
        """Lets go what another reader waits for; False when there is nothing to look after any more."""
        with self._own():
            if self._cache.is_asked():
                self._let_go()
            if not self._held:
                self._looking = None
            return self._looking is not None

    def _own(self) -> threading.Lock:
        """The lock; a process that was forked begins anew: threads do not follow it, and locks on files are shared."""
        if self._process != os.getpid():
            self._begin()
        return self._lock


def _look(shelf: "ref[ShardShelf]") -> None:
    while (found := shelf()) and found.look():
        del found  # so that nothing but its readers keeps it
        if parallel.ending.wait(_LOOK):
            return


@cache
def _most_open() -> int:
    """How many shards may be open: half of the files that the system lets a process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if most == resource.RLIM_INFINITY else min(most, 2**16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return most // 2


def _failed(future: "Future[OpenFile]") -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
