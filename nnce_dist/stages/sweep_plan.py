"""The rows of a plan about its sweep, as (part, description)."""

from collections.abc import Callable

from ..config.sweep_checks import SEED
from .budget import shares
from .estimate import Estimate
from .units import device_time, duration, in_units, money

Rows = list[tuple[str, str]]


def rows(estimate: Estimate) -> Rows:
    """What is trained and how it is judged, and what that will take."""
    taken = [("sweep samples", _samples(estimate)), ("sweep time", _time(estimate)), *_price(estimate)]
    each, total, free = map(in_units, (estimate.checkpoint_bytes, estimate.disk_bytes, estimate.free_bytes))
    disk = ("sweep disk", f"checkpoints of at most {total} in all, {each} each; {free} are free")
    return [*_space(estimate), *taken, *_done(estimate), disk, *budget(estimate)]


def _space(estimate: Estimate) -> Rows:
    sweep = estimate.config.sweep
    if not sweep.space:
        return []
    best = "lowest" if sweep.mode == "min" else "highest"
    what = f"{estimate.stage}: {estimate.trials:,} trials, {sweep.strategy}; the {best} {sweep.metric} is best"
    settings = dict(sweep.space)
    if sweep.seeds:
        settings.setdefault(SEED, f"grid({','.join(map(str, sweep.seeds))})")
    told = "\n".join(f"{key}: {text}" for key, text in settings.items())
    return [("sweep", what), ("space", told), *_levels(estimate)]


def _levels(estimate: Estimate) -> Rows:
    if estimate.config.sweep.strategy == "asha":
        come = (f"{count:,} at {at:,} samples" for at, count in estimate.arrivals.items())
        return [("rungs", f"expected trials: {', '.join(come)}")]
    if estimate.config.sweep.strategy == "pbt":
        return [("generations", f"{len(estimate.arrivals)}, of {next(iter(estimate.arrivals)):,} samples")]
    return []


def _swept_batch(estimate: Estimate) -> str | None:
    return estimate.config.sweep.space.get(f"{estimate.stage}.training.batch")


def _samples(estimate: Estimate) -> str:
    saved = f" (saves {1 - estimate.samples / estimate.most:.0%})" if estimate.samples < estimate.most else ""
    batch = _swept_batch(estimate) or f"{estimate.training.batch:,}"
    return f"{_both(estimate, lambda n: f'{n:,}')}{saved}; batch {batch}"


def _time(estimate: Estimate) -> str:
    step, kinds = estimate.step, len(estimate.kinds)
    if not step.seconds:
        return step.how
    hours = _both(estimate, lambda n: device_time(estimate.hours(n)))
    first = f"; a trial of the first of {kinds:,} kinds" if kinds > 1 and step.measured else ""
    packs = "; trials that share a process take less" if estimate.together > 1 and step.measured else ""
    of = f" of {estimate.batch:,} samples" if _swept_batch(estimate) else ""
    return f"{hours} of training; {duration(step.seconds)} a step{of}, {step.how}{first}{packs}"


def _done(estimate: Estimate) -> Rows:
    trials, seen = estimate.done
    if not seen:
        return []
    left = device_time(estimate.hours(max(estimate.samples - seen, 0)))
    return [("done already", f"{trials:,} of {estimate.trials:,} trials and {seen:,} samples; {left} are left")]


def _price(estimate: Estimate) -> Rows:
    price = estimate.config.sweep.price_per_hour
    if not (price and estimate.step.seconds):
        return []
    return [("sweep price", f"{_both(estimate, lambda n: money(estimate.hours(n) * price))}, at {price:g} an hour")]


def _both(estimate: Estimate, show: Callable[[int], str]) -> str:
    """Of what is expected and, where trials are stopped early, of all to their ends."""
    expected, most = estimate.samples, estimate.most
    return f"about {show(expected)} instead of {show(most)}" if expected < most else show(expected)


def budget(estimate: Estimate) -> Rows:
    """What a budget for the checkpoints allows."""
    if not estimate.config.sweep.checkpoint_bytes:
        return []
    share = shares(estimate)
    return [("sweep budget", f"at most {share.kept:,} of each trial, and {share.jobs:,} job(s) at a time")]
