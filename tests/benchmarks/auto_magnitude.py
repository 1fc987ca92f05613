"""Run: python tests/benchmarks/auto_magnitude.py [--half confirm] [--match TEXT]

The error of M=auto (ratio/auto_magnitude.py) against a full sweep of fixed M, cell by cell, on the bed of ratio_bed.py:
the median over four seeds of the RMS of f - ln r on data. `design` cells served to make the rule; `confirm` cells
were first run with the rule that resulted. `swept` is what a full sweep comes to where nobody knows the truth: of the
fixed M, per seed, the one with the lowest cross-entropy on held-out pairs.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from ratio_bed import SEEDS, Cell, cells, loss_gradient, train
from torch import Tensor

from nnce_dist.ratio import auto_magnitude as auto

MAGNITUDES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, math.inf)


def columns(num_parameters: int, num_samples: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The fixed magnitudes, and M=auto as the last column."""
    fixed, known = torch.tensor(MAGNITUDES).log(), auto.evidence(num_parameters, num_samples)
    state = auto.AutoState.start(SEEDS)

    def gradient(f_data: Tensor, f_noise: Tensor) -> Tensor:
        nonlocal state
        log_m = auto.log_magnitude(state)
        seen = auto.observe(state, f_data[:, -1], f_noise[:, -1])
        state = auto.advance(state, {name: values.mean(-1) for name, values in seen.items()}, known)
        return loss_gradient(f_data, f_noise, torch.cat([fixed.expand(len(log_m), -1), log_m[:, None]], 1))

    return gradient


def measure(cell: Cell) -> Tensor:
    """The median error of each column, and as the last of what was `swept`; a diverged run counts as infinite."""
    errors, losses = (values.nan_to_num(math.inf) for values in train(cell, columns, len(MAGNITUDES) + 1))
    swept = errors.gather(1, losses[:, :-1].argmin(1, keepdim=True))
    errors = torch.cat([errors, swept], 1)
    return errors.quantile(0.5, 0).nan_to_num(math.inf)  # between two infinite ones it is no number


def summary(errors: Tensor, column: int, name: str) -> str:
    """How a column compares with the best fixed M of every cell, and with M = 1."""
    fixed, one = errors[:, : len(MAGNITUDES)], errors[:, column]
    to_best, to_one = one / fixed.amin(1), one / fixed[:, 0]
    parts = [
        f"{name} to {what}: geometric mean {ratio.log().mean().exp():.2f}, at most 1.1 in "
        f"{(ratio <= 1.1).double().mean():.0%}, worst {ratio.max():.2f}"
        for what, ratio in (("the best fixed M", to_best), ("M = 1", to_one))
    ]
    return "\n".join(parts)


def main() -> None:
    """Prints a line per cell, then the summary; cells on which every M diverges are named and left out of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", default="confirm", choices=["design", "confirm"])
    parser.add_argument("--match", default="", help="only cells whose name has this text")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.process_time(), []
    print(f"{'cell':<52} " + " ".join(f"{m:>7g}" for m in MAGNITUDES) + "    auto   swept")
    for cell in cells(chosen.half):
        if chosen.match in str(cell):
            errors = measure(cell)
            print(f"{cell!s:<52} " + " ".join(f"{error:7.3g}" for error in errors.tolist()), flush=True)
            rows.append(errors)
    usable = [errors for errors in rows if errors[: len(MAGNITUDES)].isfinite().any()]
    print(f"\n{len(usable)} cells, {len(rows) - len(usable)} left out, {time.process_time() - start:.0f} s of CPU")
    for column, name in ((-2, "auto"), (-1, "swept")):
        print(summary(torch.stack(usable), column, name))


if __name__ == "__main__":
    main()
