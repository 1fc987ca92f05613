"""`sweep.checkpoint_bytes`: how many checkpoints a trial keeps, and how many trials run at a time, inside the budget.

A trial at work holds those that it keeps and one that it is writing. One that has ended holds none, its weights stay
(`folder.release`), and one that failed the newest where there is room (`failed_state.py`); but where trials wait to go
on, or others go on from theirs, each holds what it keeps.
"""

import math
from dataclasses import dataclass

from ..config.load import with_settings
from ..config.schema import Config
from ..config.sweep_checks import adaptive, waits
from .estimate import Estimate
from .units import in_units


@dataclass(frozen=True)
class Shares:
    """What the budget allows."""

    kept: int  # checkpoints of a trial
    jobs: int  # at a time


def shares(estimate: Estimate) -> Shares:
    """Of the budget. Raises ValueError if it is too small for a single job at a time."""
    config, training, one = estimate.config, estimate.training, estimate.checkpoint_bytes
    slots, wanted = config.sweep.checkpoint_bytes // one, training.keep_last + bool(training.keep_best)
    together, waiting = estimate.together, estimate.trials if waits(config) else 0
    if waiting:
        beside = 2 if estimate.stacks else 1  # of each trial at work, beside what it keeps
        kept = min(max(slots // waiting - beside, 1), wanted)
        jobs, least = max(slots - kept * waiting, 0) // (beside * together), waiting + beside * together
    else:
        kept = wanted if slots >= (wanted + 1) * estimate.trials else 1
        jobs, least = slots // ((kept + 1) * together), 2 * together
    if jobs < 1:
        raise ValueError(
            f"sweep.checkpoint_bytes={config.sweep.checkpoint_bytes}: {estimate.trials} trials need at least "
            f"{least * one} ({least} checkpoints of {in_units(one)}); raise it, or use 0 for no limit"
        )
    return Shares(kept, min(jobs, estimate.trials))


def within(config: Config) -> Config:
    """The settings that keep the checkpoints of all trials inside the budget, if there is one."""
    estimate = Estimate.of(config) if config.sweep.checkpoint_bytes else None
    if not estimate:
        return config
    share, training, sweep = shares(estimate), estimate.training, config.sweep
    together = estimate.together if estimate.stacks and not adaptive(config) else 1  # have their checkpoint in common
    keep = share.kept * estimate.checkpoint_bytes * together
    return with_settings(
        config,
        {
            f"{estimate.stage}.training.keep_bytes": min(training.keep_bytes or keep, keep),
            "sweep.concurrent": _at_a_time(sweep.concurrent, share.jobs, math.ceil(estimate.wave / sweep.per_process)),
        },
    )


def _at_a_time(wanted: int, most: int, jobs: int) -> int:
    """The setting for how many jobs run at a time: as it was, 0 for all perhaps, where all of them may."""
    return wanted if most >= jobs else min(wanted or most, most)
