"""Distances between sets of images: pytest tests/numerics/test_evaluation.py"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nnce_dist.config.schema import Evaluation
from nnce_dist.data import synthetic
from nnce_dist.evaluation import frechet
from nnce_dist.evaluation.evaluate import count_name, evaluate, reference
from nnce_dist.evaluation.features import SHAPES_WEIGHTS, Shapes, ShapesNet, file_digest, load_features, to_uint8
from nnce_dist.evaluation.frechet import (
    Moments,
    covered,
    frechet_distance,
    kernel_distance,
    manifold_radii,
    precision_recall,
    unbiased_mmd2,
)
from nnce_dist.stages import train_features
from nnce_dist.stages.train_features import blur, nuisance_strengths, spoil, train


def round_robin(num_classes):
    """Every class equally often: image `id` shows class id mod num_classes."""
    return lambda ids: torch.arange(ids.start, ids.stop) % num_classes


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, n: int = 1000) -> Moments:
    """Moments whose mean and covariance are exactly these."""
    count = torch.tensor(float(n), dtype=torch.float64)
    return Moments(count, n * mean, (n - 1) * covariance + n * torch.outer(mean, mean))


def test_moments_equal_numpys():
    x = 3 + normal(257, 9)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean(), x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(), np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=5))
def test_moments_do_not_depend_on_the_split(cuts):
    x = normal(60, 5)
    edges = [0, *sorted(cuts), 60]
    streamed, merged = Moments.empty(5), Moments.empty(5)
    for start, stop in zip(edges, edges[1:], strict=False):
        streamed.add(x[start:stop])
        merged.merge(Moments.of(x[start:stop]))
    summed = Moments(**{name: sum(Moments.of(part).state()[name] for part in x.split(20)) for name in streamed.state()})
    for moments in (streamed, merged, summed):
        for name, value in Moments.of(x).state().items():
            torch.testing.assert_close(moments.state()[name], value, rtol=1e-12, atol=1e-12)


def test_moments_are_float64_whatever_the_features():
    """A million float32 values around 1000 with sd 1e-2: float32 sums would lose the variance."""
    x = (1000 + 1e-2 * normal(10_000, 2)).float()
    np.testing.assert_allclose(
        Moments.of(x).covariance(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-4, atol=1e-8
    )


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 samples"):
        Moments.of(normal(1, 3)).covariance()


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    """With a common eigenbasis the distance is |mu - mu'|^2 + sum (s_i - s'_i)^2."""
    basis = torch.linalg.qr(normal(6, 6)).Q
    s, t = torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(6, dtype=torch.float64)
    mean, other = normal(1, 6, 1)[0], normal(1, 6, 2)[0]
    a = with_moments(mean, basis @ torch.diag(s**2) @ basis.T)
    b = with_moments(other, basis @ torch.diag(t**2) @ basis.T)
    expected = float((mean - other).square().sum() + (s - t).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_equals_scipys_matrix_square_root():
    a, b = normal(400, 12, 1) @ normal(12, 12, 3), 0.3 + normal(500, 12, 2) @ normal(12, 12, 4)
    s, t = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(s + t - 2 * root)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_zero_on_itself_symmetric_and_real_for_singular_covariances():
    """Fewer samples than dimensions: the plain square root of the product is complex and warns."""
    a, b = Moments.of(normal(20, 64, 1)), Moments.of(normal(20, 64, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = frechet_distance(a, b)
    assert math.isfinite(distance) and distance > 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def naive_mmd2(x, y):
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    same_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    same_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same_x + same_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_mmd_equals_the_double_loop():
    x, y = normal(7, 3, 1), 1 + normal(9, 3, 2)
    assert float(unbiased_mmd2(x, y)) == pytest.approx(naive_mmd2(x, y), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Same law: mean 0 within 4 standard errors at 10 samples a side, where the biased estimate is far from it.

    Shifted law in one dimension: E k(x,y) with x~N(0,1), y~N(mu,1) is 1 + 3 E(xy)^2 + E(xy)^3, (xy)^3 vanishing.
    """
    same = torch.tensor([unbiased_mmd2(normal(10, 4, 2 * i), normal(10, 4, 2 * i + 1)) for i in range(2000)])
    assert abs(same.mean()) < 4 * same.std() / math.sqrt(len(same))
    mu = 0.5
    cross = 1 + 3 * (1 + mu**2)
    within_y = 1 + 3 * mu**2 + 3 * (1 + mu**2) ** 2 + (mu**3 + 3 * mu) ** 2
    expected = (1 + 3) + within_y - 2 * cross
    shifted = torch.tensor([unbiased_mmd2(normal(10, 1, 2 * i), mu + normal(10, 1, 2 * i + 1)) for i in range(4000)])
    assert abs(shifted.mean() - expected) < 4 * shifted.std() / math.sqrt(len(shifted))


def test_kernel_distance_repeats_and_averages_its_subsets():
    a, b = normal(300, 4, 1), 0.2 + normal(200, 4, 2)
    assert kernel_distance(a, b, 5, 50, seed=3) == kernel_distance(a, b, 5, 50, seed=3)
    assert kernel_distance(a, b, 5, 50, seed=3) != kernel_distance(a, b, 5, 50, seed=4)
    whole = float(unbiased_mmd2(a[:150], b[:150]))
    assert kernel_distance(a[:150], b[:150], 3, 1000) == pytest.approx(
        whole, rel=1e-10
    )  # subsets shrink to all there is
    with pytest.raises(ValueError, match="at least 2 samples"):
        kernel_distance(a[:1], b)


def test_radii_equal_the_naive_sort():
    x = normal(40, 3)
    naive = torch.cdist(x, x).sort(1).values[:, 3].square()  # column 0 is the point itself
    torch.testing.assert_close(manifold_radii(x, 3), naive, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="3 neighbours need more than 3 samples"):
        manifold_radii(x[:3], 3)


def test_precision_and_recall_do_not_depend_on_the_blocks(monkeypatch):
    real, generated = normal(120, 3, 1), 0.7 * normal(90, 3, 2) + 0.5
    whole = precision_recall(real, generated)
    monkeypatch.setattr(frechet, "BLOCK", 7 * 120)
    assert precision_recall(real, generated) == whole
    inside = torch.cdist(generated, real) <= manifold_radii(real).sqrt()
    assert whole[0] == pytest.approx(float(inside.any(1).double().mean()))


def test_precision_and_recall_of_known_overlaps():
    line = torch.arange(1000, dtype=torch.float64)[:, None]
    assert precision_recall(line, line) == (1.0, 1.0)
    assert precision_recall(line, line + 5000) == (0.0, 0.0)
    half = line[:500]  # every generated point is real, half the data is out of its reach but for the border
    precision, recall = precision_recall(line, half)
    assert precision == 1.0 and recall == pytest.approx(0.5, abs=0.005)
    precision, recall = precision_recall(half, line)
    assert recall == 1.0 and precision == pytest.approx(0.5, abs=0.005)
    assert covered(line, half, manifold_radii(half, 1)) == pytest.approx(0.501, abs=1e-9)


def test_rounding_to_bytes_truncates():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 0.99, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 191, 254, 255, 255]


def test_counts_in_names():
    assert [count_name(n) for n in (500, 2000, 2048, 50_000)] == ["500", "2k", "2k", "50k"]


# ---- the bundled network -----------------------------------------------------------------------------------------


def pictures(start: int, stop: int, seed: int = 77) -> torch.Tensor:
    return torch.from_numpy(synthetic.make(range(start, stop), seed)[0]).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return pictures(0, 512)


def test_the_shipped_network_is_the_recorded_one_and_small():
    record = json.loads(SHAPES_WEIGHTS.with_suffix(".json").read_text())
    assert record["sha256"] == file_digest(SHAPES_WEIGHTS)
    assert record["classes"] == list(synthetic.CLASS_NAMES)
    assert SHAPES_WEIGHTS.stat().st_size <= 500_000


def test_it_knows_the_classes_of_unseen_pictures_at_any_size(data):
    shapes, labels = load_features("shapes"), round_robin(8)(range(512))
    assert (shapes.classify(data) == labels).double().mean() > 0.99
    large = torch.from_numpy(synthetic.make(range(128), 77, size=128)[0]).permute(0, 3, 1, 2)
    assert (shapes.classify(large) == labels[:128]).double().mean() > 0.97
    assert shapes(data[:5]).shape == (5, shapes.dim)


def test_a_picture_of_noise_is_no_evidence(data):
    """Class accuracy of noise is chance, whatever the class asked for."""
    noise = torch.randint(0, 256, (1024, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    accuracy = (load_features("shapes").classify(noise) == round_robin(8)(range(1024))).double().mean()
    assert accuracy == pytest.approx(1 / 8, abs=0.04)


@pytest.fixture(scope="module")
def others() -> Moments:
    """Of other pictures than `data`."""
    return Moments.of(load_features("shapes")(pictures(512, 1536)))


def distance(images: torch.Tensor, moments: Moments) -> float:
    return frechet_distance(Moments.of(load_features("shapes")(images)), moments)


def test_the_fast_network_is_the_trained_one(data):
    """Folded norms and another memory layout change nothing but rounding."""
    net = ShapesNet(8, 12)
    net.load_state_dict(load_file(SHAPES_WEIGHTS))
    expected = net.eval().features(data[:64].float() / 127.5 - 1)
    torch.testing.assert_close(load_features("shapes")(data[:64]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nuisance", range(4), ids=["contrast", "blur", "noise", "blotches"])
def test_the_distance_grows_as_pictures_get_worse(data, others, nuisance):
    clean = data[:320]
    distances = [distance(clean, others)]
    for level in (0.3, 1.0):
        strength = torch.zeros(len(clean), 4)
        strength[:, nuisance] = level
        distances.append(distance(to_uint8(spoil(clean, strength, torch.Generator().manual_seed(0))), others))
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]


@pytest.mark.parametrize("column", range(6), ids=synthetic.FACTORS)
def test_the_distance_sees_every_factor(data, others, column):
    """Pictures from one half of a factor's range are further from the data than as many drawn at random."""
    half = torch.from_numpy(synthetic.factors(range(512), 77)[:, column] < 0.5)
    random = torch.randperm(512, generator=torch.Generator().manual_seed(column))[: int(half.sum())]
    assert distance(data[half], others) > 1.5 * distance(data[random], others)


def test_blur_keeps_the_mean_and_a_flat_picture():
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(blur(x, torch.zeros(3)), x)
    flat = torch.full((2, 3, 16, 16), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([1.0, 3.0])), flat)
    assert blur(x, torch.full((3,), 2.0)).var() < 0.2 * x.var()


def test_a_quarter_and_a_sixteenth_of_the_rest_stay_clean():
    strength = nuisance_strengths(20_000, torch.Generator().manual_seed(0))
    assert (strength == 0).all(1).double().mean() == pytest.approx(0.25 + 0.75 / 16, abs=0.01)


@pytest.mark.slow
def test_training_the_network_repeats_to_the_bit(monkeypatch):
    monkeypatch.setattr(train_features, "NUM_TRAIN", 512)
    monkeypatch.setattr(train_features, "NUM_VAL", 64)
    first, second = (train(1280, seed=3)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- evaluation of a sampler -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    return reference(
        pictures(0, 400, seed=5).split(64), load_features("shapes"), tmp_path_factory.mktemp("ref"), "a" * 64
    )


SETTINGS = Evaluation(num_samples=128, draws=2, batch=48)


def real_draw(draw: int, ids: range) -> torch.Tensor:
    """Float pictures of the classes that round robin asks for; every draw is of others."""
    start = 1000 * (draw + 1)
    return pictures(start + ids.start, start + ids.stop).float() / 127.5 - 1


def test_figures_of_the_data_itself(statistics):
    figures = evaluate(real_draw, statistics, load_features("shapes"), SETTINGS, round_robin(8))
    assert set(figures) == {
        "fd_shapes@128", "kd_shapes@128", "precision_shapes@128", "recall_shapes@128", "class_accuracy@128"
    }  # fmt: skip
    assert all(
        len(values) == 2 and values[0] != values[1] for name, values in figures.items() if "accuracy" not in name
    )
    assert min(figures["class_accuracy@128"]) > 0.97
    assert min(figures["precision_shapes@128"]) > 0.6
    blurred = evaluate(
        lambda draw, ids: blur(real_draw(draw, ids), torch.full((len(ids),), 3.0)),
        statistics,
        load_features("shapes"),
        SETTINGS,
    )
    assert min(blurred["fd_shapes@128"]) > 2 * max(figures["fd_shapes@128"])
    assert max(blurred["precision_shapes@128"]) < min(figures["precision_shapes@128"])
    assert "class_accuracy@128" not in blurred  # no labels were asked for


def test_figures_do_not_depend_on_the_batch(statistics):
    shapes = load_features("shapes")
    one, other = (
        evaluate(real_draw, statistics, shapes, Evaluation(num_samples=96, draws=1, batch=b), round_robin(8))
        for b in (96, 17)
    )
    assert one == {name: pytest.approx(values, rel=1e-4, abs=1e-6) for name, values in other.items()}


def test_the_wrong_classes_are_counted_as_wrong(statistics):
    shifted = lambda ids: (round_robin(8)(ids) + 1) % 8  # noqa: E731
    figures = evaluate(real_draw, statistics, load_features("shapes"), SETTINGS, shifted)
    assert max(figures["class_accuracy@128"]) < 0.03


def test_a_sampler_that_diverged_or_miscounts_is_named(statistics):
    def diverged(draw, ids):
        images = torch.zeros(len(ids), 3, 64, 64)
        images[3] = math.nan
        return images

    with pytest.raises(ValueError, match=r"draw 0, images 0 to 47: 1 images are not finite; the sampler has diverged"):
        evaluate(diverged, statistics, load_features("shapes"), SETTINGS)
    with pytest.raises(ValueError, match=r"returned shape \(5, 3, 64, 64\), not \(48, 3, H, W\)"):
        evaluate(lambda draw, ids: torch.zeros(5, 3, 64, 64), statistics, load_features("shapes"), SETTINGS)


def unread():
    raise AssertionError("the data was read although its statistics are cached")
    yield


def test_the_reference_is_cached_by_data_and_features(tmp_path, caplog):
    shapes = load_features("shapes")
    first = reference(pictures(0, 40).split(16), shapes, tmp_path, "1" * 64)
    again = reference(unread(), shapes, tmp_path, "1" * 64)
    assert torch.equal(first.rows, again.rows) and torch.equal(first.moments.outer, again.moments.outer)
    assert int(again.moments.count) == 40
    with pytest.raises(AssertionError):
        reference(unread(), shapes, tmp_path, "2" * 64)  # other data
    (cache,) = Path(tmp_path).iterdir()
    cache.write_bytes(cache.read_bytes()[:100])  # damaged: said so, and made again
    mended = reference(pictures(0, 40).split(16), shapes, tmp_path, "1" * 64)
    assert torch.equal(first.rows, mended.rows) and "computing the reference statistics again" in caplog.text
    assert torch.equal(reference(unread(), shapes, tmp_path, "1" * 64).rows, first.rows)


def test_no_data_gives_no_reference(tmp_path):
    with pytest.raises(ValueError, match="the data gave 0 images"):
        reference([], load_features("shapes"), tmp_path, "3" * 64)


def test_features_by_name(tmp_path):
    assert isinstance(load_features("auto"), Shapes)
    with pytest.raises(ValueError, match="inception features need evaluation.inception_weights"):
        load_features("inception")
    with pytest.raises(FileNotFoundError, match="no-such.pth"):
        load_features("auto", str(tmp_path / "no-such.pth"))
