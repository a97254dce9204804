"""Margins in millimetres, and smoothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.borders import margin, smooth
from napari_unet.evaluation.metrics import dice, hd
from tests.editing.shapes import ball, fitting, hippocampus, masks, spacings
from tests.real_data import needs_real_data


@given(masks, spacings, st.sampled_from([0, 0.5, 1, 2.5, 100]))
def test_margins_are_exact(mask, spacing, by):
    before = mask.copy()
    spacing = fitting(spacing, mask.ndim)
    grown = margin(mask, by, spacing)
    assert np.array_equal(mask, before)
    places = np.argwhere(mask) * (spacing or (1,) * mask.ndim)
    every = np.argwhere(np.ones(mask.shape, bool)) * (spacing or (1,) * mask.ndim)
    expected = np.zeros(mask.size, bool)
    for place in places:
        expected |= np.sqrt(((every - place) ** 2).sum(axis=1)) <= by + 1e-6
    assert np.array_equal(grown.ravel(), expected)
    # Shrinking is growing of what is outside.
    assert np.array_equal(margin(mask, -by - 1e-9, spacing), ~margin(~mask, by, spacing))


@given(masks, spacings)
def test_the_axes_do_not_matter(mask, spacing):
    spacing = fitting(spacing, mask.ndim)
    turned = None if spacing is None else spacing[::-1]
    for by in (1.5, -1.5):
        assert np.array_equal(margin(mask.T, by, turned), margin(mask, by, spacing).T)
    for method in ("gaussian", "median"):
        assert np.array_equal(smooth(mask.T, 1.0, turned, method), smooth(mask, 1.0, spacing, method).T)


def test_grown_and_shrunk_back_a_ball_is_the_ball_within_a_voxel():
    spacing = (3.0, 1.0, 1.0)
    mask = ball((30, 70, 70), (15, 35, 35), 15, spacing)
    grown = margin(mask, 6.0, spacing)
    assert abs(np.cbrt(grown.sum() / mask.sum()) - 21 / 15) < 0.03
    back = margin(grown, -6.0, spacing)
    assert not (mask & ~back).any()
    assert hd(back, mask, spacing) <= 3.0


@given(masks, spacings, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["gaussian", "median"]))
def test_smoothing_keeps_what_has_no_border(mask, spacing, by, method):
    before = mask.copy()
    smooth(mask, by, fitting(spacing, mask.ndim), method)
    assert np.array_equal(mask, before)
    whole = np.ones(mask.shape, bool)
    assert smooth(whole, by, fitting(spacing, mask.ndim), method).all()
    assert not smooth(~whole, by, fitting(spacing, mask.ndim), method).any()
    assert np.array_equal(smooth(mask, 0, None, method), mask)


@pytest.mark.parametrize("method", ["gaussian", "median"])
def test_a_rough_ball_becomes_a_smooth_one(method):
    spacing = (2.0, 1.0, 1.0)
    clean = ball((24, 44, 44), (12, 22, 22), 14, spacing)
    band = margin(clean, 2.0, spacing) & ~margin(clean, -2.0, spacing)
    rough = clean ^ (band & (np.random.default_rng(0).random(clean.shape) < 0.2))
    found = smooth(rough, 2.0, spacing, method)
    assert dice(found, clean) > max(0.93, dice(rough, clean))


def test_unknown_ways_are_refused():
    with pytest.raises(SettingsError, match="gaussian or median"):
        smooth(np.ones((3, 3), bool), 1.0, None, "mean")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="spacing"):
        margin(np.ones((3, 3), bool), 1.0, (1.0, 0.0))


@needs_real_data
def test_smoothing_real_masks_keeps_their_volume():
    for labels in hippocampus(6):
        mask = labels > 0
        assert abs(int(smooth(mask, 1.0).sum()) - int(mask.sum())) < 0.01 * mask.sum()
        assert dice(smooth(mask, 1.0), mask) > 0.9
        assert dice(margin(margin(mask, 2.0), -2.0), mask) > 0.9
