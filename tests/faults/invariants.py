"""The invariants of the fault catalogue, measured on a run that met a fault and on one that did not.

What proves that no sample was lost or repeated? Every step writes a record: the samples seen up to it, and its loss and
gradient norm as float64. The loss is a sum over the very pictures of its batch, each with the noise that belongs to its
position in the run, in networks that all steps before have made. So when every position stands in the log once, with
figures that equal the uninterrupted run's to the last bit, and the final weights are equal too, then the steps that
made these weights used the uninterrupted run's samples: none more, none less, none at another place. A step that was
run twice, because it came after the checkpoint that was gone on from, left no trace in either.
A sample counts as lost when its step's record is missing or has other figures, as repeated when its step stands in the
log again. That the uninterrupted run uses every picture once an epoch is counted by itself (`ledger`): the digests of
the pictures that its task was handed, against the pictures in the shards.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bed import BATCH, CANARY_ID, CANARY_SECRET, SAMPLES, Bed
from PIL import Image
from safetensors import safe_open
from witness import records

from nnce_dist.training import checkpoint

SECRETS = [CANARY_ID.encode(), CANARY_SECRET.encode(), CANARY_SECRET.replace("/", "%2F").replace("+", "%2B").encode()]

NOT_OF_THE_STEP = ("data/", "evaluation/", "rank_step_seconds/")  # what was counted, found later, or timed


@dataclass(frozen=True)
class Run:
    """What is compared of a run: figures by position, as often as they stand in the log; the final weights."""

    figures: list[tuple[int, dict[str, float]]]
    weights: str

    @classmethod
    def of(cls, job: Path) -> "Run":
        """A finished run's."""
        figures = [(record["samples_seen"], _figures(record)) for record in records(job)]
        return cls(figures, hashlib.sha256((job / "weights.safetensors").read_bytes()).hexdigest())


def _figures(record: dict) -> dict[str, float]:
    return {key: value for key, value in record.items() if "/" in key and not key.startswith(NOT_OF_THE_STEP)}


@dataclass(frozen=True)
class Count:
    """Samples whose step is missing or differs, and samples whose step was counted again."""

    lost: int
    repeated: int


def compare(run: Run, reference: Run) -> Count:
    """Counts what the run lost and repeated against the reference."""
    times = Counter(position for position, _ in run.figures)
    last = dict(run.figures)
    lost = sum(last.get(position) != figures for position, figures in reference.figures)
    repeated = sum(n - 1 for n in times.values()) + len(set(times) - {position for position, _ in reference.figures})
    return Count(lost * BATCH, repeated * BATCH)


def verify(bed: Bed, reference: Run) -> Count:
    """Checks I2 to I6 on a run that was brought to its end; gives the count. AssertionError names the invariant."""
    bed.witness.look()
    run = Run.of(bed.job)
    count = compare(run, reference)
    positions = [position for position, _ in run.figures]
    assert positions == [position for position, _ in reference.figures], f"I2: {positions}"
    strange = set(bed.witness.resumed_at) - bed.witness.committed
    assert not strange, f"I2: went on from {strange}, where no checkpoint was committed"
    assert count == Count(0, 0), f"I4: {count}"
    assert run.weights == reference.weights, "I3: other final weights"
    newest_loads(bed)
    no_secret(bed.homes)
    return count


def newest_loads(bed: Bed) -> Path | None:
    """I5: the newest checkpoint that the product calls valid is read in full; gives it."""
    valid = [path for path in bed.checkpoints() if not checkpoint.problem(path)]
    if not valid:
        return None
    json.loads((valid[-1] / "state.json").read_text())
    with safe_open(valid[-1] / "state.safetensors", framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            assert np.isfinite(file.get_tensor(name)).all(), f"I5: {valid[-1]}: {name} is not finite"
    return valid[-1]


def no_secret(folders: Iterable[Path]) -> None:
    """I6: neither the key nor its id stands in a file, outputs included."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        assert not any(secret in content for secret in SECRETS), f"I6: the key is in {path}"


def every_picture_once_an_epoch(ledger: Path, shards: Path) -> None:
    """The uninterrupted run was handed every picture of the shards once in every epoch."""
    pictures = {_digest(np.asarray(image)) for tar in shards.glob("*.tar") for image in _images(tar)}
    handed = ledger.read_text().split()
    assert len(handed) == SAMPLES, f"I4: {len(handed)} pictures used"
    for start in range(0, SAMPLES, len(pictures)):
        epoch = Counter(handed[start : start + len(pictures)])
        assert set(epoch) == pictures and set(epoch.values()) == {1}, f"I4: the epoch from {start} is not complete"


def _images(tar: Path) -> Iterable[Image.Image]:
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith((".png", ".jpg")):
                yield Image.open(archive.extractfile(member)).convert("RGB")


def _digest(pixels: np.ndarray) -> str:
    """Of a picture (H, W, 3), the same when it is mirrored."""
    return min(hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in (pixels, pixels[:, ::-1]))
