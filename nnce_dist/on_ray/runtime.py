"""The runtime of a Ray Train worker (see `training.runtime`)."""

import ray.train
import ray.train.torch
import torch.distributed
from torch import Tensor


class RayRuntime:
    """One rank of a worker group; Ray Train has set up the process group (gloo on CPUs, nccl on GPUs)."""

    def __init__(self):
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over ranks, in place."""
        torch.distributed.all_reduce(tensor)

    def barrier(self) -> None:
        """Returns when every rank has come here; fails after the process group's timeout."""
        torch.distributed.barrier()

    def stop_signal(self) -> int | None:
        """None: Ray ends workers outright, so what must survive is in a checkpoint."""
        return None
