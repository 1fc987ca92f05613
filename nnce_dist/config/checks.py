"""Settings that contradict each other: one line each, naming the keys and what to do."""

import math
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from .schema import Config, DensityRatio, Training

MIRROR = re.compile(r"s3://[^/?*:@]+(/[^/?*]+)*/?")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

ON_ERROR = re.compile(r"fail|skip\(([1-9][0-9]*)\)")


def tolerated(on_error: str) -> int:
    """How many samples that cannot be read `data.on_error` lets be skipped."""
    return int(ON_ERROR.fullmatch(on_error)[1] or 0)


def endpoint_problem(endpoint_url: str) -> str | None:
    """What is wrong with `data.s3.endpoint_url`, without repeating it."""
    if not endpoint_url:
        return None
    if "@" in endpoint_url or "?" in endpoint_url:  # unparsed: a secret may hold what ends the host for a parser
        return "data.s3.endpoint_url must not hold credentials; use the standard AWS credential chain"
    try:
        parts = urlsplit(endpoint_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    return None if is_address else "data.s3.endpoint_url must look like https://host:port"


def _training(key: str, training: Training, workers: int) -> Iterator[str]:
    if min(training.batch, workers) < 1 or training.micro_batch < 0:
        return  # out of range, which is told by itself
    if training.samples % training.batch:
        rounded = max(training.samples // training.batch, 1) * training.batch
        yield f"{key}.samples={training.samples} is no multiple of {key}.batch={training.batch}; use {rounded}"
    if training.batch % workers and not training.micro_batch:
        yield (
            f"{key}.batch={training.batch} cannot be shared equally by workers.count={workers}; "
            f"choose a multiple, or {key}.micro_batch (the global batch is fixed by the configuration)"
        )
    if training.micro_batch * (workers - 1) >= training.batch:
        yield (
            f"{key}.batch={training.batch} has too few micro-batches of {training.micro_batch} for "
            f"workers.count={workers}; choose {key}.micro_batch={max(training.batch // workers, 1)} or smaller"
        )


def _auto(config: Config) -> Iterator[str]:
    name = "objective.noise_magnitude=auto"
    if config.sweep.noise_magnitudes or config.sweep.nwj or config.sweep.held:
        yield f"{name}: there is no M to sweep; set sweep.noise_magnitudes=[] sweep.nwj=false sweep.held=false"
    if config.objective.kind != "n2ce":
        yield f"{name}: chooses M for objective.kind=n2ce, not {config.objective.kind}"
    if config.objective.hold_regularisation:
        yield f"{name}: holds gamma (M+1)/M fixed by itself; set objective.hold_regularisation=false"


def _infinite(config: Config) -> list[str]:
    """The settings that make M infinite."""
    largest = {
        "objective.noise_magnitude": config.objective.noise_magnitude,
        "one_step.critic_noise_magnitude": config.one_step.critic_noise_magnitude,
        "sweep.noise_magnitudes": max(config.sweep.noise_magnitudes, default=1.0),
        "sweep.nwj": math.inf if config.sweep.nwj else 1.0,
    }
    return [name for name, m in largest.items() if math.isinf(m)]


def _schedule(config: Config) -> Iterator[str]:
    schedule, key = config.objective.schedule, "objective.schedule"
    if schedule.kind in ("geometric", "cosine"):
        for name in _infinite(config):
            yield f"{key}.kind={schedule.kind}: a ramp ends at a finite M; change {name}, or use a piecewise schedule"
    if schedule.kind == "piecewise" and len(schedule.magnitudes) != len(schedule.fractions):
        yield (
            f"{key}: {len(schedule.magnitudes)} magnitudes for {len(schedule.fractions)} fractions; "
            "give an M before each, objective.noise_magnitude comes last"
        )
    if schedule.kind == "auto":
        yield from _auto(config)
    if schedule.fractions != sorted(schedule.fractions):
        yield f"{key}.fractions={schedule.fractions}: must ascend"


def unbridgeable(settings: DensityRatio, dim: int) -> str | None:
    """What is wrong with the bridges between vectors of so many dimensions."""
    if settings.waymarks != "mixed" or settings.num_bridges <= dim:
        return None
    return (
        f"density_ratio.num_bridges={settings.num_bridges}: waymarks=mixed exchanges coordinates, of which there are "
        f"{dim}; use {dim} bridges at most, or waymarks=combined"
    )


def _density_ratio(config: Config) -> Iterator[str]:
    stages, settings = config.run.stages, config.density_ratio
    if "density_ratio" in stages and len(stages) > 1:
        yield f"run.stages=[{','.join(stages)}]: density_ratio stands alone; run it by itself"
    if settings.family == "correlation" and settings.dim % 2:
        yield f"density_ratio.dim={settings.dim}: family=correlation is made of pairs; use an even number"
    if not settings.vectors and (line := unbridgeable(settings, settings.dim)):
        yield line
    if "density_ratio" in stages and config.objective.kind == "reweighted_bce" and (names := _infinite(config)):
        yield f"objective.kind=reweighted_bce has no M = inf, which {', '.join(names)} asks for; choose a finite M"


def contradictions(config: Config) -> list[str]:
    """Every contradiction found."""
    problems = []
    if not NAME.fullmatch(config.run.name):
        problems.append(f"run.name={config.run.name!r}: use 1 to 63 lower-case letters, digits and '-'")
    for key in ("teacher", "ten_step", "one_step", "density_ratio"):
        problems += _training(f"{key}.training", getattr(config, key).training, config.workers.count)
    if not ON_ERROR.fullmatch(config.data.on_error):
        problems.append(f"data.on_error={config.data.on_error}: write fail, or skip(10) to tolerate 10 bad samples")
    problems += _schedule(config)
    problems += _density_ratio(config)
    problems += filter(None, [endpoint_problem(config.data.s3.endpoint_url)])
    if "://" in config.run.mirror and not MIRROR.fullmatch(config.run.mirror):
        problems.append(f"run.mirror={config.run.mirror!r}: write s3://bucket/prefix")
    if config.data.val and not config.data.train:
        problems.append("data.val is given without data.train; give both, or neither for the project's own pictures")
    if config.data.train and not config.data.val:
        problems.append(
            "data.train is given without data.val; give shards that training does not see for the evaluation"
        )
    if config.workers.min > config.workers.count:
        problems.append(f"workers.min={config.workers.min} is more than workers.count={config.workers.count}")
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
