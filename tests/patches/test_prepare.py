"""Intensities to network input."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import PreparationSettings
from napari_unet.patches.prepare import n_input_channels, prepare


def scan_of(data, axes=None, slice_axis=None):
    axes = axes or "zyx"[-data.ndim :]
    if axes.startswith("z") and slice_axis is None:
        slice_axis = 0
    return Scan(data, axes, Geometry(None), slice_axis=slice_axis)


def random_data(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_z_scores_have_no_mean_and_unit_deviation(dtype):
    values = prepare(scan_of(random_data((3, 20, 20), dtype)), PreparationSettings(clip_percentiles=None))
    assert (values.shape, values.dtype) == ((1, 3, 20, 20), np.float32)
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std() == pytest.approx(1, abs=1e-4)


def test_large_intensities_keep_their_small_differences():
    data = (1_000_000 + random_data((4, 30, 30)) / 50).astype(np.float32)
    values = prepare(scan_of(data), PreparationSettings(clip_percentiles=None))
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=1e-2)
    assert np.corrcoef(values.ravel(), data.ravel().astype(float))[0, 1] > 0.9999


def test_the_network_gets_float32_whatever_is_asked_for():
    for kind in ("zscore", "unit", "symmetric", "none"):
        for clip, window in (((0.5, 99.5), None), (None, None), (None, (0.0, 100.0))):
            settings = PreparationSettings(normalisation=kind, clip_percentiles=clip, window=window)
            assert prepare(scan_of(random_data((9, 9), np.float64)), settings).dtype == np.float32


@pytest.mark.parametrize("kind", ["zscore", "unit", "symmetric"])
@pytest.mark.parametrize("value", [0, 0.1, -3, 1e6])
@pytest.mark.parametrize("clip", [None, (0.5, 99.5)])
def test_a_constant_scan_becomes_zeros(kind, value, clip):
    settings = PreparationSettings(normalisation=kind, clip_percentiles=clip)
    assert not prepare(scan_of(np.full((2, 5, 5), value, np.float32)), settings).any()


def test_ranges_are_reached_and_not_passed():
    data = random_data((30, 30), np.uint8)
    for kind, low, high in (("unit", 0, 1), ("symmetric", -1, 1), ("none", data.min(), data.max())):
        values = prepare(scan_of(data), PreparationSettings(normalisation=kind, clip_percentiles=None))
        assert (values.min(), values.max()) == (low, high)


def test_outliers_are_clipped_but_the_little_an_empty_scan_shows_is_not():
    data = random_data((50, 50))
    data[0, 0] = 1e6
    assert prepare(scan_of(data), PreparationSettings()).max() < 5
    empty = np.zeros((50, 50), np.float32)
    empty[7, 9] = 1
    values = prepare(scan_of(empty), PreparationSettings())
    assert values[0, 0, 7, 9] == values.max() > 1


def test_a_window_is_the_same_for_every_scan():
    settings = PreparationSettings(window=(-100, 300))
    data = np.array([[-1000, -100, 0], [100, 300, 3000]], np.int16)
    np.testing.assert_allclose(prepare(scan_of(data), settings)[0, 0], [[-2, -2, -1], [0, 2, 2]], atol=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_planes_are_those_that_were_acquired(slice_axis):
    data = random_data((3, 4, 5))
    values = prepare(
        scan_of(data, slice_axis=slice_axis), PreparationSettings(normalisation="none", clip_percentiles=None)
    )
    np.testing.assert_array_equal(values[0], np.moveaxis(data, slice_axis, 0))


def test_colour_pictures_become_luminance_or_three_channels():
    data = random_data((6, 7, 4), np.uint8)  # red, green, blue, opacity
    plain = {"normalisation": "none", "clip_percentiles": None}
    grey = prepare(scan_of(data, "yxc"), PreparationSettings(**plain))
    np.testing.assert_allclose(grey[0, 0], data[..., :3] @ [0.299, 0.587, 0.114], rtol=1e-5)
    colour = prepare(scan_of(data, "yxc"), PreparationSettings(colour="rgb", **plain))
    np.testing.assert_array_equal(colour[:, 0], np.moveaxis(data[..., :3], -1, 0))
    as_colour = prepare(scan_of(data[..., 0]), PreparationSettings(colour="rgb", **plain))
    np.testing.assert_array_equal(as_colour[:, 0], [data[..., 0]] * 3)


@pytest.mark.parametrize("colour", ["grey", "rgb"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 5), "yx"), ((5, 5, 1), "yxc"), ((5, 5, 2), "yxc"), ((5, 5, 3), "yxc"), ((2, 5, 5, 4), "zyxc")],
)
def test_the_number_of_channels_is_known_beforehand(shape, axes, colour):
    scan, settings = scan_of(random_data(shape), axes), PreparationSettings(colour=colour)
    assert n_input_channels(scan, settings) == len(prepare(scan, settings))


def test_the_scan_itself_is_not_touched():
    data = random_data((2, 5, 5))
    before = data.copy()
    data.setflags(write=False)
    values = prepare(scan_of(data), PreparationSettings(normalisation="none", clip_percentiles=None))
    np.testing.assert_array_equal(values[0], before)
    assert not np.shares_memory(values, data)
