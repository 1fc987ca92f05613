"""N2CE makes a training step no dearer than cross-entropy does.

Run: python -m pytest tests/benchmarks/test_loss_cost.py
"""

import loss_cost
import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize("noise_magnitude", [1.0, 100.0])
def test_a_step_costs_the_same(noise_magnitude):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step, loss = loss_cost.measure(40, noise_magnitude)
    finally:
        torch.set_num_threads(threads)
    assert step.ratio < 1.05 + 3 * step.standard_error  # of whole steps, which a busy machine disturbs
    assert loss.n2ce - loss.cross_entropy < 0.01 * step.cross_entropy  # the same within 1 %, from what differs alone
