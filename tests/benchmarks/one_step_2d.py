"""Run: python tests/benchmarks/one_step_2d.py [--cases weak-ring ring checkerboard] [--seeds 3]

What the critic adds to score identity distillation on two-dimensional beds, from good teachers and from a weak one.
At r = 1 every weight in the critic's and the generator's gradient is M/(M+1), so cross-entropy otherwise also means
half the adversarial weight: a second row gives it twice the weight.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))

from beds import teacher
from distilling import ITERATIONS, SETTINGS, WEAK, distances, distil_on, one_step_samples, teacher_samples

CASES = {"weak-ring": ("ring", WEAK), "ring": ("ring", 8000), "checkerboard": ("checkerboard", 8000)}
CRITICS = {
    "none": {"critic": "none"},
    "bce": {"critic": "bce"},
    "bce, twice": {
        "critic": "bce",
        "critic_loss_scale": 2 * SETTINGS.critic_loss_scale,
        "adversarial_scale": 2 * SETTINGS.adversarial_scale,
    },
    "M = 50": {"critic_noise_magnitude": 50.0},
    "M = inf": {"critic_noise_magnitude": math.inf},
}


def measure(case: str, critic: str, seeds: int) -> str:
    """A row: mean and standard deviation over seeds of sliced W1, mean MMD^2, CPU seconds per run."""
    bed, iterations = CASES[case]
    trained = teacher(bed, iterations)
    start = time.process_time()
    runs = [distil_on(bed, trained, seed=seed, **CRITICS[critic]) for seed in range(seeds)]
    seconds = (time.process_time() - start) / seeds
    w1, mmd = zip(*(distances(bed, one_step_samples(run)) for run in runs), strict=True)
    spread = statistics.stdev(w1) if seeds > 1 else math.nan
    return f"{critic:<11} {statistics.mean(w1):.4f} +- {spread:.4f}   {statistics.mean(mmd):.2e}   {seconds:5.1f} s"


def main() -> None:
    """Prints one table per teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for case in chosen.cases:
        bed, iterations = CASES[case]
        trained = teacher(bed, iterations)
        steps, one = (distances(bed, sample(trained)) for sample in (teacher_samples, one_step_samples))
        print(f"\n{case}: teacher of {iterations} iterations; SW1 / MMD^2")
        print(f"50 Heun steps {steps[0]:.4f} / {steps[1]:.1e}, the same net in one step {one[0]:.4f} / {one[1]:.1e}")
        print(f"distilled in {ITERATIONS} iterations, seeds 0 to {chosen.seeds - 1}")
        print(f"{'critic':<11} {'SW1':<16}   MMD^2      CPU per run", flush=True)
        for critic in CRITICS:
            print(measure(case, critic, chosen.seeds), flush=True)


if __name__ == "__main__":
    main()
