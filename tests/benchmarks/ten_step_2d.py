"""Run: python tests/benchmarks/ten_step_2d.py [--beds ring checkerboard] [--seeds 3] [--gamma 1]

How the tuned ten-step sampler depends on the noise magnitude M, on two-dimensional beds. Beside the plain figures stand
those with gamma (M+1)/M held fixed: at r = 1 every weight in the energy's gradient is M/(M+1), so M = 1 otherwise also
means twice the regularisation.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))

from beds import teacher
from tuning import RECIPES, distances, samples, settings, tune, untuned

from nnce_dist.config.schema import Objective

MAGNITUDES = (1.0, 10.0, 100.0, 1000.0, math.inf)


def measure(bed: str, objective: Objective, seeds: range) -> str:
    """Mean and standard deviation over seeds of sliced W1, and the mean of MMD^2."""
    lr, iterations = RECIPES[bed]
    runs = [tune(bed, teacher(bed), settings(lr), objective, iterations, seed) for seed in seeds]
    w1, mmd = zip(*(distances(bed, samples(run)) for run in runs), strict=True)
    return f"{statistics.mean(w1):.4f} +- {statistics.stdev(w1):.4f}   {statistics.mean(mmd):.2e}"


def main() -> None:
    """Prints one table per bed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gamma", type=float, default=1.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for bed in chosen.beds:
        w1, mmd = distances(bed, samples(untuned(teacher(bed), settings(0))))
        print(f"\n{bed}: {chosen.seeds} seeds, {RECIPES[bed][1]} iterations, gamma {chosen.gamma:g}")
        print(f"untuned {w1:.4f}, {mmd:.2e}")
        print(f"{'M':>6}  {'SW1, plain gamma':<17}   {'MMD^2':<8}  {'SW1, gamma M/(M+1)':<18}  MMD^2")
        for m in MAGNITUDES:
            objectives = [
                Objective(noise_magnitude=m, ratio_regularisation=chosen.gamma, hold_regularisation=held)
                for held in (False, True)
            ]
            cells = [measure(bed, objective, range(chosen.seeds)) for objective in objectives]
            print(f"{m:>6g}  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
