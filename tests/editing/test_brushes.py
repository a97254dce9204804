"""Brushes: sizes in millimetres, and edges that stop the smart one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.brushes import smart_stroke, stroke_mask
from napari_unet.evaluation.metrics import dice
from tests.editing.shapes import ball, cardiac, cut
from tests.real_data import needs_real_data

paths = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.just(2)), elements=st.floats(-4, 16))


def test_a_dab_is_a_disc_or_a_ball_in_millimetres():
    spacing = (5.0, 0.8, 1.1)
    found = stroke_mask((9, 30, 40), np.array([[4, 14, 20]]), 9.0, spacing)
    assert np.array_equal(found, ball((9, 30, 40), (4, 14, 20), 9.0, spacing))
    assert np.array_equal(stroke_mask((30, 40), np.array([[14.0, 20.0]]), 7, None), ball((30, 40), (14, 20), 7))


def test_a_stroke_is_a_capsule():
    found = stroke_mask((41, 81), np.array([[20, 20], [20, 60]]), 10.0)
    rows, columns = np.indices(found.shape)
    expected = np.hypot(rows - 20, columns - np.clip(columns, 20, 60)) <= 10
    assert np.array_equal(found, expected)


def test_a_brush_smaller_than_a_voxel_paints_the_way_without_gaps():
    found = stroke_mask((20, 20), np.array([[2, 3], [15, 9], [4, 17]]), 0.0)
    assert found[2, 3]
    assert found[15, 9]
    assert ndimage.label(found, np.ones((3, 3)))[1] == 1


@given(paths, st.floats(0, 6), st.sampled_from([None, (1.0, 3.0)]))
def test_the_smart_brush_paints_less_and_the_axes_do_not_matter(path, radius, spacing):
    image = np.random.default_rng(0).normal(size=(12, 12))
    before = image.copy()
    plain, smart = stroke_mask(image.shape, path, radius, spacing), smart_stroke(image, path, radius, spacing)
    assert np.array_equal(image, before)
    assert smart.shape == plain.shape
    assert not (smart & ~plain).any()
    other = None if spacing is None else spacing[::-1]
    assert np.array_equal(stroke_mask(image.shape, path[:, ::-1], radius, other), plain.T)


def test_the_smart_brush_stops_at_an_edge_and_not_within_the_structure():
    truth = ball((80, 80), (40, 40), 15)
    image = np.where(truth, 100.0, 40.0) + np.random.default_rng(1).normal(0, 4, truth.shape)
    across = np.array([[40.0, 32.0], [40.0, 48.0]])
    over = smart_stroke(image, across, 22.0)
    assert dice(over, truth) > 0.95
    assert dice(stroke_mask(truth.shape, across, 22.0), truth) < 0.65
    small = stroke_mask(truth.shape, across, 5.0)
    assert dice(smart_stroke(image, across, 5.0), small) > 0.9


def test_it_does_not_jump_to_what_looks_alike_and_keeps_to_limits():
    image = np.zeros((40, 40))
    image[:, 10:18] = image[:, 22:30] = 100
    found = smart_stroke(image, np.array([[10.0, 14.0], [30.0, 14.0]]), 9.0)
    assert found[20, 14]
    assert not found[:, 19:].any()
    assert not smart_stroke(image, np.array([[20.0, 14.0]]), 12.0, limits=(200, 300)).any()


def test_a_ball_in_a_volume_of_thick_slices():
    truth = ball((12, 60, 60), (6, 30, 30), 14, (4.0, 1.0, 1.0))
    image = np.where(truth, 100.0, 40.0) + np.random.default_rng(2).normal(0, 4, truth.shape)
    found = smart_stroke(image, np.array([[6, 30, 28], [6, 30, 32]]), 20.0, (4.0, 1.0, 1.0))
    assert dice(found, truth) > 0.9


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_where_there_is_nothing_to_see_it_is_the_plain_brush(value):
    path = np.array([[10.0, 10.0], [14.0, 20.0]])
    image = np.full((30, 30), value)
    assert np.array_equal(smart_stroke(image, path, 4.0), stroke_mask(image.shape, path, 4.0))


def test_off_the_scan_nothing_is_painted_and_nonsense_is_refused():
    assert not stroke_mask((10, 10), np.array([[50.0, 50.0]]), 3).any()
    assert not smart_stroke(np.zeros((10, 10)), np.array([[50.0, 50.0]]), 3).any()
    assert smart_stroke(np.zeros((1, 1)), np.array([[0.0, 0.0]]), 3).all()
    for path, radius in [([[1, 2, 3]], 1), ([[1, 2]], -1), ([[np.nan, 2]], 1), (np.zeros((0, 2)), 1)]:
        with pytest.raises(SettingsError):
            stroke_mask((10, 10), np.asarray(path), radius)


@needs_real_data
def test_on_real_outlines_the_smart_brush_may_be_too_large():
    rng = np.random.default_rng(3)
    plain, smart = [], []
    for truth in cardiac(8):
        mask, image = cut(rng, truth, 20)
        middle = np.argwhere(mask).mean(axis=0)[None]
        radius = 1.2 * np.hypot(*(np.argwhere(mask) - middle).T).max()
        plain.append(dice(stroke_mask(mask.shape, middle, radius), mask))
        smart.append(dice(smart_stroke(image, middle, radius), mask))
    assert np.mean(smart) > 0.95
    assert np.mean(smart) > np.mean(plain) + 0.2
