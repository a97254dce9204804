"""Pieces of a class: picking, keeping, removing, filling, cutting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.pieces import fill_holes, keep_largest, numbered, piece_at, remove_small, split_by, split_in
from tests.editing.shapes import ball, cardiac, fitting, label_arrays, masks, spacings
from tests.real_data import needs_real_data


@given(label_arrays, st.data())
def test_the_piece_at_a_point_is_all_that_hangs_together_there(labels, data):
    before = labels.copy()
    point = tuple(data.draw(st.integers(0, n - 1)) for n in labels.shape)
    found = piece_at(labels, point)
    assert np.array_equal(labels, before)
    pieces, _ = ndimage.label(labels == labels[point], np.ones((3,) * labels.ndim))
    assert np.array_equal(found, pieces == pieces[point])


def test_a_point_outside_is_refused():
    with pytest.raises(SettingsError, match="outside"):
        piece_at(np.zeros((3, 3), np.uint8), (3, 0))


@given(masks)
def test_pieces_are_numbered_by_size(mask):
    pieces, sizes = numbered(mask)
    assert np.array_equal(pieces > 0, mask)
    assert list(sizes) == [np.count_nonzero(pieces == k + 1) for k in range(len(sizes))]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert np.array_equal(keep_largest(mask, len(sizes)), mask)
    assert np.count_nonzero(keep_largest(mask)) == (sizes[0] if len(sizes) else 0)


@given(masks, spacings, st.sampled_from([0, 1, 4.0, 30.0]))
def test_removing_what_is_small_leaves_whole_pieces(mask, spacing, smallest):
    before = mask.copy()
    spacing = fitting(spacing, mask.ndim)
    found = remove_small(mask, smallest, spacing)
    assert np.array_equal(mask, before)
    size = np.prod(spacing or 1)
    pieces, n = ndimage.label(mask, np.ones((3,) * mask.ndim))
    for k in range(1, n + 1):
        own = pieces == k
        assert found[own].all() if own.sum() * size >= smallest else not found[own].any()


def test_sizes_are_in_cubic_millimetres():
    mask = np.zeros((4, 12, 12), bool)
    mask[1:3, 1:4, 1:6] = True  # 30 voxels of 0.1 x 0.1 x 3
    assert remove_small(mask, 0.9, (3, 0.1, 0.1)).any()
    assert not remove_small(mask, 0.91, (3, 0.1, 0.1)).any()


@given(masks, st.sampled_from([None, 0, 1]))
def test_filling_holes_adds_only_what_is_enclosed_and_once_is_enough(mask, axis):
    before = mask.copy()
    found = fill_holes(mask, axis)
    assert np.array_equal(mask, before)
    assert not (mask & ~found).any()
    assert np.array_equal(fill_holes(found, axis), found)
    if axis is None:
        assert np.array_equal(found, ndimage.binary_fill_holes(mask))


def test_a_tunnel_is_a_hole_of_each_slice():
    mask = np.zeros((5, 20, 20), bool)
    mask[1:4] = ball((20, 20), (10, 10), 8) & ~ball((20, 20), (10, 10), 3)
    assert np.array_equal(fill_holes(mask), mask)
    assert fill_holes(mask, 0)[1:4, 10, 10].all()
    assert not fill_holes(mask, 0)[0].any()


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
def test_two_balls_that_touch_are_cut_where_they_do(spacing):
    shape = (40, 40, 70)
    left = ball(shape, (20, 20, 22), 12, spacing and tuple(1 / s for s in (1, 1, 1)))
    right = ball(shape, (20, 20, 44), 13)
    parts = split_in(left | right, 2, spacing)
    assert np.array_equal(parts > 0, left | right)
    assert parts[20, 20, 44] == 1
    assert parts[20, 20, 22] == 2
    assert np.count_nonzero((parts == 1) != (right & ~(left & (np.indices(shape)[2] < 33)))) < 0.03 * right.sum()


def test_pieces_apart_are_parts_and_too_many_parts_are_refused():
    mask = ball((20, 50), (10, 10), 6) | ball((20, 50), (10, 35), 8)
    assert split_in(mask, 2)[10, 35] == 1
    with pytest.raises(SettingsError, match="pieces"):
        split_in(mask, 1)
    with pytest.raises(SettingsError, match="bulges"):
        split_in(mask, 3)


def test_parts_that_were_marked():
    mask = np.zeros((11, 40), bool)
    mask[3:8, 2:38] = True
    markers = np.zeros(mask.shape, np.uint8)
    markers[5, 4], markers[5, 35], markers[0, 0] = 7, 9, 5
    parts = split_by(mask, markers)
    assert set(np.unique(parts)) == {0, 7, 9}
    assert np.array_equal(parts > 0, mask)


@given(masks)
def test_any_mask_can_be_cut_into_the_pieces_it_has(mask):
    before = mask.copy()
    n = len(numbered(mask)[1])
    if n:
        assert np.array_equal(split_in(mask, n), numbered(mask)[0])
    assert np.array_equal(mask, before)


@needs_real_data
def test_two_real_outlines_that_touch_are_cut_apart():
    for one in cardiac(4):
        rows, columns = (np.flatnonzero(one.any(axis=1 - axis)) for axis in range(2))
        shape = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        both = np.pad(np.concatenate([shape, shape[:, ::-1]], axis=1), 2)
        parts = split_in(both, 2)
        assert np.bincount(parts.ravel())[1:].min() > 0.35 * both.sum()
