"""What a job trains, and what becomes of it: the part of a job that is its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..config.schema import DensityRatio, OneStep, Teacher, TenStep
from ..tasks.task import Task
from ..training.loop import Stream

Settings = Teacher | TenStep | OneStep | DensityRatio
Networks = Mapping[str, nn.Module]  # trained ones, by name
Finish = Callable[[Networks, int], dict]  # and the samples seen -> the job's result
Select = Callable[[Networks], float]  # the figure that trials are chosen by, lower is better


@dataclass(frozen=True)
class Learning:
    """A task on its stream, and its end: weights kept and measured, which gives the job's result."""

    task: Task
    settings: Settings
    stream: Stream
    finish: Finish
    select: Select
    constants: Mapping[str, float] = field(default_factory=dict)  # of every record of the training
