from contextlib import suppress

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import ScanError, VolumeChoiceError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.io.registry import read_scan
from tests.io.nifti_files import placed_affine, random_array, save_nifti
from tests.io.twins import itk_image, save_itk, save_nrrd

ARRAY = random_array((5, 6, 7))


def edited(path, old, new):
    """Replace a piece of a header."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


class TestPlace:
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "IPR"])
    @pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
    @pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
    def test_as_the_twins_in_other_formats(self, tmp_path, codes, degrees, name):
        affine = placed_affine(codes=codes, degrees=degrees)
        scan = read_scan(save_itk(tmp_path / name, ARRAY, affine))
        for twin in (
            read_scan(save_nifti(tmp_path / "a.nii", ARRAY, affine)),
            read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine)),
        ):
            np.testing.assert_array_equal(scan.data, twin.data)
            np.testing.assert_allclose(scan.geometry.affine, twin.geometry.affine, atol=2e-6)
            assert scan.geometry.axis_map == twin.geometry.axis_map
            assert (scan.slice_axis, scan.warnings) == (twin.slice_axis, twin.warnings)
        assert scan.geometry.source_orientation == codes
        assert bool(scan.source_files) == name.endswith("mhd")

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        codes=st.sampled_from(["RAS", "LPS", "LAS", "PSR", "SAL", "AIL"]),
        degrees=st.tuples(*[st.floats(-30, 30)] * 3),
        spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
        shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 5)),
    )
    def test_every_voxel_keeps_its_place_in_the_world(self, tmp_path, codes, degrees, spacing, shape):
        array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        affine = placed_affine(spacing, degrees=degrees, codes=codes, shape=shape)
        path = save_itk(tmp_path / "a.mha", array, affine)
        scan, image = read_scan(path), SimpleITK.ReadImage(str(path))
        for index in np.ndindex(*shape):
            here = np.argwhere(scan.data == image[index])[0]
            world = image.TransformIndexToPhysicalPoint([int(i) for i in index])
            np.testing.assert_allclose((scan.geometry.affine @ [*here, 1])[:3], world, atol=1e-6)
            np.testing.assert_allclose(world, (LPS_FROM_RAS @ affine @ [*index, 1])[:3], atol=1e-6)

    def test_a_header_that_says_nothing_about_the_place(self, tmp_path):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine(codes="LPS"))
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(line for line in lines if not line.startswith((b"Offset", b"TransformMatrix"))))
        scan = read_scan(path)
        assert scan.geometry.affine is None
        np.testing.assert_allclose(scan.geometry.spacing, (2.5, 1.1, 0.9))
        assert any("position unknown" in w for w in scan.warnings)
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"ElementSpacing")))
        assert read_scan(path).geometry.spacing is None

    @pytest.mark.parametrize(("unit", "factor"), [(b"um", 1e-3), (b"cm", 10), (b"mm", 1)])
    def test_units(self, tmp_path, unit, factor):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine())
        scan = read_scan(edited(path, b"NDims = 3", b"NDims = 3\nDistanceUnits = " + unit))
        np.testing.assert_allclose(scan.geometry.spacing, np.array([2.5, 1.1, 0.9]) * factor)
        np.testing.assert_allclose(scan.geometry.affine[2, 3], 7 * factor)
        assert bool(scan.warnings) == (factor != 1)

    @pytest.mark.parametrize("size", [b"0", b"nan"])
    def test_no_usable_spacing(self, tmp_path, size):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine((1, 2, 3)))
        with pytest.raises(ScanError, match="no usable voxel size"):
            read_scan(edited(path, b"ElementSpacing = 1 ", b"ElementSpacing = " + size + b" "))


class TestVoxels:
    @pytest.mark.parametrize("compressed", [True, False])
    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "f4", "f8"])
    def test_types(self, tmp_path, dtype, compressed):
        array = ARRAY.astype(dtype)
        scan = read_scan(save_itk(tmp_path / "a.mha", array, placed_affine(codes="LPS"), compressed))
        np.testing.assert_array_equal(scan.data.transpose(), array)
        assert scan.data.dtype == ("float32" if dtype in ("f4", "f8") else dtype)

    def test_big_endian_and_text(self, tmp_path):
        header = "ObjectType = Image\nNDims = 3\nDimSize = 5 6 7\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
        big = header + "BinaryData = True\nBinaryDataByteOrderMSB = True\nElementDataFile = LOCAL\n"
        (tmp_path / "big.mha").write_bytes(big.encode() + ARRAY.astype(">i2").tobytes(order="F"))
        text = header + "BinaryData = False\nElementDataFile = LOCAL\n"
        (tmp_path / "text.mha").write_text(text + " ".join(map(str, ARRAY.ravel(order="F"))))
        for name in ("big.mha", "text.mha"):
            np.testing.assert_array_equal(read_scan(tmp_path / name).data, ARRAY.transpose())

    def test_colour_and_vectors(self, tmp_path):
        array = random_array((7, 6, 5, 3), np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(tmp_path / "rgb.mha"))
        scan = read_scan(tmp_path / "rgb.mha")
        assert scan.axes == "zyxc"
        np.testing.assert_array_equal(scan.data, array)
        vectors = array.astype(np.float32)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(vectors, isVector=True), str(tmp_path / "vector.mha"))
        with pytest.raises(VolumeChoiceError, match="3 volumes"):
            read_scan(tmp_path / "vector.mha")
        np.testing.assert_array_equal(read_scan(tmp_path / "vector.mha", volume=2).data, array[..., 2])

    def test_a_time_point_has_to_be_chosen(self, tmp_path):
        affine = placed_affine(codes="RAS")
        frames = [itk_image(random_array((5, 6, 7), seed=seed), affine) for seed in range(3)]
        SimpleITK.WriteImage(SimpleITK.JoinSeries(frames), str(tmp_path / "t.mha"))
        with pytest.raises(VolumeChoiceError, match="3 volumes"):
            read_scan(tmp_path / "t.mha")
        scan = read_scan(tmp_path / "t.mha", volume=2)
        one = read_scan(save_itk(tmp_path / "one.mha", random_array((5, 6, 7), seed=2), affine))
        np.testing.assert_array_equal(scan.data, one.data)
        np.testing.assert_allclose(scan.geometry.affine, one.geometry.affine)

    def test_one_slice_is_a_picture(self, tmp_path):
        scan = read_scan(save_itk(tmp_path / "a.mha", ARRAY[:, :, :1], placed_affine(codes="LPS")))
        assert (scan.axes, scan.slice_axis) == ("yx", None)
        np.testing.assert_array_equal(scan.data, ARRAY[:, :, 0].T)
        image = SimpleITK.GetImageFromArray(ARRAY[:, :, 0].T)
        image.SetSpacing((2, 3))
        SimpleITK.WriteImage(image, str(tmp_path / "flat.mha"))
        scan = read_scan(tmp_path / "flat.mha")
        np.testing.assert_array_equal(scan.data, ARRAY[:, :, 0].T)
        assert scan.geometry.spacing == (3, 2)

    def test_modality(self, tmp_path):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine())
        assert read_scan(path).modality is None
        assert read_scan(edited(path, b"NDims = 3", b"NDims = 3\nModality = MET_MOD_CT")).modality == "CT"


class TestDetached:
    def test_one_file_per_slice(self, tmp_path):
        for number in range(7):
            (tmp_path / f"s{number:02d}.raw").write_bytes(ARRAY[:, :, number].tobytes(order="F"))
        header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 5 6 7\nElementType = MET_SHORT\n"
        names = [f"s{number:02d}.raw" for number in range(7)]
        (tmp_path / "pattern.mhd").write_text(header + "ElementDataFile = s%02d.raw 0 6 1\n")
        (tmp_path / "list.mhd").write_text(header + "ElementDataFile = LIST\n" + "\n".join(names))
        for name in ("pattern.mhd", "list.mhd"):
            scan = read_scan(tmp_path / name)
            np.testing.assert_array_equal(scan.data, ARRAY.transpose())
            assert [path.name for path in scan.source_files] == names

    def test_a_header_in_the_data_file(self, tmp_path):
        path = save_itk(tmp_path / "a.mhd", ARRAY, placed_affine(codes="LPS"), compressed=False)
        (tmp_path / "a.raw").write_bytes(b"something" + (tmp_path / "a.raw").read_bytes())
        for size in (b"9", b"-1"):
            text = path.read_bytes().replace(b"HeaderSize = 9\n", b"")
            path.write_bytes(text.replace(b"NDims = 3\n", b"NDims = 3\nHeaderSize = " + size + b"\n"))
            np.testing.assert_array_equal(read_scan(path).data.transpose(), ARRAY)

    @pytest.mark.parametrize(("compressed", "gone"), [(False, "a.raw"), (True, "a.zraw")])
    def test_a_missing_data_file_is_named(self, tmp_path, compressed, gone):
        path = save_itk(tmp_path / "a.mhd", ARRAY, placed_affine(), compressed)
        (tmp_path / gone).unlink()
        with pytest.raises(ScanError, match=rf"keeps its voxels in {gone}, which is not there"):
            read_scan(path)


class TestDamage:
    @pytest.mark.parametrize("compressed", [True, False])
    def test_cut_short(self, tmp_path, compressed):
        whole = save_itk(tmp_path / "a.mha", ARRAY, placed_affine(), compressed).read_bytes()
        for keep in [0, 1, 20, 200, len(whole) // 2, len(whole) - 9, len(whole) - 1]:
            (tmp_path / "cut.mha").write_bytes(whole[:keep])
            with pytest.raises(ScanError, match=r"cut\.mha"):
                read_scan(tmp_path / "cut.mha")

    def test_a_changed_byte_in_packed_voxels(self, tmp_path):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine())
        data = bytearray(path.read_bytes())
        data[-100] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(ScanError, match="damaged"):
            read_scan(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (b"DimSize = 5 6 7", b"DimSize = 90000 90000 90000", "cut short"),
            (b"DimSize = 5 6 7", b"DimSize = -5 6 7", "no voxels"),
            (b"DimSize = 5 6 7", b"DimSize = 0 6 7", "no voxels"),
            (b"NDims = 3", b"NDims = 40", "damaged"),
            (b"MET_SHORT", b"MET_FOO", "not numbers"),
            (b"TransformMatrix = 1 0 0", b"TransformMatrix = 0 0 0", "spacing of 0"),
            (b"ElementDataFile = LOCAL", b"Element", "ElementDataFile"),
        ],
    )
    def test_headers_that_make_no_sense(self, tmp_path, capfd, old, new, message):
        path = save_itk(tmp_path / "a.mha", ARRAY, placed_affine(codes="LPS"))
        with pytest.raises(ScanError, match=message):
            read_scan(edited(path, old, new))
        assert capfd.readouterr() == ("", "")

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_bytes_are_a_scan_or_a_sentence(self, tmp_path, data):
        whole = bytearray(save_itk(tmp_path / "a.mha", ARRAY, placed_affine(), compressed=False).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
        (tmp_path / "fuzz.mha").write_bytes(whole)
        with suppress(ScanError):
            read_scan(tmp_path / "fuzz.mha")
