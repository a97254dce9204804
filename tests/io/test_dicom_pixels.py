"""Stored numbers to values: slopes, signs, bits, colours, codecs (rows 10-12, 16)."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from napari_unet.domain.errors import ScanError
from napari_unet.io.reading import ReadOptions
from napari_unet.io.registry import read_scan, read_with
from tests.io.dicom_files import SAGITTAL, dataset, edit, set_pixels, volume, write_picture, write_series


class TestSlope:
    def test_whole_numbers_stay_integers(self, tmp_path):
        array = volume((4, 6, 5), 0, 4000).astype(np.uint16)
        scan = read_scan(write_series(tmp_path / "s", array, RescaleIntercept=-1024))
        assert scan.data.dtype == np.int16
        np.testing.assert_array_equal(scan.data, array.astype(int) - 1024)

    @pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL])
    def test_wider_where_they_need_it(self, tmp_path, orientation):
        array = np.arange(65536, dtype=np.uint16).reshape(4, 128, 128)
        folder = write_series(tmp_path / "s", array, RescaleIntercept=-1024, orientation=orientation)
        scan = read_scan(folder)
        assert scan.data.dtype == np.int32
        source = scan.geometry.axis_map.to_source(scan.data)
        np.testing.assert_array_equal(source, array.astype(int) - 1024)

    def test_small_numbers_widen_too(self, tmp_path):
        array = volume((4, 6, 5), 0, 255).astype(np.uint8)
        scan = read_scan(write_series(tmp_path / "s", array, RescaleIntercept=-100, RescaleSlope=3))
        assert scan.data.dtype == np.int16
        np.testing.assert_array_equal(scan.data, array * 3.0 - 100)

    @pytest.mark.parametrize("whole", [True, False])
    def test_row_10_one_per_slice(self, tmp_path, whole):
        array = volume((6, 7, 8), 0, 900)
        slopes = np.array([1, 2, 3, 4, 5, 6]) * (1 if whole else 0.37)
        intercepts = np.arange(6) * (-10 if whole else 0.25)

        def change(image, k):
            image.RescaleSlope, image.RescaleIntercept = str(slopes[k])[:16], str(intercepts[k])

        scan = read_scan(write_series(tmp_path / "s", array, change=change))
        assert scan.data.dtype == (np.int16 if whole else np.float32)
        np.testing.assert_allclose(
            scan.data, array * slopes[:, None, None] + intercepts[:, None, None], rtol=1e-6, atol=1e-6
        )

    def test_row_11_zero_or_missing(self, tmp_path):
        with pytest.raises(ScanError, match=r"000\.dcm has a rescale slope of 0"):
            read_scan(write_series(tmp_path / "a", volume(), RescaleSlope=0))
        folder = write_series(tmp_path / "b", volume(), RescaleSlope=None, RescaleIntercept=None)
        scan = read_scan(folder)
        assert scan.data.dtype == np.int16
        np.testing.assert_array_equal(scan.data, volume())

    def test_values_through_a_table(self, tmp_path):
        folder = write_series(
            tmp_path / "s", volume((3, 4, 5), 0, 8).astype(np.uint8), RescaleSlope=None, RescaleIntercept=None
        )
        table = pydicom.Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [8, 0, 16], "US"
        table.LUTData = (np.arange(8, dtype="<u2") ** 2 * 100).tobytes()
        table["LUTData"].VR = "OW"
        for path in folder.iterdir():
            edit(path, ModalityLUTSequence=[table])
        np.testing.assert_array_equal(read_scan(folder).data, volume((3, 4, 5), 0, 8).astype(int) ** 2 * 100)


def test_row_12_monochrome1_keeps_its_values(tmp_path):
    scan = read_scan(write_series(tmp_path / "s", volume(), PhotometricInterpretation="MONOCHROME1"))
    assert scan.inverted
    np.testing.assert_array_equal(scan.data, volume())


class TestColour:
    """Row 16."""

    def test_rgb(self, tmp_path):
        array = volume((9, 8, 3), 0, 255).astype(np.uint8)
        scan = read_scan(write_picture(tmp_path / "a.dcm", array))
        assert (scan.axes, scan.is_rgb, scan.window) == ("yxc", True, None)
        np.testing.assert_array_equal(scan.data, array)

    def test_grey_stored_as_rgb(self, tmp_path):
        grey = volume((1, 9, 8), 0, 255).astype(np.uint8)[0]
        scan = read_scan(write_picture(tmp_path / "a.dcm", np.stack([grey] * 3, axis=-1)))
        assert scan.axes == "yx"
        np.testing.assert_array_equal(scan.data, grey)

    def test_planes_of_colour(self, tmp_path):
        array = volume((9, 8, 3), 0, 255).astype(np.uint8)
        path = write_picture(tmp_path / "a.dcm", array)
        edit(path, PlanarConfiguration=1, PixelData=np.ascontiguousarray(np.moveaxis(array, 2, 0)).tobytes())
        np.testing.assert_array_equal(read_scan(path).data, array)

    def test_a_palette(self, tmp_path):
        indices = volume((1, 9, 8), 0, 4).astype(np.uint8)[0]
        colours = np.array([[0, 0, 0], [255, 0, 0], [10, 200, 30], [255, 255, 255]], np.uint8)
        image = dataset("1.2.840.10008.5.1.4.1.1.7")
        set_pixels(image, indices)
        image.PhotometricInterpretation = "PALETTE COLOR"
        for name, column in zip(("Red", "Green", "Blue"), colours.T, strict=True):
            setattr(image, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
            setattr(image, f"{name}PaletteColorLookupTableData", (column.astype("<u2") * 257).tobytes())
        image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(read_scan(tmp_path / "a.dcm").data, colours[indices])
        mask = read_with(tmp_path / "a.dcm", ReadOptions(as_mask=True))
        np.testing.assert_array_equal(mask.data, indices)

    def test_a_stack_of_colour(self, tmp_path):
        array = volume((4, 9, 24), 0, 255).astype(np.uint8).reshape(4, 9, 8, 3)
        scan = read_scan(write_series(tmp_path / "s", array, orientation=SAGITTAL))
        assert scan.axes == "zyxc"
        np.testing.assert_array_equal(scan.geometry.axis_map.to_source(scan.data), array)


class TestBits:
    def test_overlays_in_high_bits_are_no_part_of_the_value(self, tmp_path):
        array = volume((3, 6, 5), 0, 4095).astype(np.uint16)
        folder = write_series(tmp_path / "s", array | 0x8000, BitsStored=12, HighBit=11)
        np.testing.assert_array_equal(read_scan(folder).data, array)

    def test_a_sign_inside_the_word(self, tmp_path):
        array = volume((3, 6, 5), -2000, 2000)
        folder = write_series(tmp_path / "s", array & 0x0FFF, BitsStored=12, HighBit=11)
        np.testing.assert_array_equal(read_scan(folder).data, array)

    def test_signed_and_unsigned_in_one_series(self, tmp_path):
        array = volume((4, 6, 5), 0, 60000)

        def change(image, k):
            if k == 2:
                set_pixels(image, volume((4, 6, 5), 0, 900).astype(np.uint16)[2] + 40000)

        scan = read_scan(write_series(tmp_path / "s", array, change=change))
        assert scan.data[2].min() >= 40000
        np.testing.assert_array_equal(scan.data[1], array[1])

    def test_floats(self, tmp_path):
        folder = write_series(tmp_path / "s", volume((3, 6, 5)))
        values = np.random.default_rng(0).random((3, 6, 5)).astype(np.float32)
        values[1, 2, 3] = np.nan
        for path, frame in zip(sorted(folder.iterdir()), values, strict=True):
            image = pydicom.dcmread(path)
            del image.PixelData
            image.BitsAllocated, image.FloatPixelData = 32, frame.tobytes()
            image.save_as(path)
        scan = read_scan(folder)
        assert scan.data.dtype == np.float32
        assert any("NaN" in line for line in scan.warnings)
        np.testing.assert_array_equal(scan.data[0], values[0])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("signed", [True, False])
def test_lossless_codecs(tmp_path, syntax, signed):
    array = volume((3, 64, 72), -900 if signed else 0, 2000).astype(np.int16 if signed else np.uint16)
    folder = write_series(tmp_path / "s", array)
    if syntax == JPEGLSLossless and signed:
        pytest.skip("pydicom's encoder of JPEG-LS does not take signed numbers")
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        image.compress(syntax)
        image.save_as(path)
    np.testing.assert_array_equal(read_scan(folder).data, array)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_other_encodings(tmp_path, syntax):
    folder = write_series(tmp_path / "s", volume())
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        if syntax.endswith(".2.2"):
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        image.file_meta.TransferSyntaxUID = syntax
        bare = pydicom.Dataset()
        bare.update({element.tag: element for element in image})
        bare.file_meta = image.file_meta
        pydicom.dcmwrite(path, bare, enforce_file_format=True)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.data, volume())
    if not syntax.endswith(".99"):
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan.data)
