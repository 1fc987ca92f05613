"""Cells of the test bed for M=auto: known ratios, small critics, and a trainer that steps columns of M side by side.

A cell is a pair of distributions, a critic, a number of samples and an optimiser. Every column of a cell sees the same
batches and starts from the same weights, so that columns differ in M alone. The rule was made on `DESIGN` and is held
against `CONFIRM`, which shares no cell with it: other dimensions, divergences, numbers of samples, rates and lengths.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnce_dist.ratio.closed_form import (
    Gaussian,
    GaussianMixture,
    correlated_pairs,
    correlation_of,
    kl_divergence,
    log_ratio,
)
from nnce_dist.ratio.objectives import nce

SEEDS, TEST_SAMPLES, WIDTH = 4, 2000, 64
LARGEST_EXPONENT = 64.0  # as in objectives.py


@dataclass(frozen=True)
class Cell:
    """`size` is the KL divergence in nats; for `mixture`, the distance of the modes from 0."""

    family: str
    dim: int
    size: float
    critic: str
    num_samples: int | None  # pairs; None: fresh ones every step
    optimiser: str
    lr: float
    steps: int

    def __str__(self) -> str:
        samples = self.num_samples or "fresh"
        problem = f"{self.family}-d{self.dim}-kl{self.size:g}-{self.critic}"
        return f"{problem}-n{samples}-{self.optimiser}{self.lr:g}-{self.steps}"

    @property
    def digest(self) -> bytes:
        """Fixes the seed."""
        return hashlib.sha256(str(self).encode()).digest()

    @property
    def batch(self) -> int:
        """Pairs per step."""
        return 128 if self.critic == "mlp" else 256


# family, dimensions, sizes, critic, numbers of samples, optimisers (kind, lr, steps)
ALL, ENDS, LARGE = (500, 5000, None), (500, None), (5000, None)
DESIGN = [
    ("shift", (1, 5, 20), (0.5, 2, 8, 20), "linear", ALL, [("adam", 0.05, 800)]),
    ("shift", (1, 20), (0.5, 2, 8, 20), "linear", ENDS, [("sgd", 0.1, 800)]),
    ("shift", (80,), (2, 10, 40), "linear", ALL, [("adam", 0.05, 800)]),
    ("shift", (5,), (2, 8), "linear", ALL, [("adam", 0.05, 4000), ("adam", 0.2, 800), ("sgd", 0.1, 4000)]),
    ("pairs", (2, 20), (0.5, 2, 8), "quadratic", ALL, [("adam", 0.02, 800)]),
    ("pairs", (40,), (10,), "quadratic", ALL, [("adam", 0.01, 800)]),
    ("pairs", (20,), (2, 8), "quadratic", ENDS, [("sgd", 0.02, 800)]),
    ("pairs", (40,), (10,), "paired", ALL, [("adam", 0.02, 800), ("adam", 0.02, 3000)]),
    ("pairs", (80,), (20,), "paired", ALL, [("adam", 0.02, 800)]),
    ("pairs", (160,), (40,), "paired", LARGE, [("adam", 0.02, 800)]),
    ("pairs", (320,), (80,), "paired", LARGE, [("adam", 0.02, 800)]),
    ("pairs", (80,), (20,), "paired", ENDS, [("sgd", 0.02, 800)]),
    ("scale", (1, 5, 20), (0.5, 2, 8), "quadratic", ENDS, [("adam", 0.02, 800)]),
    ("general", (2, 10), (1, 4, 12), "quadratic", ALL, [("adam", 0.02, 800)]),
    ("general", (10,), (4, 12), "quadratic", ENDS, [("sgd", 0.02, 800)]),
    ("shift", (2, 20), (2, 8, 20), "mlp", ALL, [("adam", 0.003, 500)]),
    ("pairs", (2, 10), (2, 8), "mlp", ALL, [("adam", 0.003, 500)]),
    ("mixture", (2, 10), (1.5, 4), "mlp", ALL, [("adam", 0.003, 500)]),
    ("nested", (2, 5), (2, 8), "mlp", ALL, [("adam", 0.003, 500)]),
    ("shift", (2, 20), (2, 8), "mlp", ENDS, [("sgd", 0.1, 800)]),
    ("mixture", (2,), (1.5, 4), "mlp", ENDS, [("sgd", 0.1, 800)]),
    ("mixture", (2,), (1.5,), "quadratic", ALL, [("adam", 0.02, 800)]),
]

OTHER, OTHER_ENDS, OTHER_LARGE = (1000, 20000, None), (1000, None), (20000, None)
CONFIRM = [
    ("shift", (3, 10, 40), (1, 5, 12), "linear", OTHER, [("adam", 0.03, 1000)]),
    ("shift", (3, 40), (30,), "linear", OTHER, [("adam", 0.03, 1000)]),
    ("shift", (10,), (1, 5), "linear", OTHER_ENDS, [("sgd", 0.05, 1000), ("adam", 0.1, 3000)]),
    ("pairs", (4, 12), (1, 4), "quadratic", OTHER, [("adam", 0.015, 1000)]),
    ("pairs", (12,), (4,), "quadratic", OTHER_ENDS, [("sgd", 0.03, 1000)]),
    ("pairs", (60,), (6, 15), "paired", OTHER, [("adam", 0.015, 1000)]),
    ("pairs", (240,), (60,), "paired", OTHER_LARGE, [("adam", 0.015, 1000)]),
    ("scale", (2, 10), (1, 4), "quadratic", OTHER_ENDS, [("adam", 0.015, 1000)]),
    ("general", (3, 6), (2, 7), "quadratic", OTHER, [("adam", 0.015, 1000)]),
    ("general", (6,), (2, 7), "quadratic", OTHER_ENDS, [("sgd", 0.03, 1000)]),
    ("shift", (3, 10), (1, 5, 12), "mlp", OTHER, [("adam", 0.002, 700)]),
    ("pairs", (4,), (1, 5), "mlp", OTHER, [("adam", 0.002, 700)]),
    ("mixture", (3,), (2, 3), "mlp", OTHER, [("adam", 0.002, 700)]),
    ("nested", (3,), (1, 5), "mlp", OTHER, [("adam", 0.002, 700)]),
    ("shift", (3,), (1, 5), "mlp", OTHER_ENDS, [("sgd", 0.05, 1000)]),
]
HALVES = {"design": DESIGN, "confirm": CONFIRM}


def cells(half: str) -> Iterator[Cell]:
    """All of `design`, or of `confirm`."""
    for family, dims, sizes, critic, numbers, optimisers in HALVES[half]:
        for dim in dims:
            for size in sizes:
                for number in numbers:
                    for optimiser in optimisers:
                        yield Cell(family, dim, size, critic, number, *optimiser)


def pair(family: str, dim: int, size: float) -> tuple[GaussianMixture, Gaussian]:
    """Data and noise, float64. Noise is N(0, I), but for `mixture`, where it has the data's mean and covariance."""
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    noise, generator = Gaussian(zero, eye), torch.Generator().manual_seed(dim)
    if family == "shift":
        return Gaussian(zero + math.sqrt(2 * size / dim), eye), noise
    if family == "pairs":
        return correlated_pairs(dim // 2, correlation_of(size, dim // 2)), noise
    if family == "scale":
        log_scale = _solve(lambda a: dim / 2 * (math.exp(-2 * a) - 1 + 2 * a), size)
        return Gaussian(zero, eye * math.exp(-2 * log_scale)), noise
    if family == "general":
        made = _general(dim, generator)
        return made(_solve(lambda a: kl_divergence(made(a), noise), size, 10)), noise
    if family == "mixture":
        means = torch.randn(4, dim, generator=generator, dtype=torch.float64)
        means = means / means.norm(dim=1, keepdim=True) * size
        means = means - means.mean(0)
        data = GaussianMixture(torch.full((4,), 0.25).double(), means, (eye / 4).expand(4, dim, dim))
        return data, Gaussian(zero, means.T @ means / 4 + eye / 4)
    # nested: two narrow modes inside the noise; the KL divergence is close to `size`
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[:, 0] = torch.tensor([1.0, -1.0])
    log_scale = size / dim + 0.5
    covariances = (eye * math.exp(-2 * log_scale)).expand(2, dim, dim)
    return GaussianMixture(torch.tensor([0.7, 0.3]).double(), means, covariances), noise


def _general(dim: int, generator: torch.Generator) -> Callable[[float], Gaussian]:
    """A mean and covariance in random directions, as a function of how far they are from N(0, I)."""
    mean = 2 * torch.randn(dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    log_variance = torch.randn(dim, generator=generator, dtype=torch.float64).clamp(-2, 0.7)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return lambda a: Gaussian(a * mean, (basis * (a * log_variance).exp()) @ basis.T)


def _solve(increasing: Callable[[float], float], target: float, high: float = 20.0) -> float:
    """Bisection on [0, high]."""
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < target else (low, middle)
    return (low + high) / 2


def draws(mixture: GaussianMixture, generator: torch.Generator) -> Callable[..., Tensor]:
    """A sampler (*shape) -> (*shape, D) in float32; `GaussianMixture.sample` would copy a D x D matrix per draw."""
    means, factors = mixture.means.float(), torch.linalg.cholesky(mixture.covariances.double()).float()

    def draw(*shape: int) -> Tensor:
        normal = torch.randn(*shape, means.shape[1], generator=generator)
        if len(means) == 1:
            return normal @ factors[0].T + means[0]
        component = torch.multinomial(mixture.weights, math.prod(shape), True, generator=generator).view(shape)
        chosen = (component[..., None] == torch.arange(len(means))).unsqueeze(-1)
        return means[component] + sum(chosen[..., k, :] * (normal @ factor.T) for k, factor in enumerate(factors))

    return draw


def features(critic: str, x: Tensor) -> Tensor:
    """What the critic is linear in: (..., D) -> (..., P); an `mlp` gets x itself."""
    one = torch.ones_like(x[..., :1])
    if critic == "linear":
        return torch.cat([x, one], -1)
    if critic == "paired":  # the quadratic that knows who is whose partner
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat([a * b, a * a, b * b, one], -1)
    if critic == "quadratic":
        i, j = torch.triu_indices(x.shape[-1], x.shape[-1])
        return torch.cat([x[..., i] * x[..., j], x, one], -1)
    return x


class Critics:
    """(S seeds, R columns) critics side by side; the columns of a seed start alike."""

    def __init__(self, cell: Cell, columns: int, generator: torch.Generator):
        self.mlp = cell.critic == "mlp"
        sizes = [features(cell.critic, torch.zeros(cell.dim)).numel()] + [WIDTH, WIDTH] * self.mlp
        self.parameters = [torch.zeros(SEEDS, columns, sizes[0])]
        if self.mlp:
            self.parameters = []
            for wide, out in zip(sizes, [WIDTH, WIDTH, 1], strict=True):
                weight = torch.randn(SEEDS, 1, wide, out, generator=generator) / math.sqrt(wide)
                self.parameters += [weight.repeat(1, columns, 1, 1), torch.zeros(SEEDS, columns, 1, out)]
        for parameter in self.parameters:
            parameter.requires_grad_(self.mlp)
        self.size = sum(parameter[0, 0].numel() for parameter in self.parameters)

    def __call__(self, phi: Tensor) -> Tensor:
        """f: (S, B, P) -> (S, R, B)."""
        if not self.mlp:
            return self.parameters[0] @ phi.transpose(1, 2)
        *hidden, last = zip(self.parameters[::2], self.parameters[1::2], strict=True)
        h = phi.unsqueeze(1)
        for weight, bias in hidden:
            h = torch.nn.functional.silu(h @ weight + bias)
        return (h @ last[0] + last[1]).squeeze(-1)

    def set_gradients(self, f: Tensor, phi: Tensor, by_log_ratio: Tensor) -> None:
        """The chain rule from dL/df (S, R, B) to the parameters' `.grad`."""
        chained = torch.autograd.grad(f, self.parameters, by_log_ratio) if self.mlp else [by_log_ratio @ phi]
        for parameter, gradient in zip(self.parameters, chained, strict=True):
            parameter.grad = gradient


def loss_gradient(f_data: Tensor, f_noise: Tensor, log_magnitude: Tensor) -> Tensor:
    """dL/df of `objectives.n2ce`, times the batch: -w+ on data, w- on noise, along the last dimension; M may be inf."""
    log_m = log_magnitude.unsqueeze(-1)
    f_noise = f_noise.clamp(max=LARGEST_EXPONENT)
    weight_noise = (f_noise - torch.nn.functional.softplus(f_noise - log_m)).exp()
    return torch.cat([-torch.sigmoid(log_m - f_data), weight_noise], -1)


class Batches:
    """The cell's data, features made: test points with their true log-ratios, and one batch after the other."""

    def __init__(self, cell: Cell, generator: torch.Generator):
        self.cell, self.generator = cell, generator
        data, noise = pair(cell.family, cell.dim, cell.size)
        self.sides = draws(data, generator), draws(noise, generator)
        test = self.sides[0](TEST_SAMPLES)
        self.truth = log_ratio(data, noise)(test.double()).float()
        self.test = features(cell.critic, test).expand(SEEDS, -1, -1)
        others = torch.Generator().manual_seed(int.from_bytes(cell.digest[4:8]))
        held_out = torch.cat([draws(side, others)(TEST_SAMPLES) for side in (data, noise)])
        self.held_out = features(cell.critic, held_out).expand(SEEDS, -1, -1)

    def hold(self) -> None:
        """Draws the samples that a finite cell repeats."""
        if self.cell.num_samples:
            self.held = [features(self.cell.critic, draw(SEEDS, self.cell.num_samples)) for draw in self.sides]

    def next(self) -> Tensor:
        """(S, 2B, P): B samples of data, then B of noise."""
        cell, b = self.cell, self.cell.batch
        if not cell.num_samples:
            return torch.cat([features(cell.critic, draw(SEEDS, b)) for draw in self.sides], 1)
        chosen = torch.randint(cell.num_samples, (2, SEEDS, b), generator=self.generator)
        seeds = torch.arange(SEEDS)[:, None]
        return torch.cat([held[seeds, index] for held, index in zip(self.held, chosen, strict=True)], 1)


def train(
    cell: Cell, make_columns: Callable[[int, float], Callable[[Tensor, Tensor], Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """RMS of f - ln r on data after training, and what is known without the truth: the cross-entropy of held-out pairs.

    Both are (S, R = count).

    `make_columns(parameters, samples)` gives the function from a batch's f on data and noise, (S, R, B) each, to dL/df.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(cell.digest[:4]))
    batches = Batches(cell, generator)
    critics = Critics(cell, count, generator)
    batches.hold()
    gradient = make_columns(critics.size, cell.num_samples or math.inf)
    kind = torch.optim.Adam if cell.optimiser == "adam" else torch.optim.SGD
    optimiser = kind(critics.parameters, lr=cell.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cell.steps)
    for _ in range(cell.steps):
        phi = batches.next()
        f = critics(phi)
        seen = f.detach()
        critics.set_gradients(f, phi, gradient(seen[..., : cell.batch], seen[..., cell.batch :]) / cell.batch)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        error = (critics(batches.test) - batches.truth).square().mean(-1).sqrt()
        loss_data, loss_noise = nce(*critics(batches.held_out).split(TEST_SAMPLES, -1))
    return error, (loss_data + loss_noise).mean(-1)
