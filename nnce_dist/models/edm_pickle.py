"""Reads the weights out of NVIDIA's `edm-*.pkl` without running anything that the file brings.

Such a pickle carries the source code of its classes, and loading it the usual way executes that source. Here every
global that the pickle names is looked up in a short list of stand-ins from this file; any other name is refused.
"""

import io
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Record:
    """Stands in for an object of any class: unpickling fills its attributes."""


def _persistent_object(meta: dict) -> _Record:
    """The attributes of an object whose class came as source code; the source is dropped unread."""
    record = _Record()
    vars(record).update(meta["state"])
    record.class_name = meta["class_name"]
    return record


class _Dtype:
    """Stands in for numpy.dtype: the code and the byte order of a plain number."""

    def __init__(self, code: str, *_: object):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    """A numpy number as Python's own."""
    if not re.fullmatch(r"[fiu][248]|[iu]1|b1", dtype.code):
        raise pickle.UnpicklingError(f"a numpy scalar of type {dtype.code!r} is no plain number")
    return np.frombuffer(data, dtype.order + dtype.code, count=1)[0].item()


def _storage(data: bytes) -> Any:
    """A tensor's storage. The function of this name in torch would unpickle the bytes freely."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise pickle.UnpicklingError(_refusal(refused[1]) if refused else "a tensor's bytes are damaged") from None


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """A view of a storage; torch refuses one that reaches beyond it."""
    values = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return values.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode(encoding)


# Global in the pickle -> what it becomes here. A name that another version of torch or numpy writes can be added,
# with a stand-in that does no harm whatever it is called with.
ALLOWED: dict[str, Callable] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": dict,
    "dnnlib.util.EasyDict": dict,
    "builtins.set": set,
    "__builtin__.set": set,  # as protocols below 3 write it
    "_codecs.encode": _bytes,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


def _refusal(name: str) -> str:
    return f"it names {name}, which is not among the globals known to be harmless (models/edm_pickle.py, ALLOWED)"


class _Unpickler(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> Callable:
        """The stand-in for a global."""
        full = f"{module}.{name}"
        if re.fullmatch(r"torch\.nn\.modules\.\w+\.[A-Z]\w*", full):
            return _Record
        if full not in ALLOWED:
            raise pickle.UnpicklingError(_refusal(full))
        return ALLOWED[full]


def _tensors(module: _Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module's parameters and buffers and those of its children, named as in a state dict."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor.clone()
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


@dataclass(frozen=True)
class PickledNetwork:
    """What a checkpoint says about its averaged network."""

    class_name: str
    init_kwargs: dict[str, Any]  # the arguments of its constructor
    tensors: dict[str, Tensor]  # named as in its state dict


def read_edm_pickle(path: Path | str) -> PickledNetwork:
    """The averaged network (`ema`) of an EDM checkpoint.

    Raises ValueError, one line, when the file is no such checkpoint or names a global outside `ALLOWED`.
    """
    with open(path, "rb") as file:
        try:
            network = _Unpickler(file).load()["ema"]
            return PickledNetwork(network.class_name, dict(network._init_kwargs), dict(_tensors(network)))
        except Exception as error:  # a crafted pickle can fail in any way
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: refused as an EDM checkpoint ({type(error).__name__}): {reason}") from None
