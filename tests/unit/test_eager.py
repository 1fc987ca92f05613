"""python -m pytest tests/unit/test_eager.py

Optimisers that leave torch's compiler alone move networks as torch's own do.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nnce_dist.training.eager import eager

STEP = """
import sys, torch
from nnce_dist.training.eager import eager

weight = torch.nn.Parameter(torch.ones(3))
for kind in (torch.optim.Adam, torch.optim.RAdam):
    optimiser = eager(kind)([weight])
    weight.square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    optimiser.load_state_dict(optimiser.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""


def trained(kind, steps, network, optimiser_state=None):
    """A copy of the network after some steps, and the optimiser's state."""
    network = copy.deepcopy(network)
    optimiser = kind(network.parameters(), lr=0.01)
    if optimiser_state:
        optimiser.load_state_dict(optimiser_state)
    for step in range(steps):
        optimiser.zero_grad()
        network(torch.full((2, 3), float(step + 1))).square().sum().backward()
        optimiser.step()
    return network, optimiser.state_dict()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RAdam])
def test_steps_and_states_are_those_of_torch(kind):
    """Bit for bit, also from a state that the other one has left; a step is no part of any gradient's history."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    expected, state = trained(kind, 7, start)
    found, ours = trained(eager(kind), 7, start)
    expected_later, _ = trained(kind, 3, expected, ours)
    found_later, _ = trained(eager(kind), 3, found, state)
    for one, other in ((expected, found), (expected_later, found_later)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b) and b.is_leaf
    assert state["param_groups"] == ours["param_groups"]
    assert not torch.equal(expected[0].weight, start[0].weight)


def test_no_step_imports_the_compiler(tmp_path):
    """Which takes a second, and leaves a folder beside the temporary files."""
    done = subprocess.run([sys.executable, "-c", STEP], env=os.environ | {"TMPDIR": str(tmp_path)}, timeout=300)
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())
