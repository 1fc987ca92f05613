"""python -m pytest tests/unit/test_synthetic.py"""

import hashlib

import numpy as np

from nnce_dist.data import synthetic

GOLDEN = "fb610517a0cde383"  # of 16x16 thumbnails, rounded to 16 levels


def test_a_picture_does_not_depend_on_its_neighbours():
    many, labels = synthetic.make(range(32), seed=3)
    one, label = synthetic.make(range(17, 18), seed=3)
    assert np.array_equal(many[17], one[0])
    assert labels[17] == label[0] == 17 % 8


def test_pictures_are_the_same_everywhere():
    images, _ = synthetic.make(range(64), seed=0)
    thumb = images.reshape(64, 16, 4, 16, 4, 3).mean((2, 4)).round().astype(np.uint8)
    assert hashlib.sha256((thumb // 16).tobytes()).hexdigest()[:16] == GOLDEN


def test_the_shape_stands_where_its_factors_say():
    images, labels = synthetic.make(range(64), seed=5)
    factors = dict(zip(synthetic.FACTORS, synthetic.factors(range(64), 5).T, strict=True))
    for number in np.flatnonzero(labels % 4 == 0):  # discs, plain and striped
        x, y = 22 + 20 * factors["x"][number], 22 + 20 * factors["y"][number]
        ground = images[number, 0, 0].astype(int)
        far = np.abs(images[number].astype(int) - ground).sum(-1) > 12
        rows, columns = np.nonzero(far)
        assert abs(columns.mean() - x) < 1.5 and abs(rows.mean() - y) < 2.5


def test_hue_zero_is_red_and_a_third_is_green():
    colours = synthetic.hsv_to_rgb(np.array([0.0, 1 / 3, 2 / 3]), np.ones(3), np.ones(3))
    assert np.allclose(colours, np.eye(3))
