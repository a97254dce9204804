"""Drawn pictures: exact, varied, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_seed_means_a_picture_and_every_class_occurs(kind):
    drawn = [synthetic.picture(kind, 96, np.random.default_rng(seed)) for seed in range(8)]
    again = synthetic.picture(kind, 96, np.random.default_rng(3))
    assert np.array_equal(again.image, drawn[3].image)
    assert np.array_equal(again.labels, drawn[3].labels)
    assert len({picture.image.tobytes() for picture in drawn}) == len(drawn)
    for picture in drawn:
        assert picture.image.shape == (3, 96, 96)
        assert picture.image.dtype == np.float32
        assert np.isfinite(picture.image).all()
        assert abs(picture.image.mean()) < 1e-3
        assert picture.labels.dtype == np.uint8
    values = {int(value) for picture in drawn for value in np.unique(picture.labels)}
    assert values == set(range(len(synthetic.CLASSES[kind]) + 1))


def test_some_pictures_have_neighbours_and_others_are_shown_thrice():
    drawn = [synthetic.picture("blobs", 64, np.random.default_rng(seed)) for seed in range(10)]
    alone = [np.array_equal(p.image[0], p.image[1]) and np.array_equal(p.image[1], p.image[2]) for p in drawn]
    assert any(alone)
    assert not all(alone)
