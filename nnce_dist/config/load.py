"""From YAML presets and `a.b=c` overrides to a checked `Config`. All errors are found, listed together, in seconds."""

import copy
import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # what OmegaConf.load raises

from ..sweep.space import parse
from .checks import contradictions
from .schema import Config, MagnitudeSchedule
from .sweep_checks import AUTO, MAGNITUDE, SCHEDULE, SPACE, sweep_contradictions, sweeps_magnitudes


class ConfigError(ValueError):
    """One or more settings are wrong; one line each in `problems`, without what an address hides before its host."""

    def __init__(self, problems: list[str]):
        self.problems = [_without_secrets(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def _without_secrets(line: str) -> str:
    """A line without user names, passwords and query strings of addresses; rather too short than too long."""
    return re.sub(r"://\S*\?\S*", "://***", re.sub("://.*@", "://***@", line))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every setting as (dotted key, field, value)."""
    for field in dataclasses.fields(value):
        key, child = f"{path}{field.name}", getattr(value, field.name)
        if dataclasses.is_dataclass(child):
            yield from leaves(child, f"{key}.")
        else:
            yield key, field, child


def nearest(key: str, known: list[str]) -> str:
    """The known key most like a mistyped one; its last part counts most."""
    name = key.rsplit(".", 1)[-1]
    ranked = sorted(
        known,
        key=lambda k: (
            difflib.SequenceMatcher(None, k, key).ratio()
            + difflib.SequenceMatcher(None, k.rsplit(".", 1)[-1], name).ratio()
        ),
    )
    return ranked[-1]


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown key {key!r}; nearest: {nearest(key, known)!r}"


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0]


def _set(config: DictConfig, key: str, value: Any) -> None:
    """Sets one setting in place. M may be auto, a word that no number's field holds, until a number is given for it."""
    if key == MAGNITUDE and value == AUTO:
        key = SCHEDULE
    OmegaConf.update(config, key, value)
    if key == MAGNITUDE and config.objective.schedule.kind == AUTO:
        OmegaConf.update(config, SCHEDULE, MagnitudeSchedule.kind)


def _merge_one(config: DictConfig, assignment: str, known: list[str]) -> str | None:
    """Merges one `a.b=c` in place; the problem in one line if it cannot be."""
    key, equals, value = assignment.partition("=")
    if not equals:
        return f"{assignment!r} is not a setting; write key=value (for example run.seed=1)"
    if key.startswith(SPACE):
        config.sweep.space[key.removeprefix(SPACE)] = value
        return None
    if key not in known:
        return _unknown(key, known)
    try:
        parsed = OmegaConf.from_dotlist([f"v={value}"]).v if value else ""
        _set(config, key, parsed)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        return f"{key}={value}: {_reason(error)}"
    return None


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, DictConfig):
        for key in tree:
            yield from _flat(tree._get_node(key), f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def _merge_file(config: DictConfig, file: Path, known: list[str]) -> list[str]:
    """Merges a YAML preset in place; its problems, one line each."""
    try:
        tree = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        return [f"{file}: not YAML: {' '.join(str(error).split())}"]
    if not isinstance(tree, DictConfig):
        return [f"{file}: holds no settings; write them as in pipelines/presets"]
    problems = []
    for key, node in sorted(_flat(tree), key=lambda setting: setting[0] == SCHEDULE):  # a file's M leaves its auto on
        if key.startswith(SPACE):
            config.sweep.space[key.removeprefix(SPACE)] = str(node._value())
            continue
        if key not in known:
            problems.append(f"{file.name}: {_unknown(key, known)}")
            continue
        try:
            _set(config, key, OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value())
        except OmegaConfBaseException as error:
            problems.append(f"{file.name}: {key}: {_reason(error)}")
    return problems


def out_of_range(key: str, field: dataclasses.Field, value: Any) -> str | None:
    """The problem in one line if a value is NaN, outside its range or not one of its words."""
    low, high = field.metadata.get("low"), field.metadata.get("high")
    choices = field.metadata.get("choices")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and math.isnan(item):
            return f"{key}={value}: NaN is not a setting"
        if choices and item not in choices:
            return f"{key}={value}: choose one of {', '.join(choices)}"
        if isinstance(item, float) and math.isinf(item) and high != math.inf:
            return f"{key}={value}: must be finite"
        if (low is not None and item < low) or (high is not None and item > high):
            bounds = f"at least {low:g}" if high in (None, math.inf) else f"between {low:g} and {high:g}"
            return f"{key}={value}: must be {bounds}"
    return None


def preset_file(name: str, folder: Path) -> Path:
    """The YAML file of a preset: of `folder` by its name, any other by its path. Raises ConfigError if it is none."""
    if name.endswith(".yaml"):
        if not Path(name).is_file():
            raise ConfigError([f"preset={name}: no such file"])
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        hint = difflib.get_close_matches(name, known, 1, 0) or known
        raise ConfigError([f"unknown preset {name!r}; nearest: {hint[0]!r}; there are: {', '.join(known)}"])
    return folder / f"{name}.yaml"


def load(overrides: list[str], presets: Path, default_preset: str) -> Config:
    """The configuration of a run: defaults, then the preset, then `a.b=c` overrides (`preset=` picks it).

    Raises ConfigError with every problem found.
    """
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("preset=")]
    config = OmegaConf.structured(Config)
    known = [key for key, *_ in leaves(Config())]
    problems = _merge_file(config, preset_file((chosen or [default_preset])[-1], presets), known)
    for assignment in overrides:
        if not assignment.startswith("preset="):
            problems += filter(None, [_merge_one(config, assignment, known)])
    result = OmegaConf.to_object(config)
    problems += filter(None, (out_of_range(*leaf) for leaf in leaves(result)))
    problems += (f"run.allow_drift: {_unknown(key, known)}" for key in result.run.allow_drift if key not in known)
    if wrong := space_problems(result, known):
        problems += _as_run(result) + wrong
    else:
        problems += _contradictions(result) + sweep_contradictions(result)
    if problems:
        raise ConfigError(problems)
    return result


def _contradictions(config: Config, settings: Collection[str] = ()) -> list[str]:
    """Those of a trial that has these settings of its own; without such, those of the run that a trial may have too."""
    found, swept = _as_run(config), config.sweep.space
    if not (found and swept) or swept.keys() & settings:
        return found
    trial, _ = _changed(config, {key: parse(text).values[0] for key, text in swept.items()})
    return [line for line in found if line in _as_run(trial)]


def _as_run(config: Config) -> list[str]:
    """All contradictions but those with lists of M that the run has no trials over."""
    unused = {} if sweeps_magnitudes(config) else {"noise_magnitudes": [], "nwj": False, "held": False}
    return contradictions(dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, **unused)))


def space_problems(config: Config, known: list[str]) -> list[str]:
    """What is wrong with each line of `sweep.space`: no setting, no distribution, values that are not allowed."""
    problems = []
    for key, text in config.sweep.space.items():
        try:
            values = parse(text).values
        except ValueError as error:
            problems.append(f"{SPACE}{key}={text}: {error}")
            continue
        if key not in known:
            problems.append(f"sweep.space: {_unknown(key, known)}")
        elif wrong := [line for value in values for line in _changed(config, {key: value})[1]]:
            problems.append(f"{SPACE}{key}={text}: {wrong[0]}")
    return problems


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with other values of some settings, by dotted key. Raises ConfigError if one is not allowed."""
    result, problems = _changed(config, settings)
    if problems := problems or _contradictions(result, settings):
        raise ConfigError(problems)
    return result


def _changed(config: Config, settings: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The configuration with other values of some settings, and what is wrong with each of these for itself."""
    result, problems = copy.deepcopy(config), []
    for key, value in settings.items():
        *path, name = key.split(".")
        part = reduce(getattr, path, result)
        try:
            setattr(part, name, _converted(_typed(type(part)), name, value))
        except OmegaConfBaseException as error:
            problems.append(f"{key}={value}: {_reason(error)}")
    problems += filter(None, (out_of_range(*leaf) for leaf in leaves(result) if leaf[0] in settings))
    return result, problems


@cache  # omegaconf takes a millisecond, and a sweep asks for hundreds of configurations
def _typed(part: type) -> DictConfig:
    return OmegaConf.structured(part)


def _converted(tree: DictConfig, name: str, value: Any) -> Any:
    """What becomes of a value in a field of the tree's types."""
    OmegaConf.update(tree, name, value, merge=False)
    return OmegaConf.to_object(tree[name]) if OmegaConf.is_config(tree[name]) else tree[name]


def from_dict(tree: dict) -> Config:
    """A configuration from the plain dictionary that `to_dict` gave."""
    return _filled(Config(), tree)


def _filled(part: Any, tree: dict) -> Any:
    """A part of the configuration with other values; checked already, so omegaconf need not take .05 s a trial."""
    nested = {key: getattr(part, key) for key in tree}
    values = {
        key: _filled(old, tree[key]) if dataclasses.is_dataclass(old) else tree[key] for key, old in nested.items()
    }
    return dataclasses.replace(part, **values)


def to_dict(config: Config) -> dict:
    """The configuration as plain nested dictionaries."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_yaml(path: Path) -> dict:
    """A configuration written by `to_yaml`, as plain nested dictionaries; settings it lacks have defaults."""
    return OmegaConf.to_container(OmegaConf.merge(to_dict(Config()), OmegaConf.load(path)))


def stored(path: Path) -> Config:
    """The configuration that `to_yaml` wrote to a file. Raises ConfigError if it is none."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: not the configuration of a run: {' '.join(str(error).split())}"]) from None


def differences(old: dict, new: dict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ between two plain configurations, as (dotted key, old value, new value)."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}", a, b
