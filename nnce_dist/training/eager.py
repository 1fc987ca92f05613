"""torch's optimisers without torch's compiler, which nothing here uses."""

import inspect

import torch
from torch.optim import Optimizer

_GUARDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """The same optimiser, for steps that are not compiled and not differentiated.

    torch wraps these methods against its compiler, and imports the compiler to do so: more than a second in every
    process that trains, and a folder `torchinductor_<user>` left where temporary files are.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _GUARDED}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})
