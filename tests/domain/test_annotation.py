"""What counts as truth, and edits that can take themselves back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.domain.annotation import Annotation, Correction, SparseChange

SHAPES = [((3, 4, 5), 0), ((3, 4, 5), 1), ((3, 4, 5), 2), ((4, 5), None), ((1, 4, 5), 0)]
shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5)


@pytest.fixture(params=SHAPES, ids=str)
def annotation(request):
    shape, slice_axis = request.param
    return Annotation.empty(shape, slice_axis)


def n_slices(annotation):
    return len(annotation.accepted)


@given(shapes.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.uint16, shape)] * 2)))
def test_a_change_leads_from_one_array_to_the_other_and_back(pair):
    before, after = pair
    change = SparseChange.between(before, after)
    array = before.copy()
    change.apply(array)
    np.testing.assert_array_equal(array, after)
    change.inverse().apply(array)
    np.testing.assert_array_equal(array, before)
    assert len(change) == np.count_nonzero(before != after)
    assert change.after.dtype == np.uint16


def test_a_change_works_on_arrays_that_are_not_contiguous():
    base = np.zeros((4, 6, 5), np.uint8)
    view = base.transpose(2, 0, 1)[::-1]
    after = np.random.default_rng(0).integers(0, 3, view.shape, np.uint8)
    SparseChange.between(view, after).apply(view)
    np.testing.assert_array_equal(view, after)
    np.testing.assert_array_equal(base.transpose(2, 0, 1)[::-1], after)


def test_arrays_of_different_shapes_have_no_change_between_them():
    with pytest.raises(ValueError, match="shapes differ"):
        SparseChange.between(np.zeros(3), np.zeros(4))


@given(st.data())
def test_a_correction_and_its_inverse_cancel(data):
    shape, slice_axis = data.draw(st.sampled_from(SHAPES))
    annotation = Annotation(
        data.draw(hnp.arrays(np.uint8, shape)),
        slice_axis,
        data.draw(hnp.arrays(bool, shape)),
        data.draw(hnp.arrays(bool, 1 if slice_axis is None else shape[slice_axis])),
    )
    wished = Annotation(
        data.draw(hnp.arrays(np.uint8, shape)),
        slice_axis,
        data.draw(hnp.arrays(bool, shape)),
        data.draw(hnp.arrays(bool, annotation.accepted.shape)),
    )
    names = ("labels", "painted", "accepted")
    parts = {name: SparseChange.between(getattr(annotation, name), getattr(wished, name)) for name in names}
    correction = Correction("stroke", **parts, proposal="abc")
    before = annotation.copy()
    annotation.apply(correction)
    for name in names:
        np.testing.assert_array_equal(getattr(annotation, name), getattr(wished, name))
    annotation.apply(correction.inverse())
    for name in names:
        np.testing.assert_array_equal(getattr(annotation, name), getattr(before, name))
    assert correction.inverse().proposal == "abc"
    assert correction.is_empty == correction.inverse().is_empty == (not any(map(len, parts.values())))


def test_nothing_is_reviewed_at_first(annotation):
    assert not annotation.reviewed().any()
    assert len(annotation.reviewed_slices()) == 0


def test_an_accepted_slice_is_reviewed_as_a_whole_and_no_other(annotation):
    last = n_slices(annotation) - 1
    annotation.apply(annotation.acceptance([last]))
    expected = np.zeros(annotation.labels.shape, bool)
    if annotation.slice_axis is None:
        expected[:] = True
    else:
        np.moveaxis(expected, annotation.slice_axis, 0)[last] = True
    np.testing.assert_array_equal(annotation.reviewed(), expected)
    assert annotation.reviewed_slices().tolist() == [last]


def test_painted_voxels_are_reviewed_by_themselves(annotation):
    voxel = tuple(n - 1 for n in annotation.labels.shape)
    annotation.painted[voxel] = True
    assert annotation.reviewed().sum() == 1
    assert annotation.reviewed()[voxel]
    assert annotation.reviewed_slices().tolist() == [n_slices(annotation) - 1]


def test_the_reviewed_mask_is_a_copy(annotation):
    annotation.reviewed()[...] = True
    assert not annotation.painted.any()


def test_reopening_takes_acceptance_back(annotation):
    everything = list(range(n_slices(annotation)))
    annotation.apply(annotation.acceptance(everything))
    assert annotation.reviewed().all()
    reopened = annotation.acceptance(everything, False)
    assert annotation.reviewed().all()  # asking changes nothing
    annotation.apply(reopened)
    assert not annotation.reviewed().any()
    assert annotation.acceptance([], True).is_empty


def test_a_copy_is_independent(annotation):
    copy = annotation.copy()
    copy.labels[...] = copy.painted[...] = copy.accepted[...] = 1
    assert not annotation.labels.any()
    assert not annotation.reviewed().any()


def test_a_mask_over_slices_is_found_in_the_whole_array(annotation):
    first = n_slices(annotation) - 1
    block = annotation.labels[annotation.slice_index(slice(first, None))]
    mask = np.random.default_rng(0).random(block.shape) < 0.5
    annotation.labels.flat[annotation.flat_indices(mask, first)] = 7
    np.testing.assert_array_equal(annotation.labels[annotation.slice_index(slice(first, None))] == 7, mask)
    assert np.count_nonzero(annotation.labels) == mask.sum()


def test_labels_that_could_not_be_written_to_a_mask_are_refused():
    for dtype in (np.int64, np.float32, bool, ">u2"):
        with pytest.raises(ValueError, match="uint8 or uint16"):
            Annotation(np.zeros((2, 2), dtype), None)
    with pytest.raises(ValueError, match="painted"):
        Annotation(np.zeros((2, 2), np.uint8), None, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="accepted"):
        Annotation(np.zeros((2, 2, 2), np.uint8), 0, accepted=np.zeros(3, bool))
