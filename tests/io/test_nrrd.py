import gzip
from contextlib import suppress

import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import ScanError, VolumeChoiceError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.io.masks import read_mask
from napari_unet.io.registry import read_scan, source_stem
from tests.io.nifti_files import placed_affine, random_array, save_nifti
from tests.io.twins import SPACES, save_itk, save_nrrd

ARRAY = random_array((5, 6, 7))


def write_text(path, *lines, data=b""):
    path.write_bytes("\n".join(["NRRD0005", *lines, "", ""]).encode() + data)
    return path


class TestPlace:
    @pytest.mark.parametrize("space", SPACES)
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "IPR"])
    @pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
    def test_as_the_nifti_twin_in_every_space(self, tmp_path, space, codes, degrees):
        affine = placed_affine(codes=codes, degrees=degrees)
        twin = read_scan(save_nifti(tmp_path / "a.nii", ARRAY, affine))
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine, space))
        np.testing.assert_array_equal(scan.data, twin.data)
        # NIfTI holds its matrix in single precision.
        np.testing.assert_allclose(scan.geometry.affine, twin.geometry.affine, atol=2e-6)
        np.testing.assert_allclose(scan.geometry.spacing, twin.geometry.spacing, rtol=1e-6)
        assert scan.geometry.axis_map == twin.geometry.axis_map
        assert scan.geometry.source_orientation == codes
        assert (scan.slice_axis, scan.warnings) == (twin.slice_axis, twin.warnings)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        space=st.sampled_from(list(SPACES)),
        codes=st.sampled_from(["RAS", "LPS", "LAS", "PSR", "SAL", "AIL"]),
        degrees=st.tuples(*[st.floats(-30, 30)] * 3),
        spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
        shear=st.floats(-0.2, 0.2),
        shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 5)),
    )
    def test_every_voxel_keeps_its_place_in_the_world(self, tmp_path, space, codes, degrees, spacing, shear, shape):
        affine = placed_affine(spacing, degrees=degrees, codes=codes, shape=shape)
        affine[:3, 2] += shear * affine[:3, 1]
        array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", array, affine, space))
        for index in np.ndindex(*shape):
            here = np.argwhere(scan.data == array[index])[0]
            world = LPS_FROM_RAS @ affine @ [*index, 1]
            np.testing.assert_allclose(scan.geometry.affine @ [*here, 1], world, atol=1e-6)

    @pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_what_itk_writes(self, tmp_path, name, compressed):
        affine = placed_affine(codes="PIR", degrees=(5, 6, 7))
        twin = read_scan(save_nrrd(tmp_path / "twin.nrrd", ARRAY, affine))
        scan = read_scan(save_itk(tmp_path / name, ARRAY, affine, compressed))
        np.testing.assert_array_equal(scan.data, twin.data)
        np.testing.assert_allclose(scan.geometry.affine, twin.geometry.affine, atol=1e-6)
        assert bool(scan.source_files) == name.endswith("nhdr")

    def test_spaces_that_name_no_side(self, tmp_path):
        affine = placed_affine(codes="LPS")
        named = read_scan(save_nrrd(tmp_path / "named.nrrd", ARRAY, affine))
        for space in ("3D-right-handed", "scanner-xyz"):
            # save_nrrd writes spaces that it does not know as LPS.
            scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine, space))
            np.testing.assert_allclose(scan.geometry.affine, named.geometry.affine)
            assert any("taken as LPS" in w for w in scan.warnings)
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine, "3D-left-handed"))
        assert scan.geometry.affine is None
        assert any("left and right are a guess" in w for w in scan.warnings)

    def test_a_space_that_has_only_a_dimension(self, tmp_path):
        path = save_nrrd(tmp_path / "a.nrrd", ARRAY, placed_affine(), space=None, space_dimension=3)
        scan = read_scan(path)
        assert scan.geometry.affine is None
        np.testing.assert_allclose(scan.geometry.spacing, (2.5, 1.1, 0.9))

    def test_units(self, tmp_path):
        affine = placed_affine()
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine, space_units=["um", "um", "um"]))
        np.testing.assert_allclose(scan.geometry.spacing, (2.5e-3, 1.1e-3, 0.9e-3))
        assert any("um: now in mm" in w for w in scan.warnings)
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine, space_units=["x", "x", "x"]))
        assert any("not known" in w for w in scan.warnings)

    def test_an_oblique_and_a_sheared_one_are_said_to_be(self, tmp_path):
        affine = placed_affine(degrees=(20, 0, 0))
        assert any("oblique by 20" in w for w in read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine)).warnings)
        affine = placed_affine()
        affine[:3, 2] += 0.3 * affine[:3, 1]
        assert any("sheared" in w for w in read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY, affine)).warnings)

    def test_without_a_space_only_the_spacing_is_known(self, tmp_path):
        nrrd.write(str(tmp_path / "a.nrrd"), ARRAY, {"spacings": [0.9, 1.1, 2.5]})
        scan = read_scan(tmp_path / "a.nrrd")
        assert (scan.geometry.affine, scan.geometry.spacing) == (None, (2.5, 1.1, 0.9))
        assert any("position unknown" in w for w in scan.warnings)
        np.testing.assert_array_equal(scan.data, ARRAY.transpose())
        nrrd.write(str(tmp_path / "b.nrrd"), ARRAY)
        assert read_scan(tmp_path / "b.nrrd").geometry.spacing is None

    @pytest.mark.parametrize("steps", [(0, 1, 1), (1, np.nan, 1)])
    def test_no_usable_spacing(self, tmp_path, steps):
        save_nrrd(tmp_path / "a.nrrd", ARRAY, np.diag([*steps, 1.0]))
        nrrd.write(str(tmp_path / "b.nrrd"), ARRAY, {"spacings": [float(step) for step in steps]})
        for name in ("a.nrrd", "b.nrrd"):
            with pytest.raises(ScanError):
                read_scan(tmp_path / name)


class TestVoxels:
    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
    @pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", "f8"])
    def test_encodings_and_types(self, tmp_path, encoding, dtype):
        array = ARRAY.astype(dtype)
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", array, placed_affine(codes="LPS"), encoding=encoding))
        np.testing.assert_array_equal(scan.data.transpose(), array)
        assert scan.data.dtype.isnative
        assert scan.data.flags.c_contiguous
        assert scan.data.dtype == ("float32" if dtype in ("f4", "f8") else np.dtype(dtype).newbyteorder("="))

    def test_values_that_are_not_finite_are_counted(self, tmp_path):
        array = ARRAY.astype(np.float32)
        array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", array, placed_affine()))
        assert np.isfinite(scan.data).all()
        assert any(w.startswith("2 voxels") for w in scan.warnings)

    def test_one_slice_is_a_picture(self, tmp_path):
        scan = read_scan(save_nrrd(tmp_path / "a.nrrd", ARRAY[:, :, :1], placed_affine(codes="LPS")))
        assert (scan.axes, scan.slice_axis) == ("yx", None)
        np.testing.assert_array_equal(scan.data, ARRAY[:, :, 0].T)
        np.testing.assert_allclose(scan.geometry.spacing, (1.1, 0.9))
        nrrd.write(str(tmp_path / "b.nrrd"), ARRAY[:, :, 0], {"spacings": [2.0, 3.0]})
        scan = read_scan(tmp_path / "b.nrrd")
        np.testing.assert_array_equal(scan.data, ARRAY[:, :, 0].T)
        assert scan.geometry.spacing == (3, 2)

    def test_colour(self, tmp_path):
        array = random_array((3, 5, 6, 7), np.uint8)
        directions = np.vstack([[np.nan] * 3, np.diag([1.0, 1, 2])])
        path = tmp_path / "a.nrrd"
        kinds = ["RGB-color", "domain", "domain", "domain"]
        save_nrrd(path, array, np.eye(4), space_directions=directions, kinds=kinds)
        scan = read_scan(path)
        assert scan.axes == "zyxc"
        np.testing.assert_array_equal(scan.data, array.transpose(3, 2, 1, 0))

    def test_an_axis_beside_those_of_space_has_to_be_chosen_from(self, tmp_path):
        affine, array = placed_affine(codes="RAS"), random_array((4, 5, 6, 7))
        one = read_scan(save_nrrd(tmp_path / "one.nrrd", array[2], affine))
        directions = np.vstack([[np.nan] * 3, (LPS_FROM_RAS @ affine)[:3, :3].T])
        path = tmp_path / "list.nrrd"
        save_nrrd(path, array, affine, space_directions=directions, kinds=["list", "domain", "domain", "domain"])
        with pytest.raises(VolumeChoiceError, match=r"4 volumes.*--volume N") as caught:
            read_scan(path)
        assert caught.value.n_volumes == 4
        scan = read_scan(path, volume=2)
        np.testing.assert_array_equal(scan.data, one.data)
        np.testing.assert_allclose(scan.geometry.affine, one.geometry.affine)

    def test_four_axes_without_a_word(self, tmp_path):
        array = random_array((5, 6, 7, 3))
        nrrd.write(str(tmp_path / "a.nrrd"), array)
        np.testing.assert_array_equal(read_scan(tmp_path / "a.nrrd", volume=1).data, array[..., 1].transpose())

    def test_two_further_axes_are_refused(self, tmp_path):
        nrrd.write(str(tmp_path / "a.nrrd"), random_array((2, 3, 4, 5, 6)))
        with pytest.raises(ScanError, match="axes that are not understood"):
            read_scan(tmp_path / "a.nrrd")

    def test_complex_numbers(self, tmp_path):
        save_nrrd(tmp_path / "a.nrrd", random_array((2, 5, 6)), np.eye(4), kinds=["complex", "domain", "domain"])
        with pytest.raises(ScanError, match="complex"):
            read_scan(tmp_path / "a.nrrd")


class TestDetached:
    def test_several_files(self, tmp_path):
        for number in range(7):
            (tmp_path / f"slice{number:02d}.raw").write_bytes(ARRAY[:, :, number].tobytes(order="F"))
        common = ["type: int16", "dimension: 3", "sizes: 5 6 7", "endian: little", "encoding: raw"]
        write_text(tmp_path / "pattern.nhdr", *common, "data file: slice%02d.raw 0 6 1")
        names = [f"slice{number:02d}.raw" for number in range(7)]
        (tmp_path / "list.nhdr").write_text("\n".join(["NRRD0004", *common, "data file: LIST", *names]))
        for name in ("pattern.nhdr", "list.nhdr"):
            scan = read_scan(tmp_path / name)
            np.testing.assert_array_equal(scan.data, ARRAY.transpose())
            assert [path.name for path in scan.source_files] == names

    def test_skips(self, tmp_path):
        (tmp_path / "a.raw").write_bytes(b"one line\nxxxx" + ARRAY.tobytes(order="F"))
        common = ["type: int16", "dimension: 3", "sizes: 5 6 7", "endian: little", "data file: a.raw"]
        for skip in (["line skip: 1", "byte skip: 4"], ["byte skip: -1"]):
            write_text(tmp_path / "a.nhdr", *common, "encoding: raw", *skip)
            np.testing.assert_array_equal(read_scan(tmp_path / "a.nhdr").data, ARRAY.transpose())
        packed = b"xxxx" + ARRAY.tobytes(order="F")
        (tmp_path / "a.raw").write_bytes(gzip.compress(packed[:100]) + gzip.compress(packed[100:]))
        write_text(tmp_path / "a.nhdr", *common, "encoding: gzip", "byte skip: 4")
        np.testing.assert_array_equal(read_scan(tmp_path / "a.nhdr").data, ARRAY.transpose())

    def test_a_missing_data_file_is_named(self, tmp_path):
        path = save_itk(tmp_path / "a.nhdr", ARRAY, placed_affine(), compressed=False)
        (tmp_path / "a.raw").unlink()
        with pytest.raises(ScanError, match=r"keeps its voxels in a\.raw, which is not there"):
            read_scan(path)


class TestSegmentations:
    def test_the_stem_of_a_segmentation(self):
        assert source_stem("brain.seg.nrrd") == "brain"

    def test_one_layer(self, tmp_path):
        array = random_array((5, 6, 7), np.uint8) % 3
        path = save_nrrd(tmp_path / "a.seg.nrrd", array, placed_affine(codes="LPS"), Segment0_ID="x")
        mask = read_mask(path)
        assert mask.data.dtype == np.uint8
        np.testing.assert_array_equal(mask.data, array.transpose())

    def test_segments_that_overlap(self, tmp_path):
        array = random_array((2, 5, 6, 7), np.uint8) % 3
        directions = np.vstack([[np.nan] * 3, np.eye(3)])
        path = tmp_path / "a.seg.nrrd"
        kinds = ["list", "domain", "domain", "domain"]
        save_nrrd(path, array, np.eye(4), space_directions=directions, kinds=kinds, Segment0_ID="x")
        with pytest.raises(VolumeChoiceError, match="segments that overlap, in 2 layers"):
            read_mask(path)


class TestDamage:
    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
    def test_cut_short(self, tmp_path, encoding):
        whole = save_nrrd(tmp_path / "a.nrrd", ARRAY, placed_affine(), encoding=encoding).read_bytes()
        for keep in [0, 1, 4, 60, 200, len(whole) // 2, len(whole) - 9]:
            (tmp_path / "cut.nrrd").write_bytes(whole[:keep])
            with pytest.raises(ScanError, match=r"cut\.nrrd"):
                read_scan(tmp_path / "cut.nrrd")

    @pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
    def test_a_changed_byte_in_packed_voxels(self, tmp_path, encoding):
        whole = bytearray(save_nrrd(tmp_path / "a.nrrd", ARRAY, placed_affine(), encoding=encoding).read_bytes())
        whole[-40] ^= 0xFF
        (tmp_path / "a.nrrd").write_bytes(whole)
        with pytest.raises(ScanError, match="damaged"):
            read_scan(tmp_path / "a.nrrd")

    def test_sizes_that_the_file_cannot_hold(self, tmp_path):
        common = ["type: double", "dimension: 3", "sizes: 100000 100000 100000", "endian: little"]
        for encoding in ("raw", "gzip", "ascii"):
            write_text(tmp_path / "a.nrrd", *common, f"encoding: {encoding}", data=gzip.compress(b"123"))
            with pytest.raises(ScanError, match="cut short"):
                read_scan(tmp_path / "a.nrrd")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            *[("encoding: hex", "encoding 'hex'"), ("type: block", "not numbers"), ("sizes: 5 0 7", "no voxels")],
            *[("sizes: 5 6", "damaged"), ("endian: middle", "endian"), ("kinds: domain", "damaged")],
        ],
    )
    def test_headers_that_make_no_sense(self, tmp_path, line, message):
        fields = {
            **{"type": "int16", "dimension": "3", "sizes": "5 6 7", "endian": "little", "encoding": "raw"},
            **dict([line.split(": ")]),
        }
        path = write_text(tmp_path / "a.nrrd", *(f"{k}: {v}" for k, v in fields.items()), data=ARRAY.tobytes(order="F"))
        with pytest.raises(ScanError, match=message):
            read_scan(path)

    def test_something_else(self, tmp_path):
        (tmp_path / "a.nrrd").write_bytes(b"\x89PNG....")
        with pytest.raises(ScanError, match="not a NRRD file"):
            read_scan(tmp_path / "a.nrrd")

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_bytes_are_a_scan_or_a_sentence(self, tmp_path, data):
        whole = bytearray(save_nrrd(tmp_path / "a.nrrd", ARRAY, placed_affine(), encoding="raw").read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, 260))] = data.draw(st.integers(0, 255))
        (tmp_path / "fuzz.nrrd").write_bytes(whole)
        with suppress(ScanError):
            read_scan(tmp_path / "fuzz.nrrd")
