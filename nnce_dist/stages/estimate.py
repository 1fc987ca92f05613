"""What a sweep will take: samples with and without early stopping, device-hours, money, disk for checkpoints."""

import math
import shutil
import statistics
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from ..config.load import ConfigError, with_settings
from ..config.schema import Config, Training
from ..config.sweep_checks import adaptive, trials_stage
from ..metrics.jsonl import FILE_NAME, training_records
from ..sweep.strategies import expected_at
from ..training.mirror import FOLDER
from . import density_ratio_run, rehearsal, step_time
from .folder import RESULT, run_root
from .search import levels, trial_points
from .step_time import Step
from .trials import sweep_trials

NUMBERS = ("run.seed", "objective.*", "*.optimiser.*", "ten_step.sampler.*", "ten_step.value.*", "ten_step.tau*")
SOME = 20  # kinds of trials that are looked at


@dataclass(frozen=True)
class Estimate:
    """The sweep of a run, over a space or over M."""

    config: Config
    stage: str

    @classmethod
    def of(cls, config: Config) -> "Estimate | None":
        """None where nothing is swept."""
        stage = trials_stage(config)
        return cls(config, stage) if stage else None

    @property
    def training(self) -> Training:
        """Length and bookkeeping of the swept stage."""
        return getattr(self.config, self.stage).training

    @cached_property
    def kinds(self) -> list[Config]:
        """The settings of trials whose steps may differ in cost: the first of each kind whose settings go together."""
        found = {}
        for point in trial_points(self.config) if self.config.sweep.space else ():
            kind = tuple((key, str(value)) for key, value in point.items() if not any(fnmatch(key, n) for n in NUMBERS))
            with suppress(ConfigError):  # `sweep_preflight.trials` tells of it
                found[kind] = found.get(kind) or with_settings(self.config, point)
        return list(found.values()) or [self.config]

    @cached_property
    def trials(self) -> int:
        """How many there are."""
        sweep = self.config.sweep
        if not sweep.space:
            density = self.stage == density_ratio_run.STAGE
            return len(density_ratio_run.trials(self.config) if density else sweep_trials(self.config))
        return sweep.trials if sweep.strategy == "tpe" else len(trial_points(self.config))

    @cached_property
    def arrivals(self) -> dict[int, int]:
        """How many trials are expected to come to each number of samples at which they are judged, or end."""
        if not self.config.sweep.space:
            return {self.training.samples: self.trials}
        found = levels(self.config)
        if self.config.sweep.strategy != "asha":
            return dict.fromkeys(found, self.trials)
        return expected_at(found, self.config.sweep.reduction, self.trials, self.config.sweep.per_process)

    @property
    def wave(self) -> int:
        """How many trials begin at one moment; ASHA's packs get smaller later."""
        sweep = self.config.sweep
        return min(self.trials, sweep.batch if sweep.space and sweep.strategy == "tpe" else self.trials)

    @property
    def together(self) -> int:
        """How many trials share a process at most."""
        return min(self.config.sweep.per_process, self.wave)

    @cached_property
    def stacks(self) -> bool:
        """Whether those that share a process are stacked, and saved as one."""
        return self.together > 1 and rehearsal.stacks(self.kinds[0], self.stage)

    @cached_property
    def most(self) -> int:
        """Samples of all trials to their ends."""
        length = f"{self.stage}.training.samples"
        if length not in self.config.sweep.space:
            return self.trials * self.training.samples
        return sum(point[length] for point in trial_points(self.config))

    @property
    def samples(self) -> int:
        """Samples that are expected to be trained."""
        if self.config.sweep.strategy != "asha" or not self.config.sweep.space:
            return self.most
        ends = list(self.arrivals)
        return sum(self.arrivals[end] * (end - start) for start, end in zip([0, *ends], ends, strict=False))

    @property
    def _folder(self) -> Path:
        return run_root(self.config) / self.stage

    @cached_property
    def _records(self) -> list[list[dict]]:
        """Of the training of every trial that an earlier start of the run began."""
        return [found for path in self._folder.rglob(FILE_NAME) if (found := training_records(path.parent))]

    @cached_property
    def done(self) -> tuple[int, int]:
        """(trials, samples) that an earlier start of the run has behind it."""
        return len(list(self._folder.rglob(RESULT))), sum(records[-1]["samples_seen"] for records in self._records)

    @property
    def batch(self) -> int:
        """Samples of the step that hours are reckoned from."""
        return getattr(self.kinds[0], self.stage).training.batch

    @cached_property
    def step(self) -> Step:
        """A step of one trial of the first kind: from the records of this run, otherwise measured here."""
        return self._recorded() or step_time.measured(self.kinds[0], self.stage)

    def _recorded(self) -> Step | None:
        speeds = [speed for found in self._records for one in found if (speed := one.get("images_per_second"))]
        if not speeds:
            return None
        together = self.wave / math.ceil(self.wave / self.config.sweep.per_process)  # a pack's step is one of each
        how = f"the median of {len(speeds):,} records of this run"
        return Step(self.batch / statistics.median(speeds) / together, how, measured=False)

    def hours(self, samples: int) -> float:
        """Device-hours of training so many samples; in batches of other sizes a sample is taken to cost the same."""
        return samples / self.batch * self.step.seconds * self.config.workers.count / 3600

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint, the largest of some kinds of trials."""
        some = self.kinds[:: math.ceil(len(self.kinds) / SOME)]
        return max(rehearsal.checkpoint_bytes(kind, self.stage) for kind in some)

    @property
    def disk_bytes(self) -> int:
        """Of the checkpoints that all trials together keep, and of one that is being written."""
        kept = (self.training.keep_last + bool(self.training.keep_best)) * self.checkpoint_bytes
        if self.training.keep_bytes:
            kept = max(min(kept, self.training.keep_bytes), self.checkpoint_bytes)
        packs = 2 * self.trials if self.stacks and adaptive(self.config) else 0  # whose checkpoints come on top
        total = self.trials * kept + (packs or 1) * self.checkpoint_bytes
        return min(total, self.config.sweep.checkpoint_bytes or total)

    @property
    def free_bytes(self) -> int:
        """Of the disk that the run is on, with what its checkpoints take already."""
        root = run_root(self.config)
        held = sum(path.stat().st_size for path in root.rglob(f"{FOLDER}/*/*"))
        return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free + held
