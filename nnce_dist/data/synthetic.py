"""The project's own pictures: one plain or striped shape on a tinted ground, with every factor known.

Eight classes: 4 shapes x 2 textures. Place, size and colours are drawn per picture from (seed, index), so any picture
can be made alone and two machines make the same ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .images import encode_png
from .source import Sample, Source, labelled

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("plain", "striped")
CLASS_NAMES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)
STRIPE_PERIOD = 8  # pixels of a 64-pixel picture
_CHUNK = 256  # pictures drawn at a time
FACTORS = ("x", "y", "radius", "hue", "ground_hue", "ground_value")


def factors(indices: range, seed: int) -> np.ndarray:
    """Known factors (N, 6), columns `FACTORS`, each uniform in [0, 1)."""
    return np.stack([np.random.default_rng((seed, index)).random(len(FACTORS)) for index in indices])


def labels(indices: range) -> np.ndarray:
    """Classes (N,) int64: round robin, so every class is equally frequent."""
    return np.asarray(indices, dtype=np.int64) % len(CLASS_NAMES)


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Colours (N, 3) in [0, 1] from hue, saturation, value (N,) in [0, 1]."""
    h = 6 * hue
    ramp = np.clip(np.stack([np.abs(h - 3) - 1, 2 - np.abs(h - 2), 2 - np.abs(h - 4)], 1), 0, 1)
    return value[:, None] * (1 - saturation[:, None] * (1 - ramp))


def signed_distance(shape: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Approximate distance to the outline of SHAPES[shape], negative inside, for offsets x, y from its centre."""
    if shape == 0:
        return np.hypot(x, y) - radius
    if shape == 1:
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == 2:  # upright, corners on the circle of 1.2 radii
        return np.maximum(y - 0.75 * radius, np.abs(x) * 0.894 - (y + 1.15 * radius) * 0.447)
    arm = 0.34 * radius
    bar = np.maximum(np.abs(x) - 1.08 * radius, np.abs(y) - arm)
    return np.minimum(bar, np.maximum(np.abs(y) - 1.08 * radius, np.abs(x) - arm))


def _coverage(classes: np.ndarray, f: dict[str, np.ndarray], grid_x: np.ndarray, grid_y: np.ndarray) -> np.ndarray:
    """How much of each pixel the shape covers (N, H, W); edges one 64th of the picture wide are smooth."""
    radius = (11 + 7 * f["radius"])[:, None, None]
    x = grid_x - (22 + 20 * f["x"])[:, None, None]
    y = grid_y - (22 + 20 * f["y"])[:, None, None]
    distance = np.stack([signed_distance(c % len(SHAPES), *at) for c, *at in zip(classes, x, y, radius, strict=True)])
    return np.clip(0.5 - distance, 0, 1)


def make(indices: range, seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, size, size, 3) uint8 and their classes (N,) int64."""
    f = dict(zip(FACTORS, factors(indices, seed).T, strict=True))
    classes = labels(indices)
    pixel = (np.arange(size) + 0.5) * 64 / size  # all lengths are in pixels of a 64-pixel picture
    grid_y, grid_x = np.meshgrid(pixel, pixel, indexing="ij")
    ones = np.ones(len(classes))
    colour = hsv_to_rgb(f["hue"], 0.85 * ones, 0.95 * ones)
    ground = hsv_to_rgb(f["ground_hue"], 0.35 * ones, 0.15 + 0.35 * f["ground_value"])
    stripe = (grid_y // (STRIPE_PERIOD / 2)) % 2  # 0 or 1 in absolute rows
    striped = (classes >= len(SHAPES))[:, None, None]
    shade = 1 - 0.65 * np.where(striped, stripe, 0)
    cover = _coverage(classes, f, grid_x, grid_y)[..., None]
    picture = cover * shade[..., None] * colour[:, None, None] + (1 - cover) * ground[:, None, None]
    return (255 * picture + 0.5).astype(np.uint8), classes


@dataclass(frozen=True)
class _Pictures:
    indices: range
    seed: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "_Pictures":
        return _Pictures(self.indices[part], self.seed)

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self.indices), _CHUNK):
            chunk = self.indices[start : start + _CHUNK]
            for index, picture, label in zip(chunk, *make(chunk, self.seed), strict=True):
                yield labelled(f"made picture {index}", encode_png(picture), label)


def source(indices: range, seed: int) -> Source:
    """The pictures with these numbers, to be packed."""
    identity = f"made pictures {indices.start}..{indices.stop - 1}, seed {seed}"
    return Source(_Pictures(indices, seed), identity, len(CLASS_NAMES), CLASS_NAMES)
