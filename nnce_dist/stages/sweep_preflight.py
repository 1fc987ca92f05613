"""What can be found wrong with a sweep before it starts; `preflight.py` asks, of a space for each of `CHECKS`."""

from importlib.util import find_spec

from ..config.load import ConfigError, nearest, with_settings
from ..config.schema import Config
from .estimate import Estimate
from .folder import run_root
from .goal import SELECTION
from .rehearsal import recorded_names
from .search import name_of, trial_points
from .units import in_units

_SHOWN = 3  # trials whose settings contradict themselves


def suggestions(config: Config) -> None:
    """Whether Optuna is there, where it is asked for."""
    if config.sweep.strategy == "tpe" and not find_spec("optuna"):
        raise ValueError(
            "sweep.strategy=tpe needs the package optuna: pip install 'nnce-dist[tpe]', or use another strategy"
        )


def trials(config: Config) -> None:
    """Whether every trial's settings go together; for suggested ones, which nobody knows, as many drawn at random."""
    wrong = []
    for number, point in enumerate(trial_points(config)):
        try:
            with_settings(config, point)
        except ConfigError as error:
            settings = ", ".join(f"{key}={value}" for key, value in point.items())
            wrong.append(f"sweep.space: {name_of(number)} ({settings}): {error.problems[0]}")
    if wrong:
        more = [f"sweep.space: {len(wrong) - _SHOWN} more trials like these"] if len(wrong) > _SHOWN else []
        raise ValueError("\n".join([*wrong[:_SHOWN], *more]))


def metric(config: Config) -> None:
    """Whether training records what trials are to be judged by."""
    name, estimate = config.sweep.metric, Estimate.of(config)
    if name == SELECTION:
        return
    known = [SELECTION, *recorded_names(estimate.kinds[0], estimate.stage)]
    if name not in known:
        raise ValueError(
            f"sweep.metric={name}: the stage {estimate.stage} never reports it; nearest: {nearest(name, known)!r}; "
            f"there are: {', '.join(known)}"
        )


def disk(config: Config) -> None:
    """Whether the checkpoints of all trials fit, those over M or of a space."""
    estimate = Estimate.of(config)
    if estimate and (needed := estimate.disk_bytes) > (free := estimate.free_bytes):
        whose = f"{estimate.trials} trials" if estimate.trials > 1 else "the trial"
        raise ValueError(
            f"{run_root(config)}: the checkpoints of {whose} take {in_units(needed)}, "
            f"{in_units(free)} are free; make room, set sweep.checkpoint_bytes, or choose another run.dir"
        )


CHECKS = (suggestions, trials, metric)
