"""The energy and value network V of DxMI: a residual convolutional network without norms, one number per image.

The same V(x) is the value at every step and the energy E = -ln r at the end, so it also sees pure noise at
the largest sigma: `squash` folds such inputs into a small range. What sets a sampler's images apart from the data is
mostly fine detail of either sign, which a nearly linear network averages away: `contrast` shows V its size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.2  # of the leaky ReLUs


def squashed(x: Tensor) -> Tensor:
    """(2x/(1+|x|), ln(1+|x|)) side by side, (B, 2C, H, W): sign and size of x, the first within 2, the second a few."""
    size = x.abs()
    return torch.cat([2 * x / (1 + size), torch.log1p(size)], 1)


def local_contrast(x: Tensor) -> Tensor:
    """ln(1 + 10 |x - its 3x3 mean|), (B, C, H, W): the size of fine detail, whatever its sign."""
    smooth = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return torch.log1p(10 * (x - smooth).abs())


class ValueBlock(nn.Module):
    """Two convolutions and a skip; 2x2 average pooling at the end where the block halves the size."""

    def __init__(self, num_in: int, num_out: int, halve: bool, num_classes: int):
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.affine = nn.Linear(num_classes, 2 * num_out, bias=False) if num_classes else None
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.skip = nn.Conv2d(num_in, num_out, 1, bias=False) if halve or num_in != num_out else nn.Identity()
        if self.affine is not None:
            nn.init.zeros_(self.affine.weight)  # the classes start equal

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x (B, num_in, H, W), one-hot labels (B, num_classes) -> (B, num_out, H, W), or half the size."""
        h = self.conv1(x)
        if self.affine is not None and labels is not None:
            scale, shift = self.affine(labels)[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        h = self.conv2(F.leaky_relu(h, _SLOPE)) + self.skip(x)
        return F.leaky_relu(F.avg_pool2d(h, 2) if self.halve else h, _SLOPE)


class ValueNet(nn.Module):
    """V(x): a convolution, six blocks of `width` and twice `width` channels, the sum over positions, a linear head.

    The defaults are the paper's network (5,134,595 parameters at 3 channels). `patch_size` folds patches into channels
    first, which makes small machines fast; `squash` replaces the image by `squashed`, `contrast` adds `local_contrast`;
    `num_classes` lets every block scale and shift by the class.
    """

    def __init__(
        self,
        num_channels: int = 3,
        width: int = 128,
        patch_size: int = 1,
        squash: bool = False,
        contrast: bool = False,
        num_classes: int = 0,
    ):
        super().__init__()
        self.patch_size, self.squash, self.contrast = patch_size, squash, contrast
        self.conv_in = nn.Conv2d(num_channels * (1 + squash + contrast) * patch_size**2, width, 3, padding=1)
        widths = [width, width, width, 2 * width, 2 * width, 2 * width, 2 * width]
        self.blocks = nn.ModuleList(
            ValueBlock(num_in, num_out, i % 2 == 0, num_classes)
            for i, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(2 * width, 1)
        self.scale = nn.Linear(1, 1)
        nn.init.ones_(self.scale.weight)  # neither sign nor size of V are left to chance
        nn.init.zeros_(self.scale.bias)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The last block's output (B, 2 width, h, w)."""
        parts = [squashed(x) if self.squash else x] + ([local_contrast(x)] if self.contrast else [])
        x = torch.cat(parts, 1)
        h = F.pixel_unshuffle(x, self.patch_size).to(memory_format=torch.channels_last)
        h = F.leaky_relu(self.conv_in(h), _SLOPE)
        for block in self.blocks:
            h = block(h, labels)
        return h

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """V (B,) of images x (B, C, H, W), in float32 also under autocast; labels one-hot (B, num_classes) or None."""
        summed = F.relu(self.features(x, labels)).float().sum((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            return self.scale(self.head(summed)).squeeze(1)
