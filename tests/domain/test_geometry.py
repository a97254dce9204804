"""Axes between file and array: nothing is ever resampled, so every way there has an exact way back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_unet.domain.geometry import AxisMap, Box, Geometry, obliquity_degrees, orientation_codes

permutations = (
    st.integers(1, 4)
    .flatmap(lambda n: st.tuples(st.permutations(range(n)), st.lists(st.booleans(), min_size=n, max_size=n)))
    .map(lambda both: AxisMap(tuple(both[0]), tuple(both[1])))
)


def arrays_for(axis_map, channels):
    shape = tuple(range(2, 2 + len(axis_map.permutation))) + (3,) * channels
    return np.arange(np.prod(shape)).reshape(shape)


@given(permutations, st.integers(0, 1))
def test_an_array_comes_back_from_the_loaded_axes_as_it_was(axis_map, channels):
    source = arrays_for(axis_map, channels)
    np.testing.assert_array_equal(axis_map.to_source(axis_map.to_loaded(source)), source)
    loaded = axis_map.to_loaded(source)
    np.testing.assert_array_equal(axis_map.to_loaded(axis_map.to_source(loaded)), loaded)


@given(permutations)
def test_the_index_matrix_finds_each_loaded_voxel_in_the_source(axis_map):
    source = arrays_for(axis_map, 0)
    loaded = axis_map.to_loaded(source)
    matrix = axis_map.index_matrix(loaded.shape)
    for index in itertools.islice(np.ndindex(loaded.shape), 0, None, 7):
        found = matrix @ [*index, 1]
        assert found[-1] == 1
        assert source[tuple(found[:-1].astype(int))] == loaded[index]


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_identity_changes_nothing(ndim):
    array = np.arange(4**ndim).reshape((4,) * ndim)
    axis_map = AxisMap.identity(ndim)
    np.testing.assert_array_equal(axis_map.to_loaded(array), array)
    np.testing.assert_array_equal(axis_map.index_matrix(array.shape), np.eye(ndim + 1))


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.tuples(*[st.floats(0.1, 9)] * 3))
def test_orientation_codes_name_the_patient_direction_of_each_axis(order, signs, spacing):
    affine = np.eye(4)
    affine[:3, :3] = 0
    expected = ""
    for axis, (world, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[world, axis] = sign * step
        expected += ("LPS" if sign > 0 else "RAI")[world]
    assert orientation_codes(affine) == expected


@given(st.tuples(*[st.floats(-20, 20)] * 3))
def test_a_slightly_oblique_scan_keeps_the_codes_of_its_nearest_axes(degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag([1, 2, 5])
    assert orientation_codes(affine) == "LPS"


@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_codes_never_name_one_direction_twice(degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    pairs = {"L": "x", "R": "x", "P": "y", "A": "y", "S": "z", "I": "z"}
    assert sorted(pairs[code] for code in orientation_codes(affine)) == ["x", "y", "z"]


def test_a_degenerate_matrix_still_gives_three_codes():
    assert len(orientation_codes(np.diag([1.0, 1.0, 0.0, 1.0]))) == 3
    assert len(orientation_codes(np.zeros((4, 4)))) == 3


@pytest.mark.parametrize("degrees", [0, 5, 20, 44])
def test_obliquity_is_the_angle_to_the_nearest_patient_axis(degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ np.diag([0.5, 0.5, 3])
    assert obliquity_degrees(affine) == pytest.approx(degrees, abs=1e-4)


def test_the_first_voxel_stands_where_the_affine_says_in_array_order():
    affine = np.eye(4)
    affine[:3, 3] = 1, 2, 3  # x, y, z
    assert Geometry((1, 1, 1), affine).translation == (3, 2, 1)
    assert Geometry((1, 1)).translation is None


def test_a_box_indexes_what_it_says():
    array = np.arange(24).reshape(4, 6)
    box = Box((1, 2), (3, 6))
    assert box.shape == array[box.slices].shape == (2, 4)
    np.testing.assert_array_equal(array[Box.around(array.shape).slices], array)
