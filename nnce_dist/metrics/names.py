"""Every metric of a run: its key in a record, its name for Prometheus, its unit and what it means.

A record is a flat mapping that names its `run`, `stage` and `trial` and carries numbers under six kinds of keys: the
plain ones of `PLAIN`, `<network>/<observation>`, `data/<total>`, `evaluation/<figure>`, `restarts/<cause>`, and
`rank_step_seconds/<rank>`. For people it may say in words what the job is `doing` now, or an `event`: what became of
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Record = Mapping[str, float | int | str]

IDENTITY = ("run", "stage", "trial")


@dataclass(frozen=True)
class Metric:
    """One exported metric; `name` ends in its unit, `label` is what tells its series apart within a trial."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str
    label: str | None = None


PLAIN = {
    "time": Metric("nnce_last_record_timestamp_seconds", "gauge", "s", "Unix time of the newest record"),
    "samples_seen": Metric("nnce_samples_seen", "counter", "samples", "Training samples seen by the stage"),
    "samples_total": Metric("nnce_samples_planned", "gauge", "samples", "Training samples the stage will see"),
    "steps": Metric("nnce_steps", "counter", "steps", "Iterations of the stage"),
    "skipped_steps": Metric(
        "nnce_skipped_steps", "counter", "steps", "Optimiser steps left out: a non-finite gradient"
    ),
    "started": Metric("nnce_started_timestamp_seconds", "gauge", "s", "Unix time of the job's first start"),
    "useful_seconds": Metric(
        "nnce_useful_seconds", "counter", "s", "Time in steps that count: one that was made again counts once"
    ),
    "goodput": Metric(
        "nnce_goodput", "gauge", "1", "Part of the time since the first start that went into steps that count"
    ),
    "images_per_second": Metric("nnce_images_per_second", "gauge", "samples/s", "Throughput over all ranks"),
    "step_seconds": Metric("nnce_step_seconds", "gauge", "s", "Mean duration of an iteration"),
    "checkpoint_seconds": Metric("nnce_checkpoint_seconds", "gauge", "s", "Duration of the newest checkpoint's write"),
    "checkpoint_stall_seconds": Metric(
        "nnce_checkpoint_stall_seconds", "counter", "s", "Time that training stood still for checkpoints"
    ),
    "checkpoint_bytes": Metric("nnce_checkpoint_bytes", "gauge", "bytes", "Size of the newest checkpoint"),
    "noise_magnitude": Metric("nnce_noise_magnitude", "gauge", "1", "M of the objective; 1 is NCE, +Inf is NWJ"),
}

RETRY_CAUSES = ("throttled", "unavailable", "stalled", "truncated", "damaged", "disconnected", "expired")
RETRIES = Metric("nnce_data_retries", "counter", "requests", "Requests to the store that were repeated", "cause")

DATA = {  # counted by `data/counters.py` in every process; the records hold sums over ranks, since the job was started
    "wait_seconds": Metric("nnce_data_wait_seconds", "counter", "s", "Time that training waited for the next batch"),
    "cache_hits": Metric("nnce_data_cache_hits", "counter", "shards", "Shards found in the local cache when needed"),
    "fetched_bytes": Metric("nnce_data_fetched_bytes", "counter", "bytes", "Bytes of shards copied from the store"),
    "skipped_samples": Metric(
        "nnce_data_skipped_samples", "counter", "samples", "Bad samples in whose place another was used, every time"
    ),
    **{f"retries/{cause}": RETRIES for cause in RETRY_CAUSES},
}

PER_NETWORK = {
    "loss": Metric("nnce_loss", "gauge", "1", "Mean loss of a network's update", "network"),
    "gradient_norm": Metric(
        "nnce_gradient_norm", "gauge", "1", "Norm of a network's gradient before clipping", "network"
    ),
    "learning_rate": Metric("nnce_learning_rate", "gauge", "1", "Learning rate of a network", "network"),
    "log_ratio_data": Metric("nnce_log_ratio_data", "gauge", "nat", "Mean ln r over data", "network"),
    "log_ratio_noise": Metric("nnce_log_ratio_noise", "gauge", "nat", "Mean ln r over noise", "network"),
    "ratio_noise": Metric("nnce_ratio_noise", "gauge", "1", "E_noise[r], which is 1 for a true ratio", "network"),
    "ratio_noise_squared": Metric(
        "nnce_ratio_noise_squared", "gauge", "1", "E_noise[r^2]; E[r]^2 over it is the effective fraction", "network"
    ),
    "saturated_data": Metric("nnce_saturated_data", "gauge", "1", "Part of the data with ln r > ln M", "network"),
    "noise_magnitude": Metric(
        "nnce_step_noise_magnitude", "gauge", "1", "Mean M of a network's steps since the last record", "network"
    ),
    "saturated_noise": Metric("nnce_saturated_noise", "gauge", "1", "Part of the noise with ln r > ln M", "network"),
}

OBSERVATION = Metric("nnce_observation", "gauge", "1", "Mean of another observation: <network>/<name>", "observation")
EVALUATION = Metric("nnce_evaluation", "gauge", "1", "A figure of the evaluation; its name says samples", "figure")

RESTARTS = Metric("nnce_restarts", "counter", "restarts", "Times that a job's workers were started again", "cause")
RANK_STEP_SECONDS = Metric(
    "nnce_rank_step_seconds", "gauge", "s", "Mean duration of a rank's part of an iteration, without waiting", "rank"
)

BY_NAME = {"evaluation": EVALUATION, "restarts": RESTARTS, "rank_step_seconds": RANK_STEP_SECONDS}
METRICS = (*PLAIN.values(), *dict.fromkeys(DATA.values()), *PER_NETWORK.values(), OBSERVATION, *BY_NAME.values())


def lookup(key: str) -> tuple[Metric, str | None] | None:
    """The metric that a record's key belongs to and its label's value; None for a key that is not exported."""
    if key in PLAIN:
        return PLAIN[key], None
    group, slash, name = key.partition("/")
    if not slash:
        return None
    if group in BY_NAME:
        return BY_NAME[group], name
    if group == "data":
        return DATA[name], name.partition("/")[2] or None
    if name in PER_NETWORK:
        return PER_NETWORK[name], group
    return OBSERVATION, key
