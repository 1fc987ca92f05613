"""One job of a run: its folder, data, recorder and evaluation; a job's own code says only what is special to it."""

import dataclasses
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config.schema import Config, Training, Workers
from ..data import counters
from ..data.stream import ShardSource
from ..evaluation.evaluate import Reference, evaluate
from ..evaluation.features import FeatureNetwork, to_uint8
from ..metrics.jsonl import FILE_NAME, JsonlSink, append, truncate
from ..metrics.packed import Member
from ..metrics.recorder import Recorder
from ..models.preconditioning import EDMPrecond
from ..models.weights import save_weights
from ..report.grids import save_grid
from ..samplers.divergence import DivergedError
from ..tasks.edm_loss import one_hot
from ..training.errors import one_line
from ..training.loop import Stream
from ..training.mirror import FOLDER
from ..training.runtime import Runtime, stop_if_asked
from ..training.saver import Saver
from ..training.seeding import SampleRandom, fold
from . import build, inputs
from .draws import Draw
from .folder import job_folder, release, write_result
from .learning import Learning
from .lease import RunGuard
from .mirror import run_mirror
from .trials import swept_settings

TRAINING, EVALUATION, SELECTION = 10, 13, 14  # keys of the random streams; 11 and 12 were used up in choosing settings
T = TypeVar("T")
GRID = 32  # pictures kept as samples.png
DIVERGED = "diverged"


def rank_part(total: int, rank: int, world_size: int) -> slice:
    """This rank's consecutive part of `total` things, as equal as they divide."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


def micro_batched(training: Training, workers: Workers) -> Training:
    """Where workers may be lost, each takes its samples in the parts that it would have with all: memory stays."""
    if not workers.min or training.micro_batch:
        return training
    return dataclasses.replace(training, micro_batch=training.batch // workers.count)


def diverged(error: DivergedError) -> dict:
    """What the result of a sampler that has diverged says in place of figures."""
    return {"figures": {}, "note": DIVERGED, "reason": one_line(error)}


def outcome_of(result: Mapping[str, Any], otherwise: str = "") -> str:
    """What became of a job, for people: why it diverged, or what else it has come to."""
    return f"{DIVERGED}: {result['reason']}" if "reason" in result else otherwise


class Job:
    """A job and everything it may use."""

    def __init__(
        self,
        config: Config,
        root: Path,
        stage: str,
        name: str,
        runtime: Runtime,
        epoch: int = 0,
        shared: dict[str, Any] | None = None,
    ):
        self.config, self.root, self.stage, self.name, self.runtime = config, root, stage, name, runtime
        self._shared = {} if shared is None else shared
        self.guard = RunGuard(root, epoch)
        self.mirror = run_mirror(config) if epoch else None  # a run that nobody leases has no copy
        self.folder = job_folder(root, stage, name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made by the first of the jobs that share a process and need it."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    @property
    def data(self) -> ShardSource:
        """The training data."""
        return self.once("data", lambda: inputs.open_train(self.config))

    @property
    def teacher(self) -> EDMPrecond:
        """The trained teacher, frozen, on this job's device."""
        return self.once("teacher", lambda: build.teacher(self.config, self.root).to(self.runtime.device))

    @property
    def features(self) -> FeatureNetwork:
        """The feature network of the evaluation, on this job's device."""
        return self.once("features", lambda: inputs.feature_network(self.config, self.runtime.device))

    @property
    def reference(self) -> Reference:
        """Statistics of the training data in those features."""
        return self.once("reference", lambda: inputs.reference(self.config, self.data, self.features))

    @property
    def seed(self) -> int:
        """Of the order of the data and of every draw in training; the same for trials that differ in settings alone."""
        return fold(self.config.run.seed, TRAINING)

    def training(self, learning: Learning) -> Training:
        """Length and bookkeeping of what this job trains."""
        return micro_batched(learning.settings.training, self.config.workers)

    def member(self, learning: Learning) -> Member:
        """What every record of this job's training says, and where its records go."""
        known = {"samples_total": learning.settings.training.samples, **learning.constants}
        if settings := swept_settings(self.config, self.stage):
            known["settings"] = settings
        return Member(
            {**self._identity, **known}, [JsonlSink(self.folder / FILE_NAME)] if self.runtime.rank == 0 else []
        )

    def saver(self, stream: Stream, say: Callable[[str], None]) -> Saver:
        """What saves this job's checkpoints."""
        copies = self.mirror.of_job(self.folder, self.guard.epoch) if self.mirror else None
        return Saver(self.folder / FOLDER, self.guard, self._facts(stream), self.config.workers.grace, copies, say)

    @contextmanager
    def prepared(self, learning: Learning) -> Iterator[tuple]:
        """What `train` and `steps` take after the task or its state; the log is closed afterwards."""
        training, member = self.training(learning), self.member(learning)
        recorder = Recorder(
            *(member.constants, training.batch, member.sinks, self.runtime.all_reduce, counters.since_now())
        )
        saver = self.saver(learning.stream, recorder.note)
        with closing(recorder):
            yield learning.stream, training, self.seed, self.runtime, recorder, saver, recorder.note

    def complete(self, result: dict, seconds: float) -> dict:
        """Keeps the result and sends its figures where metrics go; the job is done then."""
        result = result | {"name": self.name, "stage": self.stage, "seconds": seconds}
        if "figures" in result:
            self.publish(result)
        if self.runtime.rank == 0:
            self.guard.check()
            write_result(self.folder, result)
            self.copy()
            release(self.config, self.folder, self.stage)
        self.runtime.barrier()
        return result

    def _facts(self, stream: Stream) -> dict[str, str]:
        """What must be as it was when training goes on."""
        drifts = {"data.train", "density_ratio.vectors"} & set(self.config.run.allow_drift)
        return {} if drifts else {"data_digest": stream.digest}

    @property
    def _identity(self) -> dict[str, str]:
        return {"run": self.config.run.name, "stage": self.stage, "trial": self.name}

    def tell(self, **values: float | str) -> None:
        """Sends a record where metrics go."""
        if self.runtime.rank == 0:
            append(self.folder / FILE_NAME, {**self._identity, "time": time.time(), **values})

    def tell_event(self, event: str) -> None:
        """Sends a line of words where metrics go."""
        self.tell(event=event)

    def tell_from(self, samples_seen: int, *events: str) -> None:
        """Sends lines of words where metrics go, if there are any; the log then goes on from so many samples."""
        path = self.folder / FILE_NAME
        for event in filter(None, events) if self.runtime.rank == 0 else ():
            if path.exists():
                truncate(path, samples_seen)
            self.tell_event(event)

    def publish(self, result: Mapping[str, Any]) -> None:
        """Sends the means over draws of the evaluation's figures, and what trials are chosen by, where metrics go."""
        means = {name: statistics.fmean(values) for name, values in result["figures"].items()}
        means |= {key: result[key] for key in ("selection",) if key in result}
        self.tell(event=outcome_of(result, "evaluated"), **{f"evaluation/{name}": mean for name, mean in means.items()})

    def copy(self) -> None:
        """Copies what the finished job leaves to the mirror; if that fails the run's end tries again."""
        if self.mirror:
            try:
                self.mirror.guard(self.guard.epoch).check()
                self.mirror.push(self.folder)
            except OSError as error:
                self.tell(event=f"not copied yet: {' '.join(str(error).split())}")

    def forget(self) -> None:
        """Removes the folder of a job that is over, its checkpoints in the mirror too, which nobody asks for again."""
        if self.runtime.rank == 0:
            self.guard.check()
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # what stays in a store that is away has a name that no other job has
                self._forget_copy()

    def _forget_copy(self) -> None:
        if self.mirror:
            self.mirror.guard(self.guard.epoch).check()
            self.mirror.forget(self.folder)

    def save_weights(self, network: nn.Module, name: str = "weights") -> None:
        """Keeps a network's tensors as <name>.safetensors."""
        if self.runtime.rank == 0:
            save_weights(network.state_dict(), self.folder / f"{name}.safetensors")

    def _images(self, draw: Draw, key: int) -> Callable[[int, range], Tensor]:
        """Images by draw and sample numbers, the same on every rank: each draws its part, a sum joins the parts."""
        labels = inputs.label_marginal(self.data.label_counts)
        size, device = self.config.data.image_size, self.runtime.device

        def images(number: int, ids: range) -> Tensor:
            stop_if_asked(self.runtime, "its evaluation")
            whole = torch.zeros(len(ids), 3, size, size, device=device)
            part = rank_part(len(ids), self.runtime.rank, self.runtime.world_size)
            if mine := ids[part]:
                random = SampleRandom.at(fold(self.config.run.seed, key, number), mine, device)
                whole[part] = draw(random, one_hot(labels(mine).to(device), self.config.data.num_classes)).float()
            self.runtime.all_reduce(whole)
            return whole

        return images

    def _figures(self, images: Callable[[int, range], Tensor], draws: int) -> dict[str, list[float]]:
        self.tell(doing="evaluating")
        settings = inputs.with_draws(self.config.evaluation, draws)
        labels = inputs.label_marginal(self.data.label_counts) if inputs.classes_known(self.config) else None
        try:
            return evaluate(images, self.reference, self.features, settings, labels)
        except torch.OutOfMemoryError as error:
            remedy = f"set evaluation.batch={max(settings.batch // 2, 1)} (the figures stay)"
            raise ValueError(f"evaluation.batch={settings.batch}: {one_line(error)}; {remedy}") from error

    @torch.inference_mode()
    def measure(self, draw: Draw) -> dict:
        """Figures of a sampler over the evaluation's draws and a picture of its samples; why not, if it diverged."""
        images = self._images(draw, EVALUATION)
        grid = to_uint8(images(0, range(GRID)))
        if self.runtime.rank == 0:
            save_grid(grid, self.folder / "samples.png")
        try:
            return {"figures": self._figures(images, self.config.evaluation.draws)}
        except DivergedError as error:
            return diverged(error)

    @torch.inference_mode()
    def select(self, draw: Draw) -> float:
        """The Frechet distance on a draw of its own, for choosing among trials; reported figures never see it."""
        try:
            figures = self._figures(self._images(draw, SELECTION), 1)
        except DivergedError:
            return math.inf
        return next(values[0] for name, values in figures.items() if name.startswith("fd_"))

    def measure_data(self) -> dict:
        """Figures of held-out data: what a perfect sampler would get."""
        held_out = inputs.open_val(self.config)
        chosen = inputs.spread(len(held_out), self.config.evaluation.num_samples)
        pixels, labels = held_out.raw(chosen)
        if self.runtime.rank == 0:
            save_grid(pixels[:GRID], self.folder / "samples.png")
        settings = inputs.with_draws(self.config.evaluation, 1, len(pixels))
        known = inputs.classes_known(self.config)

        def images(number: int, ids: range) -> Tensor:
            stop_if_asked(self.runtime, "its evaluation")
            return pixels[ids.start : ids.stop]

        figures = evaluate(
            images,
            self.reference,
            self.features,
            settings,
            (lambda ids: labels[ids.start : ids.stop]) if known else None,
        )
        return {"figures": figures}
