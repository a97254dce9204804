import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_unet.domain.errors import ScanError, VolumeChoiceError
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import random_array


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_picture_and_a_stack(tmp_path, dtype, compression):
    stack = random_array((5, 32, 40), dtype)
    tifffile.imwrite(tmp_path / "stack.tif", stack, compression=compression, photometric="minisblack")
    scan = read_scan(tmp_path / "stack.tif")
    assert (scan.axes, scan.slice_axis, scan.geometry.spacing, scan.warnings) == ("zyx", 0, None, ())
    np.testing.assert_array_equal(scan.data, stack)
    assert scan.data.dtype == dtype

    tifffile.imwrite(tmp_path / "one.tiff", stack[0], compression=compression)
    scan = read_scan(tmp_path / "one.tiff")
    assert (scan.axes, scan.slice_axis) == ("yx", None)
    np.testing.assert_array_equal(scan.data, stack[0])


def test_pages_written_one_by_one_are_a_stack(tmp_path):
    pages = [Image.fromarray(random_array((20, 30), np.uint8, seed)) for seed in range(4)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert read_scan(tmp_path / "pages.tif").data.shape == (4, 20, 30)


def test_big_endian_is_native_afterwards(tmp_path):
    stack = random_array((5, 32, 40), np.uint16)
    tifffile.imwrite(tmp_path / "be.tif", stack, byteorder=">", photometric="minisblack")
    data = read_scan(tmp_path / "be.tif").data
    assert data.dtype.isnative
    assert data.flags.writeable
    np.testing.assert_array_equal(data, stack)


def test_colour(tmp_path):
    rgb = random_array((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    scan = read_scan(tmp_path / "rgb.tif")
    assert scan.axes == "yxc"
    np.testing.assert_array_equal(scan.data, rgb)

    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_scan(tmp_path / "planar.tif").data, rgb)

    stack = random_array((4, 20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="rgb")
    scan = read_scan(tmp_path / "stack.tif")
    assert scan.axes == "zyxc"
    np.testing.assert_array_equal(scan.data, stack)


def test_a_palette_is_looked_up(tmp_path):
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, 1], colormap[:, 2] = (65535, 0, 0), (0, 65535, 0)
    indices = random_array((20, 30), np.uint8) % 3
    tifffile.imwrite(tmp_path / "p.tif", indices, photometric="palette", colormap=colormap)
    scan = read_scan(tmp_path / "p.tif")
    assert scan.axes == "yxc"
    assert scan.data[indices == 2][0].tolist() == [0, 255, 0]


def test_fluorescence_channels_come_last(tmp_path):
    channels = random_array((2, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "c.ome.tif", channels, metadata={"axes": "CYX"})
    scan = read_scan(tmp_path / "c.ome.tif")
    assert scan.axes == "yxc"
    np.testing.assert_array_equal(scan.data, np.moveaxis(channels, 0, -1))


def test_a_time_point_has_to_be_chosen(tmp_path):
    frames = random_array((6, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "t.tif", frames, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ScanError, match=r"6 volumes.*--volume"):
        read_scan(tmp_path / "t.tif")
    np.testing.assert_array_equal(read_scan(tmp_path / "t.tif", volume=4).data, frames[4])


class TestSpacing:
    @pytest.mark.parametrize(
        ("unit", "factor"), [("mm", 1), ("um", 1e-3), ("\\u00B5m", 1e-3), ("cm", 10), ("inch", 25.4)]
    )
    def test_imagej(self, tmp_path, unit, factor):
        stack = random_array((5, 20, 30), np.uint8)
        tifffile.imwrite(
            tmp_path / "ij.tif",
            stack,
            imagej=True,
            resolution=(1 / 0.25, 1 / 0.5),
            metadata={"axes": "ZYX", "spacing": 2.5, "unit": unit},
        )
        spacing = read_scan(tmp_path / "ij.tif").geometry.spacing
        np.testing.assert_allclose(spacing, np.array([2.5, 0.5, 0.25]) * factor, rtol=1e-6)

    @pytest.mark.parametrize("metadata", [{"spacing": 2.5, "unit": "pixel"}, {"spacing": 2.5}, {"unit": "mm"}])
    def test_imagej_without_a_length_for_every_axis_is_unknown(self, tmp_path, metadata):
        stack = random_array((5, 20, 30), np.uint8)
        tifffile.imwrite(
            tmp_path / "ij.tif", stack, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", **metadata}
        )
        assert read_scan(tmp_path / "ij.tif").geometry.spacing is None

    def test_ome_defaults_to_micrometres(self, tmp_path):
        sizes = {"PhysicalSizeX": 250.0, "PhysicalSizeY": 500.0, "PhysicalSizeZ": 3.0, "PhysicalSizeZUnit": "mm"}
        tifffile.imwrite(tmp_path / "s.ome.tif", random_array((5, 20, 30)), metadata={"axes": "ZYX", **sizes})
        np.testing.assert_allclose(read_scan(tmp_path / "s.ome.tif").geometry.spacing, (3, 0.5, 0.25))

    @pytest.mark.parametrize(
        ("unit", "mm"), [("nm", 1e-6), ("µm", 1e-3), ("mm", 1), ("cm", 10), ("m", 1e3), ("Å", 1e-7), ("in", 25.4)]
    )
    def test_ome_units(self, tmp_path, unit, mm):
        sizes = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (2.0, 3.0, 4.0), strict=True)}
        units = {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
        tifffile.imwrite(tmp_path / "s.ome.tif", random_array((5, 20, 30)), metadata={"axes": "ZYX", **sizes, **units})
        np.testing.assert_allclose(read_scan(tmp_path / "s.ome.tif").geometry.spacing, np.array([4, 3, 2]) * mm)

    @pytest.mark.parametrize("changed", [{"PhysicalSizeZUnit": "pixel"}, {"PhysicalSizeZ": 0.0}])
    def test_ome_sizes_that_are_no_lengths(self, tmp_path, changed):
        sizes = {"PhysicalSizeX": 2.0, "PhysicalSizeY": 3.0, "PhysicalSizeZ": 4.0, **changed}
        tifffile.imwrite(tmp_path / "s.ome.tif", random_array((5, 20, 30)), metadata={"axes": "ZYX", **sizes})
        assert read_scan(tmp_path / "s.ome.tif").geometry.spacing is None

    def test_ome_sizes_of_one_time_point(self, tmp_path):
        array = random_array((3, 5, 20, 30))
        sizes = {"PhysicalSizeX": 2000.0, "PhysicalSizeY": 3000.0, "PhysicalSizeZ": 4000.0}
        tifffile.imwrite(tmp_path / "t.ome.tif", array, metadata={"axes": "TZYX", **sizes})
        with pytest.raises(VolumeChoiceError, match="3 volumes") as caught:
            read_scan(tmp_path / "t.ome.tif")
        assert caught.value.n_volumes == 3
        scan = read_scan(tmp_path / "t.ome.tif", volume=2)
        np.testing.assert_array_equal(scan.data, array[2])
        assert scan.geometry.spacing == (4, 3, 2)

    def test_ome_channels_of_a_stack(self, tmp_path):
        array = random_array((5, 2, 20, 30))
        sizes = {"PhysicalSizeX": 2000.0, "PhysicalSizeY": 3000.0, "PhysicalSizeZ": 4000.0}
        tifffile.imwrite(tmp_path / "c.ome.tif", array, metadata={"axes": "ZCYX", **sizes})
        scan = read_scan(tmp_path / "c.ome.tif")
        assert (scan.axes, scan.geometry.spacing) == ("zyxc", (4, 3, 2))
        np.testing.assert_array_equal(scan.data, np.moveaxis(array, 1, -1))

    def test_thick_slices_along_another_axis(self, tmp_path):
        sizes = {f"PhysicalSize{a}": s for a, s in zip("XYZ", (4000.0, 1000.0, 1000.0), strict=True)}
        tifffile.imwrite(tmp_path / "s.ome.tif", random_array((5, 20, 30)), metadata={"axes": "ZYX", **sizes})
        assert read_scan(tmp_path / "s.ome.tif").slice_axis == 2

    def test_dots_per_inch_are_for_printers(self, tmp_path):
        tifffile.imwrite(tmp_path / "dpi.tif", random_array((20, 30)), resolution=(72, 72), resolutionunit="inch")
        assert read_scan(tmp_path / "dpi.tif").geometry.spacing is None


class TestOddities:
    def test_images_of_several_kinds(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "two.tif") as file:
            file.write(random_array((20, 30), np.uint8))
            file.write(random_array((10, 15), np.uint16))
        scan = read_scan(tmp_path / "two.tif")
        assert scan.data.shape == (20, 30)
        assert any("the first was read" in w for w in scan.warnings)

    def test_a_thumbnail_is_no_oddity(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "two.tif") as file:
            file.write(random_array((20, 30), np.uint8))
            file.write(random_array((10, 15), np.uint8), subfiletype=1)
        assert read_scan(tmp_path / "two.tif").warnings == ()

    def test_white_is_zero(self, tmp_path):
        tifffile.imwrite(tmp_path / "w.tif", random_array((20, 30), np.uint8), photometric="miniswhite")
        assert any("inverted" in w for w in read_scan(tmp_path / "w.tif").warnings)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, tmp_path, orientation):
        array = random_array((20, 30), np.uint8)
        tifffile.imwrite(tmp_path / "o.tif", array, extratags=[(274, "H", 1, orientation, True)])
        scan = read_scan(tmp_path / "o.tif")
        turned = {
            **{1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1]},
            **{5: array.T, 6: np.rot90(array, -1), 7: array.T[::-1, ::-1], 8: np.rot90(array)},
        }
        np.testing.assert_array_equal(scan.data, turned[orientation])
        assert bool(scan.warnings) == (orientation != 1)

    def test_spacing_turns_along(self, tmp_path):
        metadata = {"axes": "YX", "unit": "mm"}
        tags = [(274, "H", 1, 6, True)]
        array = random_array((20, 30), np.uint8)
        tifffile.imwrite(tmp_path / "o.tif", array, imagej=True, resolution=(4, 2), metadata=metadata, extratags=tags)
        assert read_scan(tmp_path / "o.tif").geometry.spacing == (0.25, 0.5)

    def test_print_colours_are_refused(self, tmp_path):
        tifffile.imwrite(tmp_path / "cmyk.tif", random_array((20, 30, 4), np.uint8), photometric="separated")
        with pytest.raises(ScanError, match="SEPARATED"):
            read_scan(tmp_path / "cmyk.tif")

    def test_unknown_axes(self, tmp_path):
        tifffile.imwrite(tmp_path / "5d.tif", random_array((2, 3, 4, 20, 30), np.uint8), photometric="minisblack")
        with pytest.raises(ScanError, match="axes that are not understood"):
            read_scan(tmp_path / "5d.tif")

    @pytest.mark.parametrize("keep", [0, 4, 8, 200, 700])
    def test_cut_short(self, tmp_path, keep):
        tifffile.imwrite(tmp_path / "a.tif", random_array((20, 30), np.uint16), compression="lzw")
        (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:keep])
        with pytest.raises(ScanError, match=r"cut\.tif is damaged"):
            read_scan(tmp_path / "cut.tif")

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    @pytest.mark.parametrize(
        "how",
        [
            {"imagej": True, "metadata": {"axes": "ZYX"}},
            {"ome": True, "metadata": {"axes": "ZYX"}},
            {"photometric": "minisblack", "metadata": None},
            {"photometric": "minisblack", "metadata": None, "compression": "lzw"},
            {"photometric": "minisblack", "compression": "zlib"},
            {"photometric": "minisblack", "bigtiff": True},
        ],
    )
    def test_a_stack_without_its_last_pages(self, tmp_path, how, share):
        stack = np.random.default_rng(0).integers(0, 255, (20, 32, 32), np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", stack, **how)
        assert read_scan(tmp_path / "a.tif").data.shape == (20, 32, 32)
        data = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "cut.tif").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ScanError, match=r"cut\.tif is damaged"):
            read_scan(tmp_path / "cut.tif")
