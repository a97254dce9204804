"""Filling between slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.between import fill_between
from napari_unet.evaluation.metrics import dice
from tests.editing.shapes import ball, hippocampus, volumes
from tests.real_data import needs_real_data


@given(volumes, st.integers(0, 2), st.data())
def test_only_slices_between_given_ones_come_back(labels, axis, data):
    before = labels.copy()
    given_slices = data.draw(st.lists(st.integers(0, labels.shape[axis] - 1), max_size=4))
    slices, planes = fill_between(labels, axis, given_slices)
    assert np.array_equal(labels, before)
    between = set(range(min(given_slices), max(given_slices))) - set(given_slices) if given_slices else set()
    assert set(slices) == between
    assert planes.dtype == labels.dtype
    assert planes.shape == (len(slices), *np.delete(labels.shape, axis))
    shown = np.take(labels, given_slices, axis)
    assert set(np.unique(planes)) <= {0, *np.unique(shown)}
    # What stands on slices that are not given does not count.
    other = np.moveaxis(labels.copy(), axis, 0)
    other[np.setdiff1d(np.arange(len(other)), given_slices)] = 2
    again = fill_between(np.moveaxis(other, 0, axis), axis, given_slices)
    assert np.array_equal(again[1], planes)


@given(volumes, st.permutations([0, 1, 2]), st.integers(0, 2))
def test_permuted_axes_give_the_permuted_result(labels, order, axis):
    steps = np.array([2.0, 1.0, 3.0])
    known = range(0, labels.shape[axis], 2)
    _, planes = fill_between(labels, axis, known, steps)
    _, other = fill_between(labels.transpose(order), order.index(axis), known, steps[order])
    rest = [a for a in order if a != axis]
    assert np.array_equal(other, planes if rest == sorted(rest) else planes.transpose(0, 2, 1))


@given(volumes, st.integers(0, 2))
def test_between_two_equal_slices_lies_the_same(labels, axis):
    plane = labels.take(0, axis)
    volume = np.stack([plane] * 5, axis)
    _, planes = fill_between(volume, axis, [0, 4])
    assert np.array_equal(planes, np.stack([plane] * 3))


def test_a_cone_a_ball_and_an_oblique_tube():
    z = np.arange(21)
    cone = np.stack([ball((60, 60), (30, 30), 4 + k) for k in z]).astype(np.uint8)
    solid = ball((41, 60, 60), (20, 30, 30), 18).astype(np.uint8)
    tube = np.stack([ball((60, 60), (30, 8 + 2 * k), 4) for k in z]).astype(np.uint8)
    for truth, least in ((cone, 0.99), (solid, 0.98), (tube, 0.97)):
        slices, planes = fill_between(truth, 0, range(0, len(truth), 4))
        assert dice(planes, truth[slices]) > least


def test_a_structure_ends_half_way_to_the_slice_without_it():
    labels = np.zeros((9, 40, 40), np.uint16)
    labels[0] = 300 * ball((40, 40), (20, 20), 12)
    sizes = np.count_nonzero(fill_between(labels, 0, [0, 8])[1], axis=(1, 2))
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] > 0
    assert sizes[4] == 0
    # Beyond the last given slice nothing is said.
    assert list(fill_between(labels, 0, [0, 4])[0]) == [1, 2, 3]


def test_a_branch_parts_and_each_branch_goes_its_way():
    one = ball((40, 60), (20, 30), 9)
    two = ball((40, 60), (20, 22), 6) | ball((40, 60), (20, 38), 6)
    labels = np.stack([one, one, one, one, two]).astype(np.uint8)
    _, planes = fill_between(labels, 0, [0, 4])
    assert all(plane[20, 22] and plane[20, 38] for plane in planes)
    assert planes[0, 20, 30]
    assert planes[0].sum() > planes[2].sum() > two.sum() * 0.9


def test_one_of_two_structures_ends_without_the_other_moving():
    left, right = ball((40, 80), (20, 15), 8), ball((40, 80), (20, 60), 8)
    labels = np.stack([left | right] * 4 + [left]).astype(np.uint8)
    _, planes = fill_between(labels, 0, [0, 4])
    assert (planes[:, :, :40] == left[:, :40]).all()
    assert planes[0, 20, 60]
    assert not planes[2, :, 40:].any()


def test_neighbouring_classes_leave_no_gap_and_classes_may_be_chosen():
    disc = ball((50, 50), (25, 25), 18)
    columns = np.indices(disc.shape)[1]
    labels = np.stack([np.where(disc, np.where(columns < border, 1, 2), 0) for border in (18, 21, 24, 27, 30)])
    _, planes = fill_between(labels.astype(np.uint8), 0, [0, 4])
    assert np.array_equal(planes > 0, np.stack([disc] * 3))
    assert dice(planes == 1, labels[1:4] == 1) > 0.95
    _, only = fill_between(labels.astype(np.uint8), 0, [0, 4], classes=[2])
    assert set(np.unique(only)) == {0, 2}


def test_a_shape_that_fills_the_slice_and_nonsense():
    labels = np.ones((3, 4, 4), np.uint8)
    assert fill_between(labels, 0, [0, 2])[1].all()
    assert fill_between(labels, 0, [])[0].size == 0
    with pytest.raises(SettingsError, match="slices 0 to 2"):
        fill_between(labels, 0, [0, 3])
    with pytest.raises(SettingsError, match="picture"):
        fill_between(labels[0], 0, [0])


@needs_real_data
def test_real_structures_from_every_third_slice():
    found = []
    for truth in hippocampus(8):
        slices, planes = fill_between(truth, 0, range(0, len(truth), 3), (1.0, 1.0, 1.0))
        found += [dice(planes == value, truth[slices] == value) for value in (1, 2)]
    assert np.mean(found) > 0.9
