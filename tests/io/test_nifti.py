import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.registry import read_scan
from napari_unet.io.writers import write_mask
from tests.io.nifti_files import placed_affine, poke, random_array, save_nifti

ALL_CODES = sorted(
    a + b + c
    for a in "LRPASI"
    for b in "LRPASI"
    for c in "LRPASI"
    if len({"LRPASI".index(x) // 2 for x in a + b + c}) == 3
)


def world_of_each_voxel(path):
    """Yield (value, LPS millimetres) of every voxel as nibabel sees them."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj)
    indices = np.indices(data.shape).reshape(3, -1)
    world = (LPS_FROM_RAS @ image.affine @ np.vstack([indices, np.ones(indices.shape[1])]))[:3].T
    return data.ravel(), world


@pytest.mark.parametrize("codes", ALL_CODES[::5])
def test_every_voxel_keeps_its_place_in_the_world(tmp_path, codes):
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    path = save_nifti(tmp_path / "scan.nii.gz", array, placed_affine(codes=codes, degrees=(7, -12, 20)))

    scan = read_scan(path)

    values, world = world_of_each_voxel(path)
    place_of = dict(zip(values.tolist(), world, strict=True))
    for index in np.ndindex(*scan.data.shape):
        ours = scan.geometry.affine @ [*index, 1]
        np.testing.assert_allclose(ours[:3], place_of[int(scan.data[index])], atol=1e-4)
    assert scan.geometry.source_orientation == codes == "".join(nib.aff2axcodes(nib.load(path).affine))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SAL"])
def test_axes_rise_towards_head_back_and_left(tmp_path, codes):
    path = save_nifti(tmp_path / "scan.nii", random_array((4, 5, 6)), placed_affine(codes=codes, shape=(4, 5, 6)))
    geometry = read_scan(path).geometry
    # Columns are the steps along z, y, x; rows are L, P, S.
    steps = geometry.affine[:3, :3]
    assert steps[2, 0] > 0
    assert steps[1, 1] > 0
    assert steps[0, 2] > 0
    np.testing.assert_allclose(geometry.spacing, (2.5, 1.1, 0.9), rtol=1e-6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codes=st.sampled_from(ALL_CODES),
    degrees=st.tuples(*[st.floats(-25, 25)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    offset=st.tuples(*[st.floats(-300, 300)] * 3),
    shear=st.floats(-0.2, 0.2),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(2, 6)),
    zipped=st.booleans(),
)
def test_masks_go_back_to_the_acquired_grid(tmp_path, codes, degrees, spacing, offset, shear, shape, zipped):
    affine = placed_affine(spacing, offset, degrees, codes, shape)
    affine[:3, 2] += shear * affine[:3, 1]
    array = random_array(shape, np.float32)
    path = save_nifti(tmp_path / ("scan.nii.gz" if zipped else "scan.nii"), array, affine)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.geometry.axis_map.to_source(scan.data), array)

    out = tmp_path / "mask.nii.gz"
    write_mask((scan.data > 50).astype(np.uint8), scan, out, LabelSchema.numbered(1))

    back, source = nib.load(out), nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), array > 50)
    np.testing.assert_allclose(back.affine, source.affine, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(codes=st.sampled_from(ALL_CODES), degrees=st.tuples(*[st.floats(-12, 12)] * 3))
def test_twins_in_other_orientations_load_alike(tmp_path, codes, degrees):
    affine, array = placed_affine(degrees=degrees), random_array((5, 6, 7))
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    twin = apply_orientation(array, turn)
    twin_affine = affine @ inv_ornt_aff(turn, array.shape)

    one = read_scan(save_nifti(tmp_path / "one.nii", array, affine))
    other = read_scan(save_nifti(tmp_path / "twin.nii", twin, twin_affine))

    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_allclose(one.geometry.affine, other.geometry.affine, atol=1e-4)
    assert one.slice_axis == other.slice_axis == 0


def test_the_slice_axis_is_the_one_of_largest_spacing_else_the_slowest(tmp_path):
    array = random_array((5, 6, 7))
    thick_x = read_scan(save_nifti(tmp_path / "a.nii", array, np.diag([4.0, 1, 1, 1])))
    assert thick_x.slice_axis == 2
    sagittal = placed_affine((1, 1, 1), codes="PSR")
    isotropic = read_scan(save_nifti(tmp_path / "b.nii", array, sagittal))
    assert isotropic.slice_axis == 2
    nearly = read_scan(save_nifti(tmp_path / "c.nii", array, np.diag([1.09, 1, 1, 1])))
    assert nearly.slice_axis == 0


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        *[("u1", "uint8"), ("i1", "int8"), ("u2", "uint16"), ("<i2", "int16"), (">i2", "int16"), ("i4", "int32")],
        *[("u4", "int32"), ("i8", "int32"), (">f4", "float32"), ("f8", "float32")],
    ],
)
def test_voxels_are_native_writable_and_of_a_usable_dtype(tmp_path, stored, loaded):
    array = random_array((4, 5, 6), stored)
    header = nib.Nifti1Header(endianness=">" if stored.startswith(">") else "<")
    header.set_data_dtype(np.dtype(stored))
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(array, np.eye(4), header), path)

    data = read_scan(path).data

    assert data.dtype == np.dtype(loaded)
    assert data.dtype.isnative
    assert data.flags.c_contiguous
    assert data.flags.writeable
    assert type(data) is np.ndarray
    data[...] = 0  # must not reach the file
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), array)


def test_integers_that_do_not_fit_32_bits_become_floats_and_say_so(tmp_path):
    array = np.full((3, 3, 3), 2**40, np.int64)
    image = nib.Nifti1Image(array, np.eye(4), dtype=np.int64)
    nib.save(image, tmp_path / "wide.nii")
    scan = read_scan(tmp_path / "wide.nii")
    assert scan.data.dtype == np.float32
    assert any("32 bits" in w for w in scan.warnings)


def test_scaling_follows_the_header(tmp_path):
    array = random_array((4, 5, 6))
    path = save_nifti(tmp_path / "scan.nii", array)
    poke(path, 112, np.array([2.5, -100], "<f4").tobytes())  # scl_slope, scl_inter
    scan = read_scan(path)
    assert scan.data.dtype == np.float32
    expected = nib.load(path).get_fdata()
    np.testing.assert_allclose(scan.geometry.axis_map.to_source(scan.data), expected, rtol=1e-6)


def test_a_slope_of_zero_means_no_scaling(tmp_path):
    path = poke(save_nifti(tmp_path / "scan.nii", random_array((4, 5, 6))), 112, np.array([0, 7], "<f4").tobytes())
    assert read_scan(path).data.dtype == np.int16


def test_nifti_2_and_wrong_suffixes_are_read(tmp_path):
    array = random_array((4, 5, 6))
    nib.save(nib.Nifti2Image(array, np.eye(4)), tmp_path / "two.nii.gz")
    assert read_scan(tmp_path / "two.nii.gz").data.shape == (6, 5, 4)
    plain = save_nifti(tmp_path / "plain.nii", array)
    plain.rename(tmp_path / "plain.nii.gz")
    assert read_scan(tmp_path / "plain.nii.gz").data.shape == (6, 5, 4)
    (tmp_path / "zipped.nii").write_bytes(gzip.compress((tmp_path / "plain.nii.gz").read_bytes()))
    assert read_scan(tmp_path / "zipped.nii").data.shape == (6, 5, 4)


class TestVolumes:
    @pytest.mark.parametrize("name", ["time.nii", "time.nii.gz"])
    def test_one_of_several_has_to_be_chosen(self, tmp_path, name):
        array = random_array((4, 5, 6, 3))
        path = save_nifti(tmp_path / name, array)
        with pytest.raises(ScanError, match=r"holds 3 volumes.*--volume N"):
            read_scan(path)
        scan = read_scan(path, volume=1)
        np.testing.assert_array_equal(scan.geometry.axis_map.to_source(scan.data), array[..., 1])
        with pytest.raises(ScanError, match="no volume 3"):
            read_scan(path, volume=3)

    def test_a_fourth_axis_of_one_is_dropped_and_noted(self, tmp_path):
        scan = read_scan(save_nifti(tmp_path / "one.nii", random_array((4, 5, 6, 1))))
        assert scan.axes == "zyx"
        assert any("4x5x6x1" in w for w in scan.warnings)

    def test_a_volume_of_a_file_that_has_one(self, tmp_path):
        path = save_nifti(tmp_path / "one.nii", random_array((4, 5, 6)))
        assert read_scan(path, volume=0).axes == "zyx"
        with pytest.raises(ScanError, match="one volume"):
            read_scan(path, volume=2)

    def test_a_second_extra_axis_is_refused(self, tmp_path):
        with pytest.raises(ScanError, match="5 axes"):
            read_scan(save_nifti(tmp_path / "five.nii", random_array((2, 3, 4, 2, 2))), volume=0)


class TestPictures:
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
    def test_a_lone_slice_is_two_dimensional(self, tmp_path, shape):
        array = random_array(shape)
        scan = read_scan(save_nifti(tmp_path / "slice.nii", array, np.diag([0.5, 0.7, 3, 1])))
        assert scan.axes == "yx"
        assert scan.slice_axis is None
        assert scan.geometry.affine is None
        np.testing.assert_allclose(scan.geometry.spacing, (0.7, 0.5), rtol=1e-6)
        np.testing.assert_array_equal(scan.data, array.reshape(4, 5).T[::-1, ::-1])

        write_mask((scan.data > 50).astype(np.uint8), scan, tmp_path / "mask.nii.gz", LabelSchema.numbered(1))
        back = nib.load(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), array > 50)
        np.testing.assert_allclose(back.affine, np.diag([0.5, 0.7, 3, 1]), atol=1e-6)

    def test_a_coronal_slice_has_the_head_on_top(self, tmp_path):
        affine = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # axes R, S, A
        array = random_array((4, 5, 1))
        scan = read_scan(save_nifti(tmp_path / "coronal.nii", array, affine))
        np.testing.assert_array_equal(scan.data[0], array[::-1, -1, 0])

    def test_rgb_voxels_become_channels(self, tmp_path):
        colours = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3), np.uint8)
        structured = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        nib.save(nib.Nifti1Image(structured, np.eye(4)), tmp_path / "rgb.nii.gz")
        scan = read_scan(tmp_path / "rgb.nii.gz")
        assert scan.axes == "zyxc"
        np.testing.assert_array_equal(scan.geometry.axis_map.to_source(scan.data), colours)

    def test_grey_rgb_voxels_become_grey(self, tmp_path):
        colours = np.repeat(random_array((4, 5, 6, 1), np.uint8), 3, axis=-1)
        structured = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        nib.save(nib.Nifti1Image(structured, np.eye(4)), tmp_path / "grey.nii.gz")
        scan = read_scan(tmp_path / "grey.nii.gz")
        assert scan.axes == "zyx"
        assert "grey picture stored as colour: read as grey" in scan.warnings


class TestPosition:
    def codes(self, path, sform, qform):
        return poke(path, 252, np.array([qform, sform], "<i2").tobytes())

    def test_the_sform_wins_and_a_disagreement_is_said(self, tmp_path):
        array = random_array((4, 5, 6))
        image = nib.Nifti1Image(array, None)
        image.set_sform(placed_affine(), code=1)
        image.set_qform(placed_affine(offset=(0, 0, 0)), code=1)
        nib.save(image, tmp_path / "two.nii")
        scan = read_scan(tmp_path / "two.nii")
        np.testing.assert_allclose(scan.geometry.source_affine, placed_affine(), atol=1e-5)
        assert any("sform and qform disagree" in w and "sform is used" in w for w in scan.warnings)

    def test_the_qform_is_used_without_an_sform(self, tmp_path):
        image = nib.Nifti1Image(random_array((4, 5, 6)), None)
        image.set_qform(placed_affine(degrees=(3, 4, 5)), code=1)
        nib.save(image, tmp_path / "q.nii")
        poke(tmp_path / "q.nii", 76, np.array([0], "<f4").tobytes())  # qfac 0 counts as 1
        scan = read_scan(tmp_path / "q.nii")
        np.testing.assert_allclose(scan.geometry.source_affine, placed_affine(degrees=(3, 4, 5)), atol=1e-4)
        write_mask(np.zeros(scan.data.shape, np.uint8), scan, tmp_path / "mask.nii", LabelSchema.numbered(1))
        back = nib.load(tmp_path / "mask.nii")
        assert (int(back.header["qform_code"]), int(back.header["sform_code"])) == (1, 0)

    def test_agreeing_forms_raise_no_warning(self, tmp_path):
        image = nib.Nifti1Image(random_array((4, 5, 6)), placed_affine())
        image.set_qform(placed_affine(), code=1)
        nib.save(image, tmp_path / "two.nii")
        assert read_scan(tmp_path / "two.nii").warnings == ()

    def test_without_codes_the_position_is_unknown(self, tmp_path):
        path = self.codes(save_nifti(tmp_path / "scan.nii", random_array((4, 5, 6)), np.diag([1, 2, 3, 1])), 0, 0)
        scan = read_scan(path)
        assert any("position unknown" in w for w in scan.warnings)
        assert scan.geometry.affine is None
        assert scan.geometry.source_orientation is None
        assert scan.geometry.spacing == (3, 2, 1)
        write_mask((scan.data > 50).astype(np.uint8), scan, tmp_path / "mask.nii", LabelSchema.numbered(1))
        back = nib.load(tmp_path / "mask.nii")
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), random_array((4, 5, 6)) > 50)
        np.testing.assert_allclose(back.affine, nib.load(path).affine)

    def test_oblique_and_sheared_scans_load_with_a_warning(self, tmp_path):
        array = random_array((4, 5, 6))
        oblique = read_scan(save_nifti(tmp_path / "o.nii", array, placed_affine(degrees=(20, 0, 0))))
        assert any("oblique by 20.0 degrees" in w for w in oblique.warnings)
        affine = placed_affine()
        affine[:3, 2] += 0.3 * affine[:3, 1]
        sheared = read_scan(save_nifti(tmp_path / "s.nii", array, affine))
        assert any("sheared" in w for w in sheared.warnings)

    @pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1), ("unknown", 1)])
    def test_units_are_turned_to_millimetres(self, tmp_path, unit, factor):
        image = nib.Nifti1Image(random_array((4, 5, 6)), placed_affine())
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / "u.nii")
        scan = read_scan(tmp_path / "u.nii")
        np.testing.assert_allclose(scan.geometry.spacing, np.array([2.5, 1.1, 0.9]) * factor, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(scan.geometry.affine[:3, 0]), 2.5 * factor, rtol=1e-5)
        assert bool(scan.warnings) == (factor != 1)

    def test_voxel_sizes_beside_another_matrix_are_noted(self, tmp_path):
        path = save_nifti(tmp_path / "scan.nii", random_array((4, 5, 6)), np.diag([1, 1, 2, 1]))
        poke(path, 80, np.array([1, 1, 3], "<f4").tobytes())
        scan = read_scan(path)
        assert any("the matrix is used" in w for w in scan.warnings)
        assert scan.geometry.spacing == (2, 1, 1)


class TestFaults:
    def test_truncated(self, tmp_path):
        data = save_nifti(tmp_path / "scan.nii.gz", random_array((20, 20, 20))).read_bytes()
        for keep in (3, 100, len(data) // 2, len(data) - 4):
            cut = tmp_path / f"cut{keep}.nii.gz"
            cut.write_bytes(data[:keep])
            with pytest.raises(ScanError, match="damaged, cut short"):
                read_scan(cut)
        plain = save_nifti(tmp_path / "plain.nii", random_array((20, 20, 20)))
        os.truncate(plain, 400)
        with pytest.raises(ScanError, match="damaged, cut short"):
            read_scan(plain)

    def test_a_flipped_bit_is_noticed_by_the_checksum(self, tmp_path):
        path = tmp_path / "flip.nii.gz"
        plain = save_nifti(tmp_path / "plain.nii", random_array((20, 20, 20))).read_bytes()
        stored = bytearray(gzip.compress(plain, compresslevel=0))
        stored[len(stored) // 2] ^= 1
        path.write_bytes(bytes(stored))
        with pytest.raises(ScanError, match="damaged"):
            read_scan(path)

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"patient,age\n1,2\n" * 50, b"\x00" * 400])
    def test_not_nifti_at_all(self, tmp_path, content):
        path = tmp_path / "not.nii.gz"
        path.write_bytes(content)
        with pytest.raises(ScanError) as caught:
            read_scan(path)
        assert "\n" not in str(caught.value)
        assert "not.nii.gz" in str(caught.value)

    def test_non_finite_voxels_are_counted_and_replaced(self, tmp_path):
        array = random_array((4, 5, 6), np.float32)
        array[0, 0, 0], array[0, 0, 1], array[0, 0, 2] = np.nan, np.inf, -np.inf
        array[1, 1, 1], array[1, 1, 2] = -5, 200
        scan = read_scan(save_nifti(tmp_path / "nan.nii", array))
        back = scan.geometry.axis_map.to_source(scan.data)
        assert back[0, 0, :3].tolist() == [-5, 200, -5]
        assert any(w.startswith("3 voxels are NaN") for w in scan.warnings)

    def test_floats_beyond_float32_count_as_infinite(self, tmp_path):
        array = random_array((4, 5, 6), np.float64)
        array[0, 0, 0] = 1e300
        scan = read_scan(save_nifti(tmp_path / "huge.nii", array))
        assert np.isfinite(scan.data).all()
        assert scan.warnings

    def test_nothing_finite(self, tmp_path):
        with pytest.raises(ScanError, match="not a single finite"):
            read_scan(save_nifti(tmp_path / "nan.nii", np.full((3, 3, 3), np.nan, np.float32)))

    def test_a_constant_image_is_fine(self, tmp_path):
        assert read_scan(save_nifti(tmp_path / "c.nii", np.full((3, 3, 3), 7, np.uint8))).data.max() == 7

    def test_complex(self, tmp_path):
        with pytest.raises(ScanError, match="complex"):
            read_scan(save_nifti(tmp_path / "c.nii", np.ones((3, 3, 3), np.complex64)))

    @pytest.mark.parametrize("dim", [0, -4])
    def test_no_voxels(self, tmp_path, dim):
        path = poke(save_nifti(tmp_path / "e.nii", random_array((4, 5, 6))), 44, np.array([dim], "<i2").tobytes())
        with pytest.raises(ScanError, match="no voxels"):
            read_scan(path)

    @pytest.mark.parametrize("axes", [0, 1, 9])
    def test_a_strange_number_of_axes(self, tmp_path, axes):
        path = poke(save_nifti(tmp_path / "e.nii", random_array((4, 5, 6))), 40, np.array([axes], "<i2").tobytes())
        with pytest.raises(ScanError):
            read_scan(path)

    @pytest.mark.parametrize("size", [0, np.nan, np.inf])
    def test_no_usable_spacing(self, tmp_path, size):
        path = poke(save_nifti(tmp_path / "z.nii", random_array((4, 5, 6))), 88, np.array([size], "<f4").tobytes())
        with pytest.raises(ScanError, match="voxel size"):
            read_scan(path)

    @pytest.mark.parametrize("step", [0, np.nan])
    def test_a_flat_matrix(self, tmp_path, step):
        path = poke(save_nifti(tmp_path / "z.nii", random_array((4, 5, 6))), 280, np.array([step], "<f4").tobytes())
        with pytest.raises(ScanError, match="spacing of 0 or NaN"):
            read_scan(path)

    def test_half_of_a_pair_and_analyze(self, tmp_path):
        path = save_nifti(tmp_path / "p.nii", random_array((4, 5, 6)))
        with pytest.raises(ScanError, match="half of a NIfTI pair"):
            read_scan(poke(path, 344, b"ni1\0"))
        with pytest.raises(ScanError, match="ANALYZE"):
            read_scan(poke(path, 344, b"\0\0\0\0"))
