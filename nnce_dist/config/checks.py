"""Settings that contradict each other: one line each, naming the keys and what to do."""

import re
from collections.abc import Iterator

from .schema import Config, Training

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def _training(key: str, training: Training, workers: int) -> Iterator[str]:
    if training.samples % training.batch:
        rounded = max(training.samples // training.batch, 1) * training.batch
        yield f"{key}.samples={training.samples} is no multiple of {key}.batch={training.batch}; use {rounded}"
    if training.batch % workers:
        yield (
            f"{key}.batch={training.batch} cannot be shared equally by workers.count={workers}; "
            "choose a multiple (the global batch is fixed by the configuration)"
        )


def contradictions(config: Config) -> list[str]:
    """Every contradiction found."""
    problems = []
    if not NAME.fullmatch(config.run.name):
        problems.append(f"run.name={config.run.name!r}: use 1 to 63 lower-case letters, digits and '-'")
    for key in ("teacher", "ten_step", "one_step"):
        problems += _training(f"{key}.training", getattr(config, key).training, config.workers.count)
    if config.data.val and not config.data.train:
        problems.append("data.val is given without data.train; give both, or neither for the project's own pictures")
    if config.data.train and not config.data.val:
        problems.append(
            "data.train is given without data.val; give shards that training does not see for the evaluation"
        )
    if config.workers.runtime == "local" and config.workers.count > 1:
        problems.append(f"workers.count={config.workers.count} needs Ray; use workers.runtime=ray")
    if config.evaluation.features == "inception" and not config.evaluation.inception_weights:
        problems.append("evaluation.features=inception needs evaluation.inception_weights=FILE; or use features=shapes")
    if not config.data.train and config.data.image_size != 64:
        problems.append(f"data.image_size={config.data.image_size}: the project's own pictures are 64; give data.train")
    if config.ten_step.sampler_batches > config.ten_step.num_steps:
        problems.append(
            f"ten_step.sampler_batches={config.ten_step.sampler_batches} is more than "
            f"ten_step.num_steps={config.ten_step.num_steps}, which already takes every transition"
        )
    return problems
