"""pytest tests/numerics/test_edm_networks.py

DDPM++ and ADM against EDM's networks: counts, tensor names and shapes at the published sizes, outputs of small ones.
"""

import hashlib
import math
import zlib

import pytest
import torch

from nnce_dist.models.adm_unet import adm
from nnce_dist.models.edm_blocks import BlockStyle, UNetBlock
from nnce_dist.models.song_unet import ddpmpp

# (network, parameters, tensors, buffers, digest of "name shape" lines); digests taken from EDM's own classes
PUBLISHED = {
    "cifar10": (lambda: ddpmpp(0, 32), 55_733_891, 425, 8, "7fac419af4b1c9c5"),
    "cifar10-classes": (lambda: ddpmpp(10, 32), 55_735_299, 427, 8, "2c62785be254eec5"),
    "ffhq64": (lambda: ddpmpp(0, 64), None, 553, 12, "66153c6f5bd31b35"),
    "imagenet64": (lambda: adm(1000, 64), 295_899_267, 553, 12, "ffc3048cd3b63796"),
}


def small_song(num_classes=5, **changes):
    return ddpmpp(
        num_classes, 16, **{"width": 32, "multipliers": (1, 2), "num_blocks": 2, "attention": (8,), **changes}
    )


def small_adm(num_classes=5, **changes):
    sizes = {"width": 64, "multipliers": (1, 2), "num_blocks": 1, "attention": (16, 8)}
    return adm(num_classes, 16, **{**sizes, **changes})


def filled(network):
    """The network with weights that follow from each tensor's name and positions only."""
    for name, parameter in network.named_parameters():
        position = torch.arange(parameter.numel(), dtype=torch.float64) + zlib.crc32(name.encode()) % 100
        wave = torch.sin(0.7 * position**2)
        if parameter.ndim > 1:
            wave = wave * (1.5 / parameter[0].numel()) ** 0.5
        else:
            wave = 1 + 0.2 * wave if "norm" in name and name.endswith("weight") else 0.1 * wave
        parameter.data.copy_(wave.reshape(parameter.shape))
    return network.eval()


def inputs(num_classes, augment_dim):
    x = torch.sin(0.37 * torch.arange(2 * 3 * 16 * 16, dtype=torch.float64)).reshape(2, 3, 16, 16).float()
    labels = torch.eye(num_classes)[[1, -1]] if num_classes else None
    augment = torch.arange(2.0 * augment_dim).sin().reshape(2, augment_dim) if augment_dim else None
    return x, torch.tensor([-0.8, 0.9]), labels, augment


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_released_tensors(name):
    build, num_parameters, num_tensors, num_buffers, digest = PUBLISHED[name]
    with torch.device("meta"):
        network = build()
    if num_parameters:
        assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    lines = sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in network.state_dict().items())
    assert (len(lines), len(list(network.buffers()))) == (num_tensors, num_buffers)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


def test_names_of_the_released_checkpoints():
    with torch.device("meta"):
        song, dhariwal = ddpmpp(10, 32).state_dict(), adm(1000, 64).state_dict()
    for name in (
        "map_label.bias",
        "map_augment.weight",
        "enc.32x32_conv.weight",
        "enc.16x16_down.skip.weight",
        "enc.16x16_block3.qkv.weight",
        "dec.8x8_in0.proj.bias",
        "dec.16x16_block4.norm2.weight",
        "dec.32x32_up.conv0.resample_filter",
        "dec.32x32_aux_conv.weight",
    ):
        assert name in song, name
    assert "dec.16x16_block3.qkv.weight" not in song  # only the last decoder block attends
    assert "dec.8x8_block0.qkv.weight" in dhariwal and "enc.64x64_block0.qkv.weight" not in dhariwal
    assert "map_label.bias" not in dhariwal and "out_norm.weight" in dhariwal
    assert [name for name in dhariwal if name.startswith("enc.32x32_down.skip")] == [
        "enc.32x32_down.skip.resample_filter"
    ]


# What EDM's own networks (NVlabs/edm, training/networks.py) give with these weights at five positions.
REFERENCE = {
    "song": (small_song, (5, 9), (0.109844, -0.095683, -0.143948, 0.48405, -0.018132)),
    "song-plain": (
        lambda: small_song(0, multipliers=(2, 2, 2), num_blocks=1, attention=(16,), augment_dim=0),
        (0, 0),
        (0.238066, -0.909448, -0.502471, -0.028641, -0.963908),
    ),
    "adm": (small_adm, (5, 0), (-0.395536, -0.797181, 0.073475, 0.031983, -0.273703)),
    "adm-augmented": (
        lambda: small_adm(5, width=32, multipliers=(2, 2, 4), num_blocks=2, attention=(8,), augment_dim=9),
        (5, 9),
        (-0.107781, 0.08374, -0.096699, -0.159527, -0.40176),
    ),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_outputs_equal_the_reference_networks(name):
    build, dims, expected = REFERENCE[name]
    with torch.no_grad():
        output = filled(build())(*inputs(*dims)).flatten()[[0, 100, 500, 777, 1400]]
    torch.testing.assert_close(output, torch.tensor(expected), atol=2e-5, rtol=1e-4)


def test_attention_is_the_written_out_sum():
    torch.manual_seed(0)
    style = BlockStyle(8, 0.0, True, False, 1.0, 1e-5, channels_per_head=4)
    block = UNetBlock(8, 8, style, attention=True).double()
    torch.nn.init.normal_(block.proj.weight)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    qkv = block.qkv(block.norm2(x)).flatten(2)
    y = torch.empty(2, 8, 9, dtype=torch.float64)
    for head in range(2):  # channel 3*c + i of a head's 12 holds q, k, v for i = 0, 1, 2
        q, k, v = (qkv[:, 12 * head + i : 12 * (head + 1) : 3] for i in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(4), -1)
        y[:, 4 * head : 4 * (head + 1)] = torch.einsum("bqk,bck->bcq", weights, v)
    torch.testing.assert_close(block.attend(x), block.proj(y.reshape(x.shape)))


@pytest.mark.parametrize("build", [small_song, small_adm])
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("augment_dim", [0, 9])
def test_forward_and_backward(build, num_classes, augment_dim):
    network = filled(build(num_classes, augment_dim=augment_dim)).train()
    x, level, labels, augment = inputs(num_classes, augment_dim)
    x.requires_grad_()
    output, encoding = network.with_encoding(x, level, labels, augment)
    assert output.shape == x.shape and encoding.shape == (2, network.enc["8x8_down"].in_channels * 2, 8, 8)
    (output.square().mean() + encoding.mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "norm" in name or "bias" in name, name
    assert x.grad.any()


@pytest.mark.parametrize("build", [small_song, small_adm])
def test_missing_labels_are_zeros(build):
    network = filled(build(5, augment_dim=9))
    x, level, labels, augment = inputs(5, 9)
    with torch.no_grad():
        bare = network(x, level, None)
        torch.testing.assert_close(bare, network(x, level, torch.zeros(2, 5), torch.zeros(2, 9)))
        assert (network(x, level, labels) - bare).abs().max() > 1e-2
        assert (network(x, level, labels, augment) - network(x, level, labels)).abs().max() > 1e-2
        assert (network(x, level + 1, None) - bare).abs().max() > 1e-2


@pytest.mark.parametrize("build", [small_song, small_adm])
def test_layers_without_labels_have_a_gradient(build):
    network = filled(build(5, augment_dim=9))
    x, level, *_ = inputs(0, 0)
    network(x, level, None).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_starting_output_is_almost_zero():
    torch.manual_seed(0)
    x, level, labels, _ = inputs(5, 0)
    with torch.no_grad():
        assert (small_adm()(x, level, labels) == 0).all()
        assert 0 < small_song()(x, level, labels).abs().max() < 1e-3


@pytest.mark.parametrize("build", [small_song, small_adm])
def test_dropout_acts_in_training_only(build):
    network = filled(build(0, dropout=0.5))
    x, level, *_ = inputs(0, 0)
    with torch.no_grad():
        assert torch.equal(network(x, level, None), network(x, level, None))
        network.train()
        assert not torch.equal(network(x, level, None), network(x, level, None))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image size of 18 cannot be halved 2 times"):
        ddpmpp(0, 18, multipliers=(1, 1, 1))
    with pytest.raises(ValueError, match="published multipliers for image sizes"):
        ddpmpp(0, 48)
    with pytest.raises(ValueError, match="96 channels cannot be cut into heads of 64"):
        adm(0, 16, width=96, multipliers=(1, 1), attention=(16,))


@pytest.mark.slow
def test_published_networks_run_once():
    """CIFAR-10 and ImageNet64 at full size: a forward pass whose encoding is 8x8."""
    torch.manual_seed(0)
    for network, size in ((ddpmpp(10, 32), 32), (adm(1000, 64), 64)):
        labels = torch.eye(network.num_classes)[:1]
        with torch.no_grad():
            output, encoding = network.eval().with_encoding(torch.randn(1, 3, size, size), torch.zeros(1), labels)
        assert output.shape == (1, 3, size, size) and encoding.shape[2:] == (8, 8) and output.isfinite().all()
