"""Inception-v3 as in TensorFlow's `inception-2015-12-05`, the network behind published Frechet distances.

It differs from the Inception-v3 of other libraries in ways that change the distance (Heusel et al. 2017; the ports
pytorch-fid and torch-fidelity, whose tensor names are kept): average pools leave out the padding, the last block pools
by maximum, and there are 1008 classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A block is a table of branches; a branch is a chain of (channels, kernel), whose last step may be two side by side.
# Each branch of the two blocks that halve the resolution ends with a stride of 2.
Step = tuple[int, int | tuple[int, int]]
Branches = dict[str, list[Step | list[Step]]]


def _block_a(pool_channels: int) -> Branches:
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pool_channels, 1)],
    }


def _block_c(channels: int) -> Branches:
    row, column = (1, 7), (7, 1)
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(channels, 1), (channels, row), (192, column)],
        "branch7x7dbl": [(channels, 1), (channels, column), (channels, row), (channels, column), (192, row)],
        "branch_pool": [(192, 1)],
    }


_BLOCK_B: Branches = {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
_BLOCK_D: Branches = {
    "branch3x3": [(192, 1), (320, 3)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)],
}
_BLOCK_E: Branches = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), [(384, (1, 3)), (384, (3, 1))]],
    "branch3x3dbl": [(448, 1), (384, 3), [(384, (1, 3)), (384, (3, 1))]],
    "branch_pool": [(192, 1)],
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(c_in, c_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side on the same input, their outputs concatenated, the pooled one last.

    `pool` is "average" or "maximum" (3x3, stride 1, before `branch_pool`), or "halve": every branch ends with stride 2
    and the pooled branch is the maximum alone.
    """

    def __init__(self, c_in: int, branches: Branches, pool: str):
        super().__init__()
        self.pool = pool
        self.branches = {name: self._add_branch(name, c_in, steps) for name, steps in branches.items()}

    def _add_branch(self, branch: str, c_in: int, steps: list[Step | list[Step]]) -> list[list[str]]:
        """Registers a branch's convolutions under their published names; returns these, step by step."""
        names = []
        for number, step in enumerate(steps, 1):
            prefix = branch if len(steps) == 1 else f"{branch}_{number}"
            halves = self.pool == "halve" and number == len(steps)
            parts = {prefix: step} if isinstance(step, tuple) else {prefix + "a": step[0], prefix + "b": step[1]}
            for name, (c_out, kernel) in parts.items():
                self.add_module(name, ConvNorm(c_in, c_out, kernel, stride=2 if halves else 1, same=not halves))
            names.append(list(parts))
            c_in = c_out
        return names

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        outputs = []
        for prefix, steps in self.branches.items():
            parts = [self._pooled(x) if prefix == "branch_pool" else x]
            for names in steps:
                parts = [self.get_submodule(name)(parts[0]) for name in names]
            outputs += parts
        return torch.cat(outputs + [self._pooled(x)] if self.pool == "halve" else outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return F.max_pool2d(x, 3, stride=2) if self.pool == "halve" else F.max_pool2d(x, 3, stride=1, padding=1)


class InceptionV3(nn.Module):
    """The network from enlarged images to its 2048 pooled features; `fc`, the classifier, only completes the file."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, same=False)
        self.Mixed_5b = Block(192, _block_a(32), "average")
        self.Mixed_5c = Block(256, _block_a(64), "average")
        self.Mixed_5d = Block(288, _block_a(64), "average")
        self.Mixed_6a = Block(288, _BLOCK_B, "halve")
        self.Mixed_6b = Block(768, _block_c(128), "average")
        self.Mixed_6c = Block(768, _block_c(160), "average")
        self.Mixed_6d = Block(768, _block_c(160), "average")
        self.Mixed_6e = Block(768, _block_c(192), "average")
        self.Mixed_7a = Block(768, _BLOCK_D, "halve")
        self.Mixed_7b = Block(1280, _BLOCK_E, "average")
        self.Mixed_7c = Block(2048, _BLOCK_E, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, 3, 299, 299) in about [-1, 1]."""
        for name, layer in self.named_children():
            if name == "fc":
                break
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, stride=2)
        return x.mean((2, 3))
