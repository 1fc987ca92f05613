"""python -m pytest tests/unit/test_ranks.py

Every task of images gives the same parameters on one rank and on three: threads that sum over a barrier. The same
with Ray's workers, for the teacher, is tests/integration/test_same_everywhere.py.
"""

import copy
from itertools import count
from pathlib import Path

import pytest
import torch
from toys import Silent, ThreadRuntime, on_ranks

from nnce_dist.config.load import load
from nnce_dist.config.schema import Training
from nnce_dist.data.shards import rank_share
from nnce_dist.models.weights import save_weights
from nnce_dist.stages import build, draws
from nnce_dist.stages.job import Job, rank_part
from nnce_dist.tasks.one_step import OneStepTask
from nnce_dist.tasks.task import Batch
from nnce_dist.tasks.ten_step import TenStepTask
from nnce_dist.training.loop import train
from nnce_dist.training.saver import Saver
from nnce_dist.training.seeding import SampleRandom
from nnce_dist.training.state import TrainState

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
# eps: gradients that are nothing but rounding must not become steps of Adam
OPTIMISERS = [f"{part}.eps=0.001" for part in ("ten_step.sampler", "ten_step.value", "one_step.fake_score")]
NETWORKS = ["workers.precision=float32", "network.dropout=0.2"]
CONFIG = load(["preset=smoke", *NETWORKS, "one_step.generator.eps=0.001", *OPTIMISERS], PRESETS, "smoke")


class Pictures:
    def batches(self, seed, start_samples_seen, global_batch, rank, world_size, micro_batch):
        for position in count(start_samples_seen, global_batch):
            ids = rank_share(position, global_batch, rank, world_size, micro_batch)
            yield Batch(SampleRandom.at(seed + 7, ids).normal(3, 64, 64).tanh(), torch.tensor([i % 8 for i in ids]))


def ten_step(teacher):
    sampler = build.ten_step_sampler(CONFIG, teacher)
    return TenStepTask(sampler, build.value(CONFIG), CONFIG.ten_step, CONFIG.objective, 8)


def one_step(teacher):
    return OneStepTask(teacher, *(copy.deepcopy(teacher).requires_grad_(True) for _ in range(2)), CONFIG.one_step, 8)


def run(make, world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors after two iterations on so many ranks."""
    build.seed_networks(CONFIG, 1)
    teacher = build.denoiser(CONFIG)
    for parameter in teacher.parameters():  # the last layers start at 0, where half of the network gets no gradient
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    tasks = [make(copy.deepcopy(teacher)) for _ in range(world_size)]

    def work(runtime: ThreadRuntime) -> TrainState:
        training = Training(samples=16, batch=8, micro_batch=2)  # the critic averages over micro-batches
        return train(tasks[runtime.rank], Pictures(), training, 3, runtime, Silent(), Saver(folder / str(world_size)))

    states = on_ranks(world_size, work)
    return {name: tensor.clone() for name, tensor in states[0].tensors().items()}


@pytest.mark.parametrize("make", [ten_step, one_step])
def test_three_ranks_with_unequal_shares_reach_the_parameters_of_one(make, tmp_path):
    alone, together = run(make, 1, tmp_path), run(make, 3, tmp_path)  # 2, 2 and 4 samples
    assert alone.keys() == together.keys()
    networks = [name for name in alone if name.startswith(("network/", "task/"))]
    for name in networks:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_ranks_share_an_evaluation_and_all_know_its_figures(tmp_path):
    words = ["preset=smoke", "workers.precision=float32", f"run.dir={tmp_path}", "evaluation.batch=15"]
    config = load([*words, f"teacher.weights={tmp_path}/teacher.safetensors"], PRESETS, "smoke")
    save_weights(build.denoiser(config).state_dict(), tmp_path / "teacher.safetensors")

    def work(runtime: ThreadRuntime) -> dict:
        job = Job(config, tmp_path / str(runtime.world_size), "samplers", "untuned", runtime)
        return job.measure(draws.UNTRAINED["untuned"](job.teacher, config))["figures"]

    (alone,) = on_ranks(1, work)
    for together in on_ranks(2, work):
        for name, values in alone.items():
            assert together[name] == pytest.approx(values, rel=1e-3, abs=1e-3), name


def test_parts_are_disjoint_and_whole():
    for total, size in ((7, 3), (2, 4), (16, 4)):
        parts = [list(range(total))[rank_part(total, rank, size)] for rank in range(size)]
        assert sum(parts, []) == list(range(total))
