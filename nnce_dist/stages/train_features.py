"""Trains the bundled feature network on the project's own pictures, minutes on one core.

    python -m nnce_dist.stages.train_features --out nnce_dist/evaluation/assets/shapes.safetensors

It learns the class *and* every other known factor, and how much each picture was spoilt (contrast, blur, noise,
blotches): so its features move when generated pictures differ in place, size, colour or sharpness, not only in class.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from nnce_dist.data import synthetic
from nnce_dist.evaluation.features import ShapesNet, file_digest

NUM_TRAIN, NUM_VAL = 24_576, 2_048  # distinct pictures; nuisances are drawn afresh every time one is used
BATCH = 128
LEARNING_RATE = 3e-3
VAL_SEED = 1_000_003  # of pictures never trained on
NUISANCES = ("contrast", "blur", "noise", "blotches")
STRONGEST = (0.6, 3.0, 0.35, 0.5)  # contrast lost; blur and noise sd in pixels and in half the range; blotches likewise
TARGETS = ("x", "y", "radius", "hue_cos", "hue_sin", "ground_cos", "ground_sin", "ground_value", *NUISANCES)
SPOILT = {"clean": (0, 0, 0, 0), "blurred": (0, 1, 0, 0), "noisy": (0, 0, 1, 0), "blotchy": (0, 0, 0, 1)}


def pictures(num: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (N, 3, 64, 64) uint8, classes (N,) and standardised factors (N, 8)."""
    images, labels = synthetic.make(range(num), seed)
    x, y, radius, hue, ground_hue, ground_value = synthetic.factors(range(num), seed).T
    centred = [(u - 0.5) * math.sqrt(12) for u in (x, y, radius, ground_value)]
    circles = [math.sqrt(2) * wave(2 * np.pi * h) for h in (hue, ground_hue) for wave in (np.cos, np.sin)]
    known = np.stack([*centred[:3], *circles, centred[3]], 1)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels), torch.from_numpy(known).float()


def nuisance_strengths(num: int, generator: torch.Generator) -> Tensor:
    """Strengths (N, 4) in [0, 1]: a quarter of the pictures stay clean, of the others each nuisance spoils one half."""
    strength = torch.rand(num, len(NUISANCES), generator=generator)
    on = torch.rand(num, len(NUISANCES), generator=generator) < 0.5
    spoilt = torch.rand(num, 1, generator=generator) < 0.75
    return strength * on * spoilt


def blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, 3, H, W) by sigma (B,) pixels, as two matrix products with row-normalised kernels."""
    at = torch.arange(pixels.shape[-1])
    squared = (at[:, None] - at).float().square()
    kernel = torch.softmax(-squared / (2 * sigma.clamp_min(1e-2)[:, None, None] ** 2), -1)[:, None]  # (B, 1, H, H)
    return kernel @ pixels @ kernel.mT


def spoil(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """8-bit images (B, 3, H, W) made worse by strength (B, 4) of the nuisances, as pixels in [-1, 1]."""
    contrast, sigma, noise, blotches = (strength * torch.tensor(STRONGEST)).T[..., None, None, None]
    pixels = images.float() / 127.5 - 1
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = blur(mean + (1 - contrast) * (pixels - mean), sigma.flatten())
    coarse = torch.randn(len(images), 3, 8, 8, generator=generator)
    pixels = pixels + blotches * F.interpolate(coarse, pixels.shape[-2:], mode="bilinear")
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp(-1, 1)


def standardised(strength: Tensor) -> Tensor:
    """Nuisance strengths as regression targets of order one."""
    return (strength - 0.2) / 0.3


def batches(num_samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Spoilt pixels (B, 3, 64, 64), classes (B,), targets (B, 12)."""
    images, labels, known = pictures(NUM_TRAIN, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_samples // BATCH):
        chosen = torch.randint(NUM_TRAIN, (BATCH,), generator=generator)
        strength = nuisance_strengths(BATCH, generator)
        targets = torch.cat([known[chosen], standardised(strength)], 1)
        yield spoil(images[chosen], strength, generator), labels[chosen], targets


@torch.inference_mode()
def validate(net: ShapesNet) -> dict[str, float]:
    """Class accuracy on unseen pictures, clean and spoilt at full strength, and R^2 of each factor on clean ones."""
    images, labels, known = pictures(NUM_VAL, VAL_SEED)
    net.eval()
    figures = {}
    for name, strength in SPOILT.items():
        generator = torch.Generator().manual_seed(VAL_SEED)
        pixels = spoil(images, torch.tensor(strength).expand(NUM_VAL, -1), generator)
        logits, estimates = (torch.cat(parts) for parts in zip(*map(net, pixels.split(256)), strict=True))
        figures[f"accuracy_{name}"] = float((logits.argmax(1) == labels).float().mean())
        if name == "clean":
            unexplained = (estimates[:, : known.shape[1]] - known).square().mean(0) / known.var(0)
            figures |= {f"r2_{t}": 1 - float(u) for t, u in zip(TARGETS, unexplained, strict=False)}
    net.train()
    return figures


def train(num_samples: int, seed: int, log_every: int = 25_600) -> tuple[ShapesNet, list[dict[str, float]]]:
    """The trained network and its validation figures along the way. Same arguments, same machine: the same bits."""
    torch.manual_seed(seed)
    net = ShapesNet(len(synthetic.CLASS_NAMES), len(TARGETS)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=num_samples // BATCH)
    curve = []
    for step, (pixels, labels, targets) in enumerate(batches(num_samples, seed), start=1):
        logits, estimates = net(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels) + F.mse_loss(estimates, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step * BATCH % log_every == 0 or step == num_samples // BATCH:
            curve.append({"samples": step * BATCH, "loss": loss.item(), **validate(net)})
            print(json.dumps(curve[-1]), flush=True)
    return net, curve


def main() -> None:
    """Trains and writes the weights and, beside them, how they came about."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="safetensors file; its record goes beside it")
    parser.add_argument("--samples", type=int, default=384_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    net, curve = train(arguments.samples, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, arguments.out)
    record = {
        "command": f"python -m nnce_dist.stages.train_features --samples {arguments.samples} --seed {arguments.seed}"
        " --out nnce_dist/evaluation/assets/shapes.safetensors",
        "seed": arguments.seed,
        "samples": arguments.samples,
        "distinct_pictures": NUM_TRAIN,
        "seconds": round(time.monotonic() - start),
        "hardware": f"one thread of {platform.machine()}",
        "torch": torch.__version__,
        "classes": synthetic.CLASS_NAMES,
        "factors": TARGETS,
        "sha256": file_digest(arguments.out),
        "validation": curve[-1],
        "curve": curve,
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
