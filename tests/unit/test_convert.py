"""pytest tests/unit/test_convert.py

NVIDIA's pickles become safetensors bit by bit, and nothing that a pickle brings is ever run.
"""

import collections
import copyreg
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nnce_dist.convert import convert
from nnce_dist.models.adm_unet import adm
from nnce_dist.models.edm_pickle import read_edm_pickle
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.models.song_unet import ddpmpp
from nnce_dist.models.weights import load_denoiser_weights, save_weights


@pytest.fixture
def marker(tmp_path):
    """A file that appears if anything from a pickle is run."""
    path = tmp_path / "was-run"
    yield path
    assert not path.exists(), "code from the pickle was executed"


@pytest.fixture
def reconstruct(monkeypatch):
    """EDM's reconstruct function under its own name, importable while a test writes a pickle."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("must never be called")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return _reconstruct_persistent_obj


class Persistent:
    """An object as EDM's persistence writes it: a call with its source code and state."""

    def __init__(self, reconstruct, class_name, source, **state):
        self.call, self.meta = reconstruct, {"type": "class", "version": 6, "module_src": source}
        self.meta.update(class_name=class_name, state=state)

    def __reduce__(self):
        return self.call, (self.meta,), None


def as_edm(module, reconstruct, source, **extra):
    """A module of ours in EDM's layout: its classes persistent, containers and their dictionaries torch's own."""
    children = collections.OrderedDict(
        (name, as_edm(child, reconstruct, source)) for name, child in module._modules.items()
    )
    if isinstance(module, torch.nn.ModuleDict):
        container = torch.nn.ModuleDict()
        container.__dict__["_modules"] = children
        return container
    state = {
        "training": False,
        "_parameters": collections.OrderedDict(module._parameters),
        "_buffers": collections.OrderedDict(module._buffers, resample_nothing=None),
        "_non_persistent_buffers_set": set(),
        "_modules": collections.OrderedDict(children, absent=None),
        "skip_scale": np.sqrt(0.5),
    }
    return Persistent(reconstruct, type(module).__name__, source, **state, **extra)


def write_pickle(path, denoiser, reconstruct, marker, init_kwargs, protocol=4):
    source = f"open({str(marker)!r}, 'w').close()"
    network = as_edm(denoiser, reconstruct, source, _init_args=(), _init_kwargs=init_kwargs)
    loss = Persistent(reconstruct, "EDMLoss", source, P_mean=-1.2)
    data = {"ema": network, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "x"}}
    path.write_bytes(pickle.dumps(data, protocol))


def small_denoiser(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "song":
        backbone = ddpmpp(3, 16, width=32, multipliers=(1, 2), num_blocks=1, attention=(8,))
    else:
        backbone = adm(3, 16, width=64, multipliers=(1, 2), num_blocks=1, attention=(8,))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return EDMPrecond(backbone).eval()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["song", "adm"])
def test_conversion_keeps_every_bit(tmp_path, reconstruct, marker, kind, protocol):
    denoiser, source, target = small_denoiser(kind), tmp_path / "edm.pkl", tmp_path / "edm.safetensors"
    arguments = {"img_resolution": 16, "label_dim": 3, "channel_mult": [1, 2], "scale": np.sqrt(0.5)}
    write_pickle(source, denoiser, reconstruct, marker, arguments, protocol)
    done = convert(source, target, hashlib.sha256(source.read_bytes()).hexdigest())
    other = small_denoiser(kind, seed=1)
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 40.0]), torch.eye(3)[:2]
    with torch.no_grad():
        assert not torch.equal(other(x, sigma, labels), denoiser(x, sigma, labels))
        load_denoiser_weights(other, target)
        assert torch.equal(other(x, sigma, labels), denoiser(x, sigma, labels))
    assert load_file(target).keys() == denoiser.state_dict().keys()
    assert done.warning == "" and done.num_tensors == len(denoiser.state_dict())
    assert done.init_kwargs == {**arguments, "scale": float(np.sqrt(0.5))}


def test_description_says_what_was_converted(tmp_path, reconstruct, marker):
    source, target = tmp_path / "edm.pkl", tmp_path / "edm.safetensors"
    write_pickle(source, small_denoiser("song"), reconstruct, marker, {"img_resolution": 16})
    done = convert(source, target)
    assert "sha256" in done.warning and "\n" not in done.warning
    assert str(done).startswith(f"{target}: ") and str(done).endswith(done.warning)
    described = json.loads(done.description.read_text())
    assert described["class_name"] == "EDMPrecond" and described["init_kwargs"] == {"img_resolution": 16}
    assert described["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert described["weights_sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edm.json", "edm.pkl", "edm.safetensors"]


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class LegacyBomb:
    """The bytes of a tensor storage in torch's old format whose inner pickle calls a function."""

    def __init__(self, call):
        file = io.BytesIO()
        torch.save(call, file, _use_new_zipfile_serialization=False)
        self.data = file.getvalue()

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def attacks(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": (Call(os.system, f"touch {marker}"), f"{os.name}.system"),
        "subprocess.Popen": (Call(subprocess.Popen, ["touch", str(marker)]), "subprocess.Popen"),
        "exec": (Call(exec, touch), "builtins.exec"),
        "eval": (Call(eval, touch), "builtins.eval"),
        "getattr": (Call(getattr, "", "upper"), "builtins.getattr"),
        "torch.load": (Call(torch.load, "/dev/null"), "torch.serialization.load"),
        "numpy.load": (Call(np.load, "/dev/null"), "numpy.load"),
        "reconstructor": (Call(copyreg._reconstructor, object, object, None), "copyreg._reconstructor"),
        "nested exec": (LegacyBomb(Call(exec, touch)), "builtins.exec"),
        "nested os.system": (LegacyBomb(Call(os.system, f"touch {marker}")), f"{os.name}.system"),
    }


NAMES = [*attacks("")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [0, 4])
def test_malicious_pickles_are_refused(tmp_path, marker, name, protocol):
    attack, named = attacks(marker)[name]
    named = named.rpartition(".")[2]  # protocol 0 has other module names
    source, target = tmp_path / "edm.pkl", tmp_path / "edm.safetensors"
    source.write_bytes(pickle.dumps({"ema": attack}, protocol))
    with pytest.raises(ValueError, match=rf"it names [\w.]*{named},") as error:
        convert(source, target)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["edm.pkl"]


def test_the_attacks_would_work_without_the_list(tmp_path):
    marker = tmp_path / "was-run"
    for name in ("os.system", "exec", "nested exec"):
        if name != "nested exec":
            pickle.loads(pickle.dumps(attacks(marker)[name][0]))
        else:
            torch.load(io.BytesIO(attacks(marker)[name][0].data), weights_only=False)
        assert marker.exists(), name
        marker.unlink()


def test_numpy_objects_and_stray_views_are_refused(tmp_path):
    source = tmp_path / "edm.pkl"
    rebuild, (storage, offset, *_) = torch.ones(4).__reduce_ex__(4)
    view = Call(rebuild, storage, offset, (1000,), (1,), False, {})
    scalar = Call(np.float64(1).__reduce__()[0], np.dtype("V8"), b"12345678")
    for value, reason in ((view, "out of bounds"), (scalar, "no plain number")):
        source.write_bytes(pickle.dumps({"ema": value}))
        with pytest.raises(ValueError, match=reason):
            read_edm_pickle(source)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"other": 1}), pickle.dumps([1]), b"\x80\x04."])
def test_files_of_another_kind_give_one_line(tmp_path, content):
    source = tmp_path / "edm.pkl"
    source.write_bytes(content)
    with pytest.raises(ValueError, match="refused as an EDM checkpoint") as error:
        convert(source, tmp_path / "edm.safetensors")
    assert "\n" not in str(error.value) and str(source) in str(error.value)


def test_wrong_digest_class_arguments_and_path(tmp_path, reconstruct, marker):
    source, target = tmp_path / "edm.pkl", tmp_path / "edm.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(source, target)
    baseline = Persistent(reconstruct, "VPPrecond", "", _parameters={}, _buffers={}, _modules={}, _init_kwargs={})
    source.write_bytes(pickle.dumps({"ema": baseline}))
    with pytest.raises(ValueError, match="holds a VPPrecond"):
        convert(source, target)
    with pytest.raises(ValueError, match="fetch the file again"):
        convert(source, target, "0" * 64)
    write_pickle(source, small_denoiser("song"), reconstruct, marker, {"sigma_max": float("inf")})
    with pytest.raises(ValueError, match="no plain values"):
        convert(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["edm.pkl"]


def test_missing_filters_are_accepted(tmp_path):
    denoiser, path = small_denoiser("adm"), tmp_path / "w.safetensors"
    tensors = {name: t for name, t in denoiser.state_dict().items() if not name.endswith("resample_filter")}
    assert len(tensors) < len(denoiser.state_dict())
    save_weights(tensors, path)
    other = small_denoiser("adm", seed=1)
    load_denoiser_weights(other, path)
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_other_architectures_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small_denoiser("song").state_dict(), path)
    before = small_denoiser("adm")
    untouched = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"\d+ missing: .*; \d+ unexpected: .*of another shape: .*network\.kind"
    ) as error:
        load_denoiser_weights(before, path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in before.state_dict().items())
    wider = EDMPrecond(ddpmpp(4, 16, width=32, multipliers=(1, 2), num_blocks=1, attention=(8,)))
    with pytest.raises(ValueError, match=r"1 of another shape: model\.map_label\.weight \(32, 3\) for \(32, 4\)"):
        load_denoiser_weights(wider, path)


def test_weights_that_are_no_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_denoiser_weights(small_denoiser("song"), path)
    path.write_bytes(pickle.dumps({"ema": 1}))
    with pytest.raises(ValueError, match="nnce convert"):
        load_denoiser_weights(small_denoiser("song"), path)
