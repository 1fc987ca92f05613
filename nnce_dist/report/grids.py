"""Samples side by side in one PNG."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.features import to_uint8

GAP = 2  # pixels between two images


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """Images (N, 3, H, W), in [-1, 1] or 8-bit, row by row in one 8-bit image (3, H', W'); gaps are grey."""
    images = to_uint8(images.detach().cpu())
    n, _, height, width = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 128, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Writes `grid` as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, columns).permute(1, 2, 0).numpy()).save(path, format="PNG", optimize=True)
