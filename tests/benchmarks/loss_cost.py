"""What a training step with N2CE costs beside one with binary cross-entropy.

Run: python tests/benchmarks/loss_cost.py [--repeats N] [--batch B] [--device cuda]

A step is forward, backward and Adam on a small convolutional critic over 32x32 images. The two losses take turns, in
random order within each pair, so that both meet the same disturbances; what counts is the median over pairs of the
ratio of their times, with the middle half of the ratios and the standard error of the median beside it. On a CPU the
time is the process's own, which other work on the machine disturbs least; with CUDA it is the wall's.
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnce_dist.ratio.objectives import n2ce


@dataclass(frozen=True)
class Cost:
    """Times in seconds of what N2CE and cross-entropy do in turn, and their ratio within pairs."""

    n2ce: float  # median
    cross_entropy: float  # median
    ratio: float  # median
    quartiles: tuple[float, float]  # of the ratio
    standard_error: float  # of the ratio's median


def critic() -> nn.Module:
    """(B, 3, 32, 32) -> (B, 1)."""
    widths, layers = (3, 32, 64, 128), []
    for c_in, c_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 1))


def cross_entropy(f_data: Tensor, f_noise: Tensor) -> tuple[Tensor, Tensor]:
    """What N2CE replaces."""
    bce = F.binary_cross_entropy_with_logits
    loss_data = bce(f_data, torch.ones_like(f_data), reduction="none")
    return loss_data, bce(f_noise, torch.zeros_like(f_noise), reduction="none")


class Trainer:
    """One loss with its own critic and optimiser, so that two share nothing."""

    def __init__(self, objective, batch: int, device: str):
        torch.manual_seed(0)
        self.objective = objective
        self.net = critic().to(device)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=1e-4)
        self.images = torch.randn(2 * batch, 3, 32, 32, device=device)
        self.logits = torch.randn(2 * batch, 1, device=device, requires_grad=True)

    def step(self) -> None:
        """A training step."""
        self.optimiser.zero_grad()
        self._backward(self.net(self.images))
        self.optimiser.step()

    def loss(self) -> None:
        """The part of the step in which the losses differ."""
        self._backward(self.logits)

    def _backward(self, logits: Tensor) -> None:
        loss_data, loss_noise = self.objective(*logits.chunk(2))
        (loss_data.mean() + loss_noise.mean()).backward()


def seconds(work, device: str) -> float:
    """How long a call takes."""
    cuda = torch.device(device).type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def compare(ours, theirs, repeats: int, device: str) -> Cost:
    """Both calls in turn, so many times."""
    order, pairs = random.Random(0), []
    for i in range(10 + repeats):
        turn = (ours, theirs) if order.random() < 0.5 else (theirs, ours)
        times = {work: seconds(work, device) for work in turn}
        if i >= 10:  # the first ones allocate
            pairs.append((times[ours], times[theirs]))
    ratios = [a / b for a, b in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    deviation = (
        high - low
    ) / 1.349  # of a normal distribution with these quartiles; its median's error is 1.2533 of that
    return Cost(
        n2ce=statistics.median(a for a, _ in pairs),
        cross_entropy=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        quartiles=(low, high),
        standard_error=1.2533 * deviation / math.sqrt(repeats),
    )


def measure(repeats: int, noise_magnitude: float, batch: int = 64, device: str = "cpu") -> tuple[Cost, Cost]:
    """The cost of whole steps, and of the losses alone."""
    ours = Trainer(lambda data, noise: n2ce(data, noise, noise_magnitude), batch, device)
    theirs = Trainer(cross_entropy, batch, device)
    return (
        compare(ours.step, theirs.step, repeats, device),
        compare(ours.loss, theirs.loss, repeats, device),
    )


def main() -> None:
    """Prints the cost for NCE, a usual M and NWJ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for magnitude in (1.0, 100.0, math.inf):
        step, loss = measure(options.repeats, magnitude, options.batch, options.device)
        extra = loss.n2ce - loss.cross_entropy
        print(
            f"M={magnitude:<4g} step {1e3 * step.n2ce:.2f} ms, with cross-entropy {1e3 * step.cross_entropy:.2f} ms: "
            f"ratio {step.ratio:.4f} +- {step.standard_error:.4f} (middle half {step.quartiles[0]:.3f} to "
            f"{step.quartiles[1]:.3f}, {options.repeats} pairs); losses alone {1e6 * loss.n2ce:.0f} and "
            f"{1e6 * loss.cross_entropy:.0f} us: {100 * extra / step.cross_entropy:+.2f} % of the step",
            flush=True,
        )


if __name__ == "__main__":
    main()
