"""Density ratios with known truth: a small sweep over the noise magnitude M on Gaussians, or on vectors of your own.

python pipelines/density_ratio.py
python pipelines/density_ratio.py density_ratio.family=mixture density_ratio.network=mlp density_ratio.kl=2
python pipelines/density_ratio.py run.name=mine density_ratio.vectors=pairs.npz density_ratio.network=mlp
"""

import sys

from nnce_dist.cli import run_pipeline

if __name__ == "__main__":
    sys.exit(run_pipeline(__file__, default_preset="density-ratio", description=__doc__.splitlines()[0]))
