"""The one door: where results may go, and which voxels they may change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.domain.errors import MaskError, SettingsError
from napari_unet.editing.regions import Region, erased, merge, painted, replaced
from tests.editing.shapes import label_arrays


@st.composite
def edits(draw):
    labels = draw(label_arrays)
    axis = draw(st.integers(0, labels.ndim - 1))
    first = draw(st.integers(0, labels.shape[axis] - 1))
    region = Region.slices(labels.shape, axis, first, draw(st.integers(first + 1, labels.shape[axis])))
    shape = region.cut(labels).shape
    wanted = draw(hnp.arrays(labels.dtype, shape, elements=st.integers(0, 3)))
    return labels, region, wanted


@given(edits(), st.sampled_from(["all", "unlocked", "empty"]), st.sets(st.integers(0, 3)), st.sets(st.integers(1, 3)))
def test_nothing_changes_outside_the_region_nor_against_the_rule(edit, rule, locked, edited):
    labels, region, wanted = edit
    before, asked = labels.copy(), wanted.copy()
    merged = merge(labels, wanted, region, rule, locked, edited)
    assert np.array_equal(labels, before)
    assert np.array_equal(wanted, asked)
    assert (merged.shape, merged.dtype) == (labels.shape, labels.dtype)
    changed = merged != labels
    inside = np.zeros(labels.shape, bool)
    inside[region.box] = True
    assert not changed[~inside].any()
    # What changes becomes what was wanted.
    assert np.array_equal(region.cut(merged)[region.cut(changed)], wanted[region.cut(changed)])
    if rule == "all":
        assert np.array_equal(region.cut(merged), wanted)
        return
    for value in locked:
        assert np.array_equal(merged == value, labels == value)
    if rule == "empty":
        assert np.isin(labels[changed], [0, *edited]).all()


@given(edits())
def test_a_result_that_was_merged_changes_nothing_when_merged_again(edit):
    labels, region, wanted = edit
    once = merge(labels, wanted, region, locked=(1,))
    assert np.array_equal(merge(once, region.cut(once), region, locked=(1,)), once)


def test_a_slice_comes_as_a_plane_with_its_own_spacing():
    volume = np.arange(24).reshape(2, 3, 4)
    region = Region.slices(volume.shape, 1, 2, 3)
    assert np.array_equal(region.cut(volume), volume[:, 2])
    assert region.spacing((5.0, 2.0, 1.0)) == (5.0, 1.0)
    assert region.spacing(None) is None
    single = Region.whole((1, 1, 1))
    assert single.cut(np.zeros((1, 1, 1))).shape == (1, 1)


def test_slices_beyond_the_scan_are_left_out_and_none_at_all_is_an_error():
    assert Region.slices((4, 5, 6), 0, -3, 2).box[0] == slice(0, 2)
    assert Region.slices((5, 6), None, 0, 1) == Region.whole((5, 6))
    with pytest.raises(SettingsError, match="no slices from 4 to 5"):
        Region.slices((4, 5, 6), 0, 4, 6)


def test_what_cannot_be_put_in_is_refused():
    labels = np.zeros((3, 4), np.uint8)
    region = Region.whole(labels.shape)
    with pytest.raises(MaskError, match="shape"):
        merge(labels, np.zeros((3, 3), np.uint8), region)
    with pytest.raises(MaskError, match="wider type"):
        merge(labels, np.full((3, 4), 256), region)
    with pytest.raises(SettingsError, match="overwrite rule"):
        merge(labels, labels, region, "some")  # type: ignore[arg-type]


def test_painting_erasing_and_replacing_a_class():
    labels = np.array([[1, 1, 2, 0]], np.uint8)
    mask = np.array([[False, True, True, True]])
    assert painted(labels, mask, 1).tolist() == [[1, 1, 1, 1]]
    assert erased(labels, mask, 1).tolist() == [[1, 0, 2, 0]]
    assert replaced(labels, mask, 1).tolist() == [[0, 1, 1, 1]]
    assert labels.tolist() == [[1, 1, 2, 0]]
