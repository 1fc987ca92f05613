"""Using one network inside another's loss."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode and without gradients for its own parameters; gradients still reach its inputs.

    What is computed inside keeps no activations for weight gradients. Both settings are put back on leaving.
    """
    training = network.training
    trainable = [p for p in network.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield network.eval()
    finally:
        network.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
