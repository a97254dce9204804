"""Cleaning masks up: each setting by what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_unet.domain.settings import AfterCareSettings
from napari_unet.inference.after_care import after_care

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9), elements=st.integers(0, 2)
)
settings = st.builds(
    AfterCareSettings,
    smooth_mm=st.sampled_from([0, 0.7, 2]),
    fill_holes=st.booleans(),
    smallest_mm3=st.sampled_from([0, 3, 100]),
    keep_largest=st.booleans(),
)


def ball(shape, middle, radius):
    return sum((axis - m) ** 2 for axis, m in zip(np.indices(shape), middle, strict=True)) <= radius**2


@given(masks, settings)
def test_shape_dtype_classes_and_the_mask_given_stay(mask, chosen):
    before = mask.copy()
    found = after_care(mask, None, chosen)
    assert np.array_equal(mask, before)
    assert (found.shape, found.dtype) == (mask.shape, mask.dtype)
    assert set(np.unique(found)) <= {0, *np.unique(mask)}


@given(masks)
def test_nothing_asked_for_changes_nothing(mask):
    assert np.array_equal(after_care(mask, None, AfterCareSettings()), mask)


@given(masks)
def test_the_largest_piece_of_each_class_stays_whole(mask):
    found = after_care(mask, None, AfterCareSettings(keep_largest=True))
    for value in (1, 2):
        pieces, n = ndimage.label(mask == value, np.ones((3,) * mask.ndim))
        sizes = np.bincount(pieces.ravel())[1:]
        kept = found == value
        assert kept.sum() == (sizes.max() if n else 0)
        assert ndimage.label(kept, np.ones((3,) * mask.ndim))[1] <= 1
        assert not (kept & (mask != value)).any()


@pytest.mark.parametrize("fewest", [0.5, 8, 9, 27, 28])
def test_pieces_below_a_volume_go_and_those_of_that_volume_stay(fewest):
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:3, 1:3, 1:3] = 1  # 8 voxels
    mask[5:8, 5:8, 5:8] = 2  # 27 voxels
    found = after_care(mask, (2.0, 0.5, 1.0), AfterCareSettings(smallest_mm3=fewest))
    assert (1 in found) == (fewest <= 8)
    assert (2 in found) == (fewest <= 27)


@given(masks)
def test_holes_are_background_that_a_class_encloses_and_nothing_else(mask):
    found = after_care(mask, None, AfterCareSettings(fill_holes=True))
    assert np.array_equal(found[mask > 0], mask[mask > 0])
    again = after_care(found, None, AfterCareSettings(fill_holes=True))
    assert np.array_equal(found, again)


def test_a_hole_is_filled_and_an_open_bay_is_not():
    mask = np.zeros((20, 20), np.uint8)
    mask[2:9, 2:9] = 1
    mask[4:7, 4:7] = 0
    mask[12:18, 2:9] = 1
    mask[14:18, 4:7] = 0
    found = after_care(mask, None, AfterCareSettings(fill_holes=True))
    assert (found[4:7, 4:7] == 1).all()
    assert (found[14:18, 4:7] == 0).all()


class TestSmoothing:
    def test_a_ball_keeps_its_place_and_nearly_its_volume(self):
        mask = ball((40, 40, 40), (20, 19, 21), 12).astype(np.uint8)
        found = after_care(mask, (1, 1, 1), AfterCareSettings(smooth_mm=1.0))
        assert abs(int(found.sum()) - int(mask.sum())) < 0.05 * mask.sum()
        assert np.allclose(ndimage.center_of_mass(found), ndimage.center_of_mass(mask), atol=0.1)

    def test_spikes_go_and_small_pits_close(self):
        mask = np.zeros((40, 40), np.uint8)
        mask[10:30, 10:30] = 1
        mask[20, 30:36] = 1
        mask[20, 10:13] = 0
        found = after_care(mask, None, AfterCareSettings(smooth_mm=2.0))
        assert not found[20, 32:].any()
        assert found[20, 12] == 1

    def test_no_gap_opens_where_classes_meet(self):
        mask = np.zeros((40, 40), np.uint8)
        mask[5:35, 5:20], mask[5:20, 20:35], mask[20:35, 20:35] = 1, 2, 3
        found = after_care(mask, None, AfterCareSettings(smooth_mm=1.5))
        assert (found[10:30, 10:30] > 0).all()

    def test_it_is_measured_in_millimetres(self):
        mask = np.zeros((9, 60, 60), np.uint8)
        mask[4, 20:40, 20:40] = 1
        assert after_care(mask, (10.0, 1.0, 1.0), AfterCareSettings(smooth_mm=1.0))[4].any()
        assert not after_care(mask, (0.5, 1.0, 1.0), AfterCareSettings(smooth_mm=1.0)).any()
