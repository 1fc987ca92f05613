"""The rows of the fault catalogue that are injected, by their numbers there."""

from collections.abc import Callable
from dataclasses import dataclass

import contents
import killed
import lost
import settings
import stores
from bed import Bed
from invariants import Run
from outcome import Outcome


@dataclass(frozen=True)
class Row:
    """One fault."""

    number: int
    title: str
    inject: Callable[[Bed, Run], Outcome]
    quick: bool = False  # part of the half that CI runs


ROWS = [
    Row(1, "worker killed", killed.worker_killed, quick=True),
    Row(2, "node lost", lost.node_lost),
    Row(3, "node drained", lost.node_drained),
    Row(4, "head and driver killed", killed.head_and_driver_killed),
    Row(5, "worker stands still", lost.stands_still),
    Row(6, "worker is slow", lost.straggles),
    Row(7, "disk full (tmpfs)", stores.disk_full, quick=True),
    Row(8, "S3: 503, SlowDown, reset", stores.unavailable),
    Row(9, "S3: no answer, stalled", stores.stalled),
    Row(10, "S3: cut, short, flipped", stores.truncated),
    Row(11, "S3: denied, expired", stores.denied, quick=True),
    Row(12, "shard missing, empty, flipped", contents.damaged_shards, quick=True),
    Row(13, "pictures undecodable", contents.damaged_and_skipped),
    Row(14, "NaN in a batch", contents.poisoned_batch, quick=True),
    Row(16, "GPU out of memory (raised by the test)", contents.out_of_gpu_memory, quick=True),
    Row(18, "SIGTERM, SIGINT", killed.told_to_stop, quick=True),
    Row(18, "SIGTERM on Ray", killed.told_to_stop_on_ray),
    Row(19, "clock jumps (time.time off)", settings.clock_off, quick=True),
    Row(20, "SIGKILL in a save", killed.killed_while_saving, quick=True),
    Row(21, "checkpoint bit rot", killed.bit_rot, quick=True),
    Row(22, "other network", settings.other_network, quick=True),
    Row(23, "other world size", settings.other_world_size),
    Row(24, "settings mistyped", settings.mistyped, quick=True),
    Row(25, "two jobs on a run", settings.two_jobs, quick=True),
    Row(26, "nowhere to write, no bucket", stores.nowhere_to_write, quick=True),
    Row(27, "too few resources", lost.too_few_resources),
    Row(28, "version mix (a node that says torch 2.0.1)", lost.version_mix),
    Row(29, "metrics port taken", stores.nobody_measures, quick=True),
    Row(31, "trial fails", lost.trial_fails),
]
