"""Rows about what is inside: damaged shards and pictures, poisoned batches, full memory."""

import json
from pathlib import Path

from bed import BATCH, INTERVAL, Bed
from invariants import Run, newest_loads
from outcome import Outcome, measured
from settings import interrupted
from shards import copied, overwrite
from witness import records


def damaged_shards(bed: Bed, reference: Run) -> Outcome:
    """A shard is missing, empty, or has flipped bits; each is named, and the mended set gives the same run."""
    shard = copied(bed) / "shard-000003.tar"
    whole = shard.read_bytes()
    shard.unlink()
    bed.start().refused("shard-000003.tar: no such file")
    shard.touch()
    bed.start().refused("shard-000003.tar: the shard is empty")
    shard.write_bytes(whole)
    overwrite(shard, range(10, 11))
    line = bed.start().refused("shard-000003.tar", "00000202", code=1)
    bed.fault()
    shard.write_bytes(whole)
    bed.start().trained(bed.job)
    return measured(bed, reference, line)


def damaged_and_skipped(bed: Bed, reference: Run) -> Outcome:
    """Pictures that cannot be decoded are skipped, counted and listed: the same ones by one process that is killed and
    goes on as by two workers that are not."""
    shards = copied(bed)
    overwrite(shards / "shard-000001.tar", range(5, 8), b"garbage!")
    overwrite(shards / "shard-000006.tar", range(60, 61))
    bed.settings.append("data.on_error=skip(8)")
    job = bed.runs / "two" / "teacher"
    bed.start("run.name=two", workers=2).trained(job)
    two_workers, listed = Run.of(job), skipped(job)
    assert records(job)[-1]["data/skipped_samples"] == 8  # in two epochs
    assert len(listed) == 4 and two_workers.weights != reference.weights  # other pictures do make another run
    interrupted(bed)
    bed.start().trained(bed.job)
    assert skipped(bed.job) == listed
    line = bed.start("data.on_error=skip(3)", "run.name=fewer").refused("4 samples cannot be read", "skip(3)", code=1)
    return measured(bed, two_workers, f"4 skipped and listed, on 1 and 2 workers alike; {line}")


def skipped(job: Path) -> set[tuple[str, str]]:
    """The pictures that a job's run lists as skipped."""
    lines = (job.parent / "skipped.jsonl").read_text().splitlines()
    return {(entry["shard"], entry["key"]) for entry in map(json.loads, lines)}


def poisoned_batch(bed: Bed, reference: Run) -> Outcome:
    """A NaN in one picture ends the run before a weight moves; without it the same command goes on."""
    position = 3 * INTERVAL + BATCH
    attempt = bed.start(fault=f"poison:{position}")
    line = attempt.refused("is not finite", f"{position:,} samples", code=1)
    bed.fault()
    newest_loads(bed)
    bed.start().trained(bed.job)
    return measured(bed, reference, line)


def out_of_gpu_memory(bed: Bed, reference: Run) -> Outcome:
    """torch says that the GPU's memory is full (raised by the test: there is no GPU); a smaller micro-batch goes on."""
    fault = f"memory:{BATCH // 2}"
    line = bed.start("teacher.training.micro_batch=0", fault=fault).refused(
        "out of GPU memory", "micro_batch=16", code=1
    )
    bed.fault()
    bed.start(fault=fault).trained(bed.job)
    return measured(bed, reference, line)
