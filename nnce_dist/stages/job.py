"""One job of a run: its folder, data, recorder and evaluation; a job's own code says only what is special to it."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.schema import Config, OneStep, Teacher, TenStep
from ..data.stream import ShardSource
from ..evaluation.evaluate import DivergedError, Reference, evaluate
from ..evaluation.features import FeatureNetwork, to_uint8
from ..metrics.jsonl import FILE_NAME, JsonlSink
from ..metrics.recorder import Recorder
from ..models.preconditioning import EDMPrecond
from ..models.weights import save_weights
from ..report.grids import save_grid
from ..tasks.edm_loss import one_hot
from ..tasks.task import Task
from ..training.loop import train
from ..training.runtime import Runtime
from ..training.seeding import SampleRandom, fold
from ..training.state import TrainState
from . import build, inputs
from .draws import Draw
from .folder import job_folder

TRAINING, EVALUATION, SELECTION = 10, 13, 14  # keys of the random streams; 11 and 12 were used up in choosing settings
GRID = 32  # pictures kept as samples.png


def rank_part(total: int, rank: int, world_size: int) -> slice:
    """This rank's consecutive part of `total` things, as equal as they divide."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


class Job:
    """A job and everything it may use."""

    def __init__(self, config: Config, root: Path, stage: str, name: str, runtime: Runtime):
        self.config, self.root, self.stage, self.name, self.runtime = config, root, stage, name, runtime
        self.folder = job_folder(root, stage, name)
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def data(self) -> ShardSource:
        """The training data."""
        return inputs.open_train(self.config)

    @cached_property
    def teacher(self) -> EDMPrecond:
        """The trained teacher, frozen, on this job's device."""
        return build.teacher(self.config, self.root).to(self.runtime.device)

    @cached_property
    def features(self) -> FeatureNetwork:
        """The feature network of the evaluation, on this job's device."""
        return inputs.feature_network(self.config, self.runtime.device)

    @cached_property
    def reference(self) -> Reference:
        """Statistics of the training data in those features."""
        return inputs.reference(self.config, self.data, self.features)

    def train(self, task: Task, settings: Teacher | TenStep | OneStep, **constants: float) -> TrainState:
        """Trains a task in this job's folder."""
        training = settings.training
        sinks = [JsonlSink(self.folder / FILE_NAME)] if self.runtime.rank == 0 else []
        identity = {**self._identity, "samples_total": training.samples, **constants}
        recorder = Recorder(identity, training.batch, sinks, self.runtime.all_reduce)
        seed = fold(self.config.run.seed, TRAINING)  # the same for every trial: they differ in their settings alone
        try:
            return train(task, self.data, training, seed, self.runtime, recorder, self.folder / "checkpoints")
        finally:
            recorder.close()

    @property
    def _identity(self) -> dict[str, str]:
        return {"run": self.config.run.name, "stage": self.stage, "trial": self.name}

    def publish(self, figures: Mapping[str, list[float]]) -> None:
        """Sends the means over draws of the evaluation's figures where metrics go."""
        if figures:
            means = {f"evaluation/{name}": statistics.fmean(values) for name, values in figures.items()}
            with closing(JsonlSink(self.folder / FILE_NAME)) as sink:
                sink.write({**self._identity, "time": time.time(), **means})

    def save_weights(self, network: nn.Module, name: str = "weights") -> None:
        """Keeps a network's tensors as <name>.safetensors."""
        if self.runtime.rank == 0:
            save_weights(network.state_dict(), self.folder / f"{name}.safetensors")

    def _images(self, draw: Draw, key: int) -> Callable[[int, range], Tensor]:
        """Images by draw and sample numbers, the same on every rank: each draws its part, a sum joins the parts."""
        labels = inputs.label_marginal(self.data.label_counts)
        size, device = self.config.data.image_size, self.runtime.device

        def images(number: int, ids: range) -> Tensor:
            whole = torch.zeros(len(ids), 3, size, size, device=device)
            part = rank_part(len(ids), self.runtime.rank, self.runtime.world_size)
            if mine := ids[part]:
                random = SampleRandom.at(fold(self.config.run.seed, key, number), mine, device)
                whole[part] = draw(random, one_hot(labels(mine).to(device), self.config.data.num_classes)).float()
            self.runtime.all_reduce(whole)
            return whole

        return images

    def _figures(self, images: Callable[[int, range], Tensor], draws: int) -> dict[str, list[float]]:
        settings = inputs.with_draws(self.config.evaluation, draws)
        labels = inputs.label_marginal(self.data.label_counts) if inputs.classes_known(self.config) else None
        return evaluate(images, self.reference, self.features, settings, labels)

    @torch.inference_mode()
    def measure(self, draw: Draw) -> dict:
        """Figures of a sampler over the evaluation's draws and a picture of its samples; a note if it diverged."""
        images = self._images(draw, EVALUATION)
        grid = to_uint8(images(0, range(GRID)))
        if self.runtime.rank == 0:
            save_grid(grid, self.folder / "samples.png")
        try:
            return {"figures": self._figures(images, self.config.evaluation.draws)}
        except DivergedError:
            return {"figures": {}, "note": "diverged"}

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
        figures = evaluate(
            lambda number, ids: pixels[ids.start : ids.stop],
            self.reference,
            self.features,
            settings,
            (lambda ids: labels[ids.start : ids.stop]) if known else None,
        )
        return {"figures": figures}
