"""ImageNet 64x64: a teacher, ten-step samplers over noise magnitudes, a one-step generator, their figures and a report.

python pipelines/imagenet64.py --dry-run
python pipelines/imagenet64.py
ray job submit --working-dir . -- python pipelines/imagenet64.py
"""

import sys

from nnce_dist.cli import run_pipeline

if __name__ == "__main__":
    sys.exit(run_pipeline(__file__, default_preset="laptop", description=__doc__.splitlines()[0]))
