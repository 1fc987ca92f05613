"""A run's folder and the folders of its jobs.

    <run.dir>/<run.name>/{config.yaml, manifest.json, owner.json, report.html, figures/,
                          results.json, sweep.csv, best.yaml, teacher/, ten_step/<trial>/, one_step/, samplers/<name>/}

A job's folder holds metrics.jsonl, checkpoints/, samples.png and, once the job is done, result.json and weights; after
a failure error.txt.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from ..config.load import differences, read_yaml, to_dict, to_yaml
from ..config.schema import Config
from ..config.sweep_checks import trials_stage
from ..data.files import FileStore
from ..training.checkpoint import write_json
from ..training.mirror import FOLDER

MAY_DRIFT = (  # does not change what is computed
    *("run.dir", "run.mirror", "run.verbose", "run.allow_drift", "metrics.*", "workers.*", "sweep.concurrent"),
    *("sweep.price_per_hour", "sweep.checkpoint_bytes"),
    *("data.cache_dir", "data.loader_*", "data.s3.*", "evaluation.batch"),
    *("*.training.checkpoint_every", "*.training.keep_*", "*.training.micro_batch"),
)
_MEAN = "one_step.training.micro_batch"  # what the critic averages over
DECIDES = ("workers.precision", _MEAN)  # but these do
RESULT = "result.json"
PACKS = "packs"  # the stage of trials that share a process
ERROR = "error.txt"  # the whole story of a job that failed


def run_root(config: Config) -> Path:
    """The folder of a run, absolute: Ray's workers have another working directory."""
    return (Path(config.run.dir) / config.run.name).absolute()


def decides(key: str) -> bool:
    """Whether a setting decides what is computed."""
    return key in DECIDES or not any(fnmatch(key, pattern) for pattern in MAY_DRIFT)


def _computed(settings: dict) -> dict:
    """The settings, with a number for what the critic averages over: by itself it follows from `workers.count`."""
    one_step = settings["one_step"]
    training = one_step["training"]
    if "one_step" in settings["run"]["stages"] and one_step["critic"] != "none" and not training["micro_batch"]:
        training["micro_batch"] = training["batch"] // settings["workers"]["count"]
    return settings


def _changes(path: Path, config: Config) -> Iterator[tuple[str, str]]:
    """Settings that decide what is computed and differ from the file's: (key, in words)."""
    for key, old, new in differences(_computed(read_yaml(path)), _computed(to_dict(config))):
        if decides(key):
            share = " (by itself the batch / workers.count)" if key == _MEAN else ""
            yield key, f"{key}: {old!r} there, {new!r} now{share}"


def claim(config: Config, say: Callable[[str], None]) -> list[str]:
    """Makes the run's folder the configuration's, or goes on with it if it holds the same one.

    Returns the differences that `run.allow_drift` allows, in words; raises ValueError listing those that it does not.
    """
    root = run_root(config)
    path = root / "config.yaml"
    changes = dict(_changes(path, config)) if path.exists() else {}
    if refused := [line for key, line in changes.items() if key not in config.run.allow_drift]:
        raise ValueError(
            f"{root} was started with other settings ({'; '.join(refused[:6])}"
            f"{f'; and {len(refused) - 6} more' if len(refused) > 6 else ''}); choose another run.name, or allow them: "
            f"run.allow_drift=[{','.join(changes)}]"
        )
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        FileStore().put(str(path), to_yaml(config).encode())
    for line in changes.values():
        say(f"going on with another setting, as run.allow_drift says: {line}")
    return list(changes.values())


def job_folder(root: Path, stage: str, name: str) -> Path:
    """The folder of one job; a stage of one job has no folder per trial."""
    return root / stage if name == stage else root / stage / name


def read_result(folder: Path) -> dict | None:
    """A finished job's result; None while it is not done."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def write_result(folder: Path, result: dict) -> None:
    """Marks a job as done."""
    write_json(folder / RESULT, result)
    (folder / ERROR).unlink(missing_ok=True)  # of an earlier attempt


def errors(results: list[dict]) -> dict[str, str]:
    """One line about each job that failed, by its stage and name."""
    return {job_name(result): result["error"] for result in results if "error" in result}


def job_name(result: dict) -> str:
    """The stage and the name of a result's job; a stage of one job has one name."""
    return " ".join(dict.fromkeys((result["stage"], result["name"])))


def budgeted(config: Config, stage: str) -> bool:
    """Whether a job's checkpoints are inside the budget of all trials'."""
    return bool(config.sweep.checkpoint_bytes) and stage in (trials_stage(config), PACKS)


def release(config: Config, folder: Path, stage: str) -> None:
    """Lets go of the checkpoints of a trial that has ended, where those of all trials have a budget."""
    if budgeted(config, stage):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def write_error(folder: Path, story: str) -> None:
    """Keeps what is known about a failure; the job may be tried again."""
    with suppress(OSError):  # the disk may be full, which is a failure that has a line already
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(story)
