"""The Inception network: layout, features against torch-fidelity's, resize, and files that are not its weights.

Run: python -m pytest tests/unit/test_inception.py
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from nnce_dist.evaluation.features import load_features
from nnce_dist.evaluation.inception import Inception, load_weights, resized
from nnce_dist.evaluation.inception_v3 import Block, InceptionV3


def scattered(num, start):
    """Reproducible numbers in [-1, 1), the same under every version of the random generators."""
    turns = (torch.arange(start, start + num, dtype=torch.float64) * 12.9898).sin() * 43758.5453
    return (2 * turns.remainder(1) - 1).float()


def made_state():
    """Weights of a working scale for every tensor of the network."""
    state = {}
    for number, (name, tensor) in enumerate(InceptionV3().state_dict().items()):
        values = scattered(tensor.numel(), 1000 * number).reshape(tensor.shape)
        if name.endswith("conv.weight"):
            state[name] = values * (6 / tensor[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.3 * values
        else:
            state[name] = tensor if name.endswith("tracked") else 0.2 * values
    return state


def made_images():
    """(2, 3, 64, 64) pictures with structure at several scales."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = [torch.sin(x * a + y * b) for a, b in ((0.1, 0.05), (0.3, -0.2), (0.02, 0.7))]
    picture = torch.stack(waves)
    return torch.stack([127.5 * picture + 127.5, 90 * picture.flip(0).roll(9, 2) + 100]).to(torch.uint8)


@pytest.fixture(scope="module")
def state():
    return made_state()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the published file's format
    return path


def test_layout_of_the_published_weights():
    with torch.device("meta"):
        net = InceptionV3()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    assert sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in net.fc.parameters()) == 21_785_568
    assert len(shapes) == 94 * 6 + 2  # convolutions with their norms, and the classifier
    expected = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch1x1.conv.weight": (320, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_features_are_torch_fidelitys(weights):
    # torch-fidelity 0.4.0, FeatureExtractorInceptionV3 "2048", the same weights and images, float32 on a CPU
    features = load_features("inception", str(weights))(made_images())
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    every_256th = [
        [0.113131, 0.977038, 0.0039268, 0.326443, 0.0381374, 0.0021333, 0.0, 0.0],
        [0.112617, 0.873507, 0.00475414, 0.227838, 0.0416151, 0.00522223, 0.0, 0.0],
    ]
    torch.testing.assert_close(features[:, ::256], torch.tensor(every_256th), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.double().sum(1).tolist(), [1102.465, 958.114], rtol=1e-5, atol=0)
    torch.testing.assert_close(features.double().square().sum(1).tolist(), [1630.657, 1231.106], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("pool", "expected"), [("average", [2.0, 3.0]), ("maximum", [3.0, 4.0])])
def test_average_pools_leave_out_the_padding(pool, expected):
    block = Block(1, {"branch_pool": [(1, 1)]}, pool)
    with torch.no_grad():
        block.branch_pool.conv.weight.fill_((1 + 1e-3) ** 0.5)  # undoes the norm's epsilon
        out = block.eval()(torch.tensor([1.0, 3.0, 2.0, 4.0]).expand(1, 1, 4, 4))
    torch.testing.assert_close(out[0, 0, 0, ::3], torch.tensor(expected))  # at both ends of a row


@pytest.mark.parametrize("size", [5, 8, 17])
def test_resize_reads_at_the_corner_of_each_pixel(size):
    images = (scattered(2 * 3 * 8 * 8, 0).reshape(2, 3, 8, 8) * 127 + 128).to(torch.uint8)
    pixels, wanted = images.numpy().astype(float), np.empty((2, 3, size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * 8 / size, j * 8 / size
            (y0, x0), (y1, x1) = (int(y), int(x)), (min(int(y) + 1, 7), min(int(x) + 1, 7))
            top = pixels[..., y0, x0] * (1 - x + x0) + pixels[..., y0, x1] * (x - x0)
            bottom = pixels[..., y1, x0] * (1 - x + x0) + pixels[..., y1, x1] * (x - x0)
            wanted[..., i, j] = top * (1 - y + y0) + bottom * (y - y0)
    torch.testing.assert_close(resized(images, size).double(), torch.as_tensor(wanted), rtol=1e-5, atol=1e-4)
    if size == 8:
        assert torch.equal(resized(images, size), images.float())
    else:
        assert (resized(images, size) - F.interpolate(images.float(), size, mode="bilinear")).abs().max() > 1


def test_safetensors_and_files_without_counters_load_too(state, tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.endswith("tracked")}, path)
    assert load_weights(path).keys() < state.keys()


def test_only_8_bit_images(weights):
    with pytest.raises(ValueError, match="8-bit"):
        Inception(weights)(made_images().float())


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused(path):
    with pytest.raises(ValueError) as caught:
        Inception(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: not ")
    return message


def test_another_networks_weights_are_named(state, tmp_path):
    other = {name.replace("Mixed_7c", "Mixed_8c"): tensor for name, tensor in state.items() if "Mixed_5b" not in name}
    other["fc.weight"] = torch.zeros(1000, 2048)
    torch.save(other, tmp_path / "other.pth")
    message = refused(tmp_path / "other.pth")
    assert "missing (Mixed_5b.branch1x1.bn.bias, " in message and "unexpected (Mixed_8c." in message
    assert "1 of another shape (fc.weight)" in message


def test_what_is_no_file_of_tensors_is_refused_without_running_it(tmp_path):
    (tmp_path / "text.pth").write_text("no tensors here")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"fc.weight": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 40)
    for name in ("noise.pth", "text.pth", "empty.pth", "text.safetensors", "list.pth", "bomb.pth"):
        refused(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        Inception(tmp_path / "absent.pth")
