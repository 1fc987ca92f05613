"""Every metric of a run: its key in a record, its name for Prometheus, its unit and what it means.

A record is a flat mapping that names its `run`, `stage` and `trial` and carries numbers under three kinds of keys:
the plain ones of `PLAIN`, `<network>/<observation>`, and `evaluation/<figure>`.
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
    "images_per_second": Metric("nnce_images_per_second", "gauge", "samples/s", "Throughput over all ranks"),
    "step_seconds": Metric("nnce_step_seconds", "gauge", "s", "Mean duration of an iteration"),
    "data_seconds": Metric("nnce_data_wait_seconds", "gauge", "s", "Mean wait for the next batch in an iteration"),
    "checkpoint_seconds": Metric("nnce_checkpoint_seconds", "gauge", "s", "Duration of the newest checkpoint's write"),
    "noise_magnitude": Metric("nnce_noise_magnitude", "gauge", "1", "M of the objective; 1 is NCE, +Inf is NWJ"),
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
    "saturated_noise": Metric("nnce_saturated_noise", "gauge", "1", "Part of the noise with ln r > ln M", "network"),
}

OBSERVATION = Metric("nnce_observation", "gauge", "1", "Mean of another observation: <network>/<name>", "observation")
EVALUATION = Metric("nnce_evaluation", "gauge", "1", "A figure of the evaluation; its name says samples", "figure")

METRICS = (*PLAIN.values(), *PER_NETWORK.values(), OBSERVATION, EVALUATION)


def lookup(key: str) -> tuple[Metric, str | None] | None:
    """The metric that a record's key belongs to and its label's value; None for a key that is not exported."""
    if key in PLAIN:
        return PLAIN[key], None
    group, slash, name = key.partition("/")
    if not slash:
        return None
    if group == "evaluation":
        return EVALUATION, name
    if name in PER_NETWORK:
        return PER_NETWORK[name], group
    return OBSERVATION, key
