"""Intensities to network input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import exposure

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import PreparationSettings
from napari_unet.patches import prepare as module
from napari_unet.patches.prepare import PreparedScan, intensity_quantiles, n_input_channels, prepare


def scan_of(data, axes=None, slice_axis=None, spacing=None):
    axes = axes or "zyx"[-data.ndim :]
    if axes.startswith("z") and slice_axis is None:
        slice_axis = 0
    return Scan(data, axes, Geometry(spacing), slice_axis=slice_axis)


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


@pytest.mark.parametrize("equalise", ["none", "histogram", "clahe"])
def test_the_scan_itself_is_not_touched(equalise):
    data = random_data((2, 5, 5))
    before = data.copy()
    data.setflags(write=False)
    settings = PreparationSettings(normalisation="none", clip_percentiles=None, equalise=equalise)
    values = prepare(scan_of(data), settings)
    np.testing.assert_array_equal(data, before)
    assert not np.shares_memory(values, data)
    if equalise == "none":
        np.testing.assert_array_equal(values[0], before)


# Equalisation


def bare(equalise, **changes):
    """Equalisation with nothing around it."""
    return PreparationSettings(**{"equalise": equalise, "normalisation": "none", "clip_percentiles": None, **changes})


def texture(shape, seed=0):
    """Detail of little contrast under shading of much, over exactly [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), [0] * (len(shape) - 2) + [2, 2])
    shaded = noise / noise.std() * 0.02 + np.linspace(0, 1, shape[-1]) ** 2
    return ((shaded - shaded.min()) / np.ptp(shaded)).astype(np.float32)


@pytest.mark.parametrize("scale", [1, 1e6])
def test_an_equalised_histogram_is_flat_over_the_whole_scan(scale):
    data = (np.random.default_rng(0).gamma(2, 100, (4, 60, 60)) * scale).astype(np.float32)
    values = prepare(scan_of(data), bare("histogram"))
    shares = np.histogram(values, 20, (0, 1))[0] / values.size
    assert np.abs(shares - 0.05).max() < 0.005
    order = np.argsort(data.ravel(), kind="stable")
    assert (np.diff(values.ravel()[order]) >= -1e-6).all()
    wanted = exposure.equalize_hist(((data - data.min()) / np.ptp(data)).astype(np.float32), nbins=4096)
    np.testing.assert_allclose(values[0], (wanted - wanted.min()) / np.ptp(wanted), atol=1e-4)


def test_air_takes_nothing_of_the_range_however_much_of_it_there_is():
    data = np.random.default_rng(0).normal(50, 20, (2, 60, 60))
    data[:, :, :40] = -1000
    values = prepare(scan_of(data), bare("histogram", window=(-100, 150)))[0]
    assert (values[:, :, :40] == -2).all()
    assert np.abs(np.histogram(values[:, :, 40:], 10, (-2, 2))[0] / values[:, :, 40:].size - 0.1).max() < 0.01


def test_clahe_is_scikit_images_plane_by_plane():
    data = texture((2, 160, 130))
    data[0] *= 0.5  # a plane keeps the part of the range that it has
    values = prepare(scan_of(data), bare("clahe"))[0]
    for plane, found in zip(data, values, strict=True):
        low, span = plane.min(), np.ptp(plane)
        wanted = exposure.equalize_adapthist((plane - low) / span, kernel_size=(20, 16)) * span + low
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert values[0].max() <= 0.5 + 1e-6


def test_clahe_raises_the_contrast_of_detail_everywhere():
    data = texture((1, 128, 128))
    values = prepare(scan_of(data), bare("clahe"))[0]

    def detail(image):
        return ndimage.generic_filter(image[0, ::4, ::4] - ndimage.gaussian_filter(image[0], 8)[::4, ::4], np.std, 7)

    assert (detail(values) > detail(data)).mean() > 0.95


@pytest.mark.parametrize("equalise", ["histogram", "clahe"])
def test_equalisation_happens_inside_the_window(equalise):
    data = np.random.default_rng(0).normal(0, 300, (2, 40, 40)).astype(np.int16)
    settings = bare(equalise, window=(-100, 300))
    values = prepare(scan_of(data), settings)
    assert values.min() >= -2
    assert values.max() == pytest.approx(2, abs=1e-4)
    further = np.where(data > 300, 3000, data)
    np.testing.assert_array_equal(prepare(scan_of(further), settings), values)
    inside = (data > -90) & (data < 290)
    plain = prepare(scan_of(data), PreparationSettings(window=(-100, 300)))
    assert not np.allclose(values[0][inside], plain[0][inside], atol=0.05)


@pytest.mark.parametrize("equalise", ["histogram", "clahe"])
def test_an_outlier_is_clipped_before_equalisation(equalise):
    data = texture((2, 60, 60)) * 100
    with_outlier = data.copy()
    with_outlier[0, 30, 30] = 1e6
    settings = bare(equalise, clip_percentiles=(0.5, 99.5))
    one, other = (prepare(scan_of(d), settings) for d in (data, with_outlier))
    assert np.abs(one - other).mean() < 0.02


@pytest.mark.parametrize("equalise", ["histogram", "clahe"])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_equalised_values_are_normalised_afterwards(equalise, offset):
    data = texture((2, 40, 40)) * 4 + np.float32(offset)
    values = prepare(scan_of(data), PreparationSettings(equalise=equalise))
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std() == pytest.approx(1, abs=1e-4)
    unit = prepare(scan_of(data), PreparationSettings(equalise=equalise, normalisation="symmetric"))
    assert (unit.min(), unit.max()) == pytest.approx((-1, 1), abs=1e-6)


@given(st.data())
def test_any_scan_under_any_preparation_gives_finite_numbers_in_its_own_shape(data):
    n = data.draw(st.integers(2, 3))
    shape = tuple(data.draw(st.integers(1, 20 if axis else 3)) for axis in range(n))
    values = data.draw(
        st.one_of(
            st.sampled_from([0.0, -3.0, 1e6]).map(lambda v: np.full(shape, v, np.float32)),
            st.integers(0, 99).map(lambda seed: 1e6 * np.random.default_rng(seed).standard_normal(shape)),
            st.integers(0, 99).map(lambda seed: random_data(shape, np.int16, seed)),
        )
    )
    settings = PreparationSettings(
        equalise=data.draw(st.sampled_from(["histogram", "clahe"])),
        normalisation=data.draw(st.sampled_from(["zscore", "unit", "symmetric", "none"])),
        window=data.draw(st.sampled_from([None, (-100.0, 100.0), (500.0, 501.0)])),
        clip_percentiles=data.draw(st.sampled_from([None, (0.5, 99.5)])),
        spacing=data.draw(st.sampled_from([None, (1.0, 1.0, 1.0), (9.0, 12.0, 0.1)])),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prepare(scan_of(values.astype(np.float32), spacing=(1.0,) * n), settings)
    assert found.dtype == np.float32
    assert found.shape == (1, *((1,) * (3 - n)), *shape)
    assert np.isfinite(found).all()


# Smoothing for a coarser spacing


def test_planes_are_smoothed_as_scikit_image_does_before_they_are_read_more_coarsely():
    data = random_data((3, 40, 50))
    values = prepare(scan_of(data, spacing=(5, 0.5, 1)), bare("none", spacing=(9, 1.5, 1.5)))
    wanted = np.stack([ndimage.gaussian_filter(plane, ((3 - 1) / 2, (1.5 - 1) / 2), mode="nearest") for plane in data])
    np.testing.assert_allclose(values[0], wanted, atol=1e-3)


def test_stripes_finer_than_the_planned_pixels_leave_no_pattern():
    stripes = np.tile([0, 100], (64, 32)).astype(np.float32)
    coarse = prepare(scan_of(stripes, spacing=(1, 1)), bare("none", spacing=(1, 4, 4)))
    assert np.ptp(coarse[0, 0, 8:-8, 8:-8][::4, ::4]) < 1
    assert coarse.mean() == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    ("spacing", "planned"),
    [
        ((2, 1, 1), None),
        ((2, 1, 1), (2, 1, 1)),
        ((2, 1, 1), (8, 0.5, 0.5)),
        ((2, 1, 1), (2, 1.02, 1)),
        (None, (9, 9, 9)),
    ],
)
def test_scans_that_are_not_read_more_coarsely_keep_their_voxels(spacing, planned):
    data = random_data((3, 12, 12))
    values = prepare(scan_of(data, spacing=spacing), bare("none", spacing=planned))
    np.testing.assert_array_equal(values[0], data)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_never_mixed_whichever_axis_they_lie_on(slice_axis):
    data = np.zeros((20, 20, 20), np.float32)
    data[tuple(10 if axis == slice_axis else slice(None) for axis in range(3))] = 100
    spacing = tuple(4.0 if axis == slice_axis else 1.0 for axis in range(3))
    scan = scan_of(data, slice_axis=slice_axis, spacing=spacing)
    values = prepare(scan, bare("none", spacing=(8, 3, 3)))
    np.testing.assert_array_equal(values[0], np.moveaxis(data, slice_axis, 0))


class TestPieceByPiece:
    """A prepared scan is made where it is indexed: the same, whatever is asked for and however it was measured."""

    @given(
        st.sampled_from(["none", "histogram", "clahe"]),
        st.sampled_from(["zscore", "unit", "symmetric", "none"]),
        st.sampled_from([None, (-50.0, 120.0)]),
        st.integers(0, 2),
        st.sampled_from([1.0, 2.5]),
        st.integers(0, 2),
        st.integers(0, 6),
        st.integers(1, 4),
    )
    def test_planes_are_those_of_the_whole(self, equalise, kind, window, reach, coarsen, axis, start, n):
        data = random_data((7, 9, 8), np.int16, seed=3)
        settings = PreparationSettings(
            equalise=equalise, normalisation=kind, window=window, context_slices=reach, coarsen=coarsen
        )
        scan = scan_of(data, slice_axis=axis)
        whole, pieces = prepare(scan, settings), PreparedScan(scan, settings)
        assert pieces.shape == whole.shape
        np.testing.assert_array_equal(pieces[:, start], whole[:, start])
        np.testing.assert_array_equal(pieces[:, start : start + n], whole[:, start : start + n])
        np.testing.assert_array_equal(pieces[:, start : start + n, 1:4], whole[:, start : start + n, 1:4])

    @pytest.mark.parametrize("equalise", ["none", "histogram"])
    @pytest.mark.parametrize("kind", ["zscore", "unit", "symmetric"])
    def test_measured_in_pieces_or_at_once(self, kind, equalise, monkeypatch):
        data = (1000 + random_data((11, 20, 20)) / 7).astype(np.float32)
        settings = PreparationSettings(normalisation=kind, equalise=equalise)
        at_once = prepare(scan_of(data), settings)
        monkeypatch.setattr(module, "_PIECE_VOXELS", 900)
        np.testing.assert_allclose(prepare(scan_of(data), settings), at_once, atol=2e-5)

    def test_a_scan_larger_than_the_memory_is_read_where_it_is_asked_for(self):
        import dask
        import dask.array

        data = random_data((12, 16, 16), np.int16)
        read = []

        def block(block_info=None):
            (start, stop), *_ = block_info[None]["array-location"]
            read.append(start)
            return data[start:stop]

        lazy = dask.array.map_blocks(block, chunks=((2,) * 6, (16,), (16,)), dtype=np.int16, meta=data[:0])
        with dask.config.set(scheduler="synchronous"):
            prepared = PreparedScan(scan_of(lazy, "zyx", 0), PreparationSettings())
            prepared._layers.clear()
            read.clear()
            found = prepared[:, 4:6]
        assert set(read) == {4}
        np.testing.assert_allclose(found, prepare(scan_of(data), PreparationSettings())[:, 4:6], atol=1e-6)

    def test_it_is_indexed_by_planes_only(self):
        prepared = PreparedScan(scan_of(random_data((4, 8, 8))), PreparationSettings())
        for key in ((0, 1), (slice(None), slice(0, 4, 2))):
            with pytest.raises(IndexError):
                prepared[key]


def test_quantiles_tell_kinds_of_scans_apart_whatever_their_units():
    random = np.random.default_rng(0)
    smooth = random.normal(500, 20, (6, 40, 40))
    sparse = np.where(random.random((6, 40, 40)) < 0.05, 300.0, random.exponential(5, (6, 40, 40)))
    one, scaled, other = (
        intensity_quantiles(PreparedScan(scan_of(data.astype(np.float32)), PreparationSettings()))
        for data in (smooth, 7 * smooth + 3000, sparse)
    )
    assert np.abs(one - scaled).mean() < 0.01
    assert np.abs(one - other).mean() > 0.3
