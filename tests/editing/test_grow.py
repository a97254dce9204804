"""Growing from seeds, and painting by threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.domain.errors import MaskError
from napari_unet.editing.grow import grow_from_seeds
from napari_unet.editing.intensities import threshold_paint, typical_range
from napari_unet.evaluation.metrics import dice
from tests.editing.shapes import ball, cardiac, cut, fitting, label_arrays, spacings
from tests.real_data import needs_real_data


@given(label_arrays, spacings, st.data())
def test_what_was_painted_stays_and_only_its_classes_grow(seeds, spacing, data):
    image = data.draw(hnp.arrays(np.float32, seeds.shape, elements=st.floats(-5, 5, width=32)))
    background = data.draw(hnp.arrays(bool, seeds.shape)) & (seeds == 0)
    before = seeds.copy(), image.copy(), background.copy()
    spacing = fitting(spacing, seeds.ndim)
    found = grow_from_seeds(image, seeds, background, spacing, 3.0)
    assert all(np.array_equal(a, b) for a, b in zip(before, (seeds, image, background), strict=True))
    assert (found.shape, found.dtype) == (seeds.shape, seeds.dtype)
    assert np.array_equal(found[seeds > 0], seeds[seeds > 0])
    assert not found[background].any()
    assert set(np.unique(found)) <= {0, *np.unique(seeds)}


def test_classes_meet_at_the_edge_between_them_also_on_thick_slices():
    spacing = (4.0, 1.0, 1.0)
    truth = ball((12, 60, 60), (6, 30, 30), 18, spacing).astype(np.uint8)
    truth[:, :, 31:] *= 2
    image = 50.0 * truth + np.random.default_rng(0).normal(0, 5, truth.shape)
    seeds = np.zeros_like(truth)
    seeds[6, 28:33, 18:24], seeds[6, 28:33, 38:43] = 1, 2
    background = np.zeros(truth.shape, bool)
    background[6, 4:8] = background[1, 25:35, 25:35] = True
    found = grow_from_seeds(image, seeds, background, spacing, 20.0)
    assert dice(found == 1, truth == 1) > 0.88
    assert dice(found == 2, truth == 2) > 0.88


def test_without_background_the_box_around_the_seeds_is():
    truth = ball((60, 60), (30, 30), 12)
    seeds = np.zeros(truth.shape, np.uint16)
    seeds[29:32, 29:32] = 700
    found = grow_from_seeds(np.where(truth, 9.0, 1.0), seeds, np.zeros(truth.shape, bool), None, 20.0)
    assert dice(found == 700, truth) > 0.95


def test_nothing_grows_beyond_the_margin_nor_without_seeds():
    image, none = np.zeros((40, 40)), np.zeros((40, 40), bool)
    seeds = none.astype(np.uint8)
    assert not grow_from_seeds(image, seeds, none).any()
    seeds[20, 20] = 1
    found = grow_from_seeds(image, seeds, none, None, 5.0)
    rows, columns = np.nonzero(found)
    assert max(np.abs(rows - 20).max(), np.abs(columns - 20).max()) <= 6
    with pytest.raises(MaskError, match="differ"):
        grow_from_seeds(image[1:], seeds, none)


@given(hnp.arrays(np.float32, (6, 7), elements=st.floats(-9, 9, width=32)), hnp.arrays(bool, (6, 7)))
def test_threshold_painting_stays_in_the_footprint_and_the_range(image, footprint):
    found = threshold_paint(image, footprint, -1.0, 4.0)
    assert np.array_equal(found, footprint & (image >= -1) & (image <= 4))
    image[0] = np.nan
    assert not threshold_paint(image, footprint, -99, 99)[0].any()


def test_the_typical_range_disregards_a_few_strangers():
    values = np.r_[np.random.default_rng(0).normal(100, 10, 1000), np.full(100, 900.0), np.nan]
    low, high = typical_range(values, 2.0)
    assert 70 < low < 85
    assert 115 < high < 130
    low, high = typical_range(np.array([]))
    assert low > high


@needs_real_data
def test_real_outlines_from_a_dab_and_a_ring():
    rng = np.random.default_rng(4)
    for truth in cardiac(4):
        mask, image = cut(rng, truth, 12)
        middle = np.rint(np.argwhere(mask).mean(axis=0))
        seeds = ball(mask.shape, middle, 3).astype(np.uint8)
        around = np.pad(np.zeros(np.array(mask.shape) - 6, bool), 3, constant_values=True)
        assert dice(grow_from_seeds(image, seeds, around) == 1, mask) > 0.95
