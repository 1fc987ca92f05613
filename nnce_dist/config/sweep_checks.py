"""Settings of a sweep over a space that contradict each other, and which stage the space is about."""

from collections.abc import Iterator

from ..sweep.space import Distribution, parse
from ..sweep.strategies import misfits
from .schema import Config, Sweep

# Settings that trials of a stage may differ in: all else is shared by them, or changes nothing that is learned.
# What a run is about comes first: it takes the settings that no stage has for itself.
STAGES = {
    "density_ratio": ("density_ratio.", "objective."),
    "ten_step": ("ten_step.", "objective."),
    "one_step": ("one_step.", "objective.schedule."),
    "teacher": ("teacher.", "network.", "data.flip"),
}
SEED, MAGNITUDE, SCHEDULE = "run.seed", "objective.noise_magnitude", "objective.schedule.kind"
SPACE, AUTO = "sweep.space.", "auto"
ADAPTIVE = ("asha", "pbt", "tpe")  # decide as the sweep goes on
INTERVALS = {"asha": "rung", "pbt": "generation"}  # what sweep.interval is the length of


def swept_stage(config: Config) -> str | None:
    """The first of `STAGES` in the run that every setting of the space belongs to; None if there is none."""
    keys = [key for key in config.sweep.space if key != SEED]
    fitting = (stage for stage, settings in STAGES.items() if all(key.startswith(settings) for key in keys))
    return next((stage for stage in fitting if stage in config.run.stages), None)


def trials_stage(config: Config) -> str | None:
    """The stage that a run's trials train; None for a run that sweeps nothing."""
    if config.sweep.space:
        return swept_stage(config)
    return next((stage for stage in ("density_ratio", "ten_step") if stage in config.run.stages), None)


def sweeps_magnitudes(config: Config) -> bool:
    """Whether the run has trials over the lists of M: a space is in their place, unless it is of a later stage."""
    return not config.sweep.space or (swept_stage(config) == "one_step" and "ten_step" in config.run.stages)


def space(config: Config) -> dict[str, Distribution]:
    """The parsed space; `sweep.seeds` are a grid of it, unless it has seeds of its own."""
    found = {key: parse(text) for key, text in config.sweep.space.items()}
    if config.sweep.seeds:
        found.setdefault(SEED, Distribution("grid", tuple(config.sweep.seeds)))
    return found


def adaptive(config: Config) -> bool:
    """Whether the sweep decides as it goes on: its trials are trained from one decision to the next."""
    return bool(config.sweep.space) and config.sweep.strategy in ADAPTIVE


def waits(config: Config) -> bool:
    """Whether trials wait to go on, or others go on from theirs: then each holds its checkpoints."""
    return bool(config.sweep.space) and config.sweep.strategy in INTERVALS


def draws(config: Config) -> int:
    """How often what is no grid is drawn."""
    return 1 if config.sweep.strategy == "grid" else config.sweep.trials


def sweep_contradictions(config: Config) -> list[str]:
    """One line about each."""
    return list(_contradictions(config) if config.sweep.space else _without_space(config.sweep))


def _without_space(sweep: Sweep) -> Iterator[str]:
    if sweep.mode != "min":
        yield "sweep.mode=max: M is chosen by a distance; it is for sweep.space"
    if sweep.metric != Sweep.metric:
        yield f"sweep.metric={sweep.metric}: M is chosen by {Sweep.metric}; another metric is for sweep.space"


def _lengths(config: Config, stage: str, keys: list[str]) -> Iterator[str]:
    sweep, training = config.sweep, getattr(config, stage).training
    if sweep.strategy in INTERVALS and sweep.interval >= training.samples:
        what = INTERVALS[sweep.strategy]
        yield (
            f"sweep.interval={sweep.interval}: the first {what} would be no earlier than the end of training "
            f"({stage}.training.samples={training.samples}); choose less, or 0"
        )
    if sweep.strategy in ADAPTIVE:
        for key in {f"{stage}.training.samples", f"{stage}.training.batch"} & {*keys}:
            yield f"sweep.strategy={sweep.strategy}: judges trials at the same samples; take {key} out of sweep.space"


def _auto(config: Config, stage: str | None) -> Iterator[str]:
    found = space(config)
    kinds = found[SCHEDULE].values if SCHEDULE in found else (config.objective.schedule.kind,)
    if {*kinds} == {AUTO} and MAGNITUDE in found:
        yield f"{MAGNITUDE}={AUTO}: chooses M by itself; take {MAGNITUDE} out of sweep.space"
    if stage == "one_step" and SCHEDULE in found and AUTO in kinds:
        yield f"{SPACE}{SCHEDULE}: {AUTO} is not for the one-step critic, which has an M that is given; take it out"


def _contradictions(config: Config) -> Iterator[str]:
    sweep, kinds = config.sweep, {key: what.kind for key, what in space(config).items()}
    key = f"sweep.strategy={sweep.strategy}"
    drawn, grids = ([k for k, kind in kinds.items() if (kind == "grid") is grid] for grid in (False, True))
    if not swept_stage(config):
        keys, stages = ", ".join(sweep.space), ",".join(config.run.stages)
        yield f"sweep.space: no stage of run.stages=[{stages}] has all of {keys}; sweep the settings of one stage"
    if sweep.strategy == "grid" and drawn:
        yield f"{key}: {drawn[0]} is no grid; write grid(...), or use sweep.strategy=random sweep.trials=20"
    if sweep.strategy != "grid" and not sweep.trials:
        yield f"{key}: a space with no trial; set sweep.trials, for example sweep.trials=20"
    if sweep.strategy == "random" and not drawn:
        yield f"{key}: there are only grids, and nothing to draw; use sweep.strategy=grid"
    if sweep.strategy == "tpe" and grids:
        yield f"{key}: suggests values of choice(...) and of ranges, not of grids such as {grids[0]}"
    if sweep.strategy == "pbt" and sweep.trials == 1 and not grids:
        yield f"{key}: a population of one learns from nobody; set sweep.trials, for example sweep.trials=8"
    if sweep.strategy == "pbt" and config.run.mirror:
        yield f"{key}: states that trials take over are not copied to run.mirror; use a folder that all nodes see"
    if sweep.strategy == "pbt":
        yield from misfits(space(config))
    if sweep.mode == "max" and sweep.metric == Sweep.metric:
        yield f"sweep.mode=max: {sweep.metric} is a distance, low is good; use sweep.mode=min, or another sweep.metric"
    if stage := swept_stage(config):
        yield from _lengths(config, stage, list(kinds))
    yield from _auto(config, swept_stage(config))
