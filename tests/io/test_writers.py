import os
import resource
import signal

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_unet.domain.errors import ExportError
from napari_unet.domain.geometry import LPS_FROM_RAS, AxisMap, Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.masks import check_same_grid, read_mask
from napari_unet.io.ome_zarr import read_ome_zarr
from napari_unet.io.reading import ReadOptions
from napari_unet.io.registry import read_scan
from napari_unet.io.writers import format_of, mask_suffix, write_mask
from tests.io.nifti_files import placed_affine, random_array, save_nifti
from tests.io.twins import save_itk, save_nrrd, save_ome_zarr, save_twins

TWO = LabelSchema.numbered(2)
WIDE = LabelSchema(classes=(LabelClass(id=300, name="x", colour=(1, 0, 0)),))


@pytest.fixture
def volume(tmp_path):
    return read_scan(save_nifti(tmp_path / "scan.nii.gz", random_array((5, 6, 7)), placed_affine(codes="PIR")))


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(random_array((20, 30), np.uint8)).save(tmp_path / "picture.png")
    return read_scan(tmp_path / "picture.png")


def labels_for(scan, n=2):
    return random_array(scan.spatial_shape, np.uint8) % (n + 1)


def read_zarr(path, as_mask=True):
    return read_ome_zarr(path, ReadOptions(as_mask=as_mask))


def read_back(path):
    return read_zarr(path) if path.suffix == ".zarr" else read_mask(path)


class TestNifti:
    def test_the_header_is_a_label_images(self, tmp_path):
        image = nib.Nifti1Image(random_array((5, 6, 7)), None)
        image.set_sform(placed_affine(degrees=(4, 5, 6)), code=4)
        image.set_qform(placed_affine(degrees=(4, 5, 6)), code=1)
        image.header["descrip"], image.header["cal_max"] = b"DOE^JOHN", 1000
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN"))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "scan.nii.gz")
        scan = read_scan(tmp_path / "scan.nii.gz")

        write_mask(labels_for(scan), scan, tmp_path / "mask.nii", TWO)

        back, source = nib.load(tmp_path / "mask.nii"), nib.load(tmp_path / "scan.nii.gz")
        assert back.get_data_dtype() == np.uint8
        assert (back.dataobj.slope, back.dataobj.inter) == (1, 0)
        assert float(back.header["cal_max"]) == 2
        assert back.header.get_intent()[0] == "label"
        for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
            np.testing.assert_array_equal(back.header[name], source.header[name])
        assert b"DOE" not in (tmp_path / "mask.nii").read_bytes()

    def test_forms_that_disagree_are_both_kept(self, tmp_path):
        image = nib.Nifti1Image(random_array((5, 6, 7)), None)
        image.set_sform(placed_affine(), code=2)
        image.set_qform(placed_affine(offset=(1, 2, 3)), code=1)
        nib.save(image, tmp_path / "scan.nii.gz")
        scan = read_scan(tmp_path / "scan.nii.gz")
        write_mask(labels_for(scan), scan, tmp_path / "mask.nii.gz", TWO)
        back = nib.load(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(back.get_qform(), image.get_qform())
        np.testing.assert_array_equal(back.get_sform(), image.get_sform())

    def test_nifti_2_and_big_endian_sources(self, tmp_path):
        affine = placed_affine((1 / 3, 1 / 7, 1.1), degrees=(1, 2, 3))
        nib.save(nib.Nifti2Image(random_array((5, 6, 7)), affine), tmp_path / "two.nii")
        scan = read_scan(tmp_path / "two.nii")
        write_mask(labels_for(scan), scan, tmp_path / "mask.nii", TWO)
        np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, nib.load(tmp_path / "two.nii").affine)

        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(">i2")
        nib.save(nib.Nifti1Image(random_array((5, 6, 7)), affine, header), tmp_path / "big.nii")
        scan = read_scan(tmp_path / "big.nii")
        write_mask(labels_for(scan), scan, tmp_path / "mask.nii.gz", TWO)
        np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / "big.nii").affine)

    def test_one_volume_of_a_time_series(self, tmp_path):
        scan = read_scan(save_nifti(tmp_path / "t.nii", random_array((5, 6, 7, 3)), placed_affine()), volume=2)
        write_mask(labels_for(scan), scan, tmp_path / "mask.nii", TWO)
        back = nib.load(tmp_path / "mask.nii")
        assert back.shape == (5, 6, 7)
        np.testing.assert_allclose(back.affine, placed_affine(), atol=1e-5)

    @pytest.mark.parametrize("gone", ["deleted", "replaced"])
    def test_a_source_that_is_no_more_what_it_was(self, tmp_path, volume, gone):
        volume.source.unlink()
        if gone == "replaced":
            save_nifti(volume.source, random_array((3, 3, 3)))
        labels = labels_for(volume)
        write_mask(labels, volume, tmp_path / "mask.nii.gz", TWO)
        back = read_scan(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(back.data, labels)
        np.testing.assert_allclose(back.geometry.affine, volume.geometry.affine, atol=1e-5)

    def test_a_scan_that_never_was_a_nifti(self, tmp_path, picture):
        affine = LPS_FROM_RAS @ placed_affine(degrees=(3, 4, 5))
        loaded = affine @ np.eye(4)[[2, 1, 0, 3]]
        geometry = Geometry((2.5, 1.1, 0.9), loaded, AxisMap.identity(3))
        scan = Scan(random_array((7, 6, 5)), "zyx", geometry, slice_axis=0)
        write_mask(labels_for(scan), scan, tmp_path / "mask.nii.gz", TWO)
        np.testing.assert_allclose(
            nib.load(tmp_path / "mask.nii.gz").affine, placed_affine(degrees=(3, 4, 5)), atol=1e-5
        )

        labels = labels_for(picture)
        write_mask(labels, picture, tmp_path / "picture.nii.gz", TWO)
        np.testing.assert_array_equal(read_scan(tmp_path / "picture.nii.gz").data, labels)

        stack = Scan(random_array((7, 6, 5)), "zyx", Geometry((3, 2, 1), None, AxisMap.identity(3)), slice_axis=0)
        write_mask(labels_for(stack), stack, tmp_path / "stack.nii.gz", TWO)
        back = read_scan(tmp_path / "stack.nii.gz")
        np.testing.assert_array_equal(back.data, labels_for(stack))
        assert back.geometry.spacing == (3, 2, 1)


ORIENTATIONS = ["RAS", "LPS", "LAS", "PSR", "IPR"]


class TestEveryFormat:
    """The same world point of the same voxel, whatever the scan was read from and the mask is written to."""

    @pytest.mark.parametrize("source", ["nifti", "nrrd", "mha"])
    @pytest.mark.parametrize("codes", ORIENTATIONS)
    @pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -11, 20)])
    def test_masks_lie_on_the_grid_of_the_source(self, tmp_path, source, codes, degrees):
        path = save_twins(tmp_path, random_array((5, 6, 7)), placed_affine(codes=codes, degrees=degrees))[source]
        scan, image = read_scan(path), SimpleITK.ReadImage(str(path))
        labels = labels_for(scan)
        for suffix in ("nii.gz", "seg.nrrd"):
            out = tmp_path / f"mask.{suffix}"
            write_mask(labels, scan, out, TWO)
            mask = SimpleITK.ReadImage(str(out))
            assert mask.GetSize() == image.GetSize()
            for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
                there = [im.TransformIndexToPhysicalPoint(index) for im in (mask, image)]
                # NIfTI holds its matrix in single precision.
                np.testing.assert_allclose(*there, rtol=0, atol=1e-6 if suffix == "seg.nrrd" else 4e-6)
            np.testing.assert_array_equal(
                SimpleITK.GetArrayFromImage(mask), scan.geometry.axis_map.to_source(labels).transpose()
            )
            check_same_grid(scan, read_mask(out))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        source=st.sampled_from(["nifti", "nrrd"]),
        codes=st.sampled_from(ORIENTATIONS),
        degrees=st.tuples(*[st.floats(-25, 25)] * 3),
        spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
        shear=st.floats(-0.2, 0.2),
        shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 5)),
        suffix=st.sampled_from(["nii.gz", "seg.nrrd", "ome.zarr"]),
    )
    def test_read_back_as_they_were(self, tmp_path, source, codes, degrees, spacing, shear, shape, suffix):
        affine = placed_affine(spacing, degrees=degrees, codes=codes, shape=shape)
        affine[:3, 2] += shear * affine[:3, 1]
        save = save_nifti if source == "nifti" else save_nrrd
        scan = read_scan(save(tmp_path / ("a.nii" if source == "nifti" else "a.nrrd"), random_array(shape), affine))
        labels = labels_for(scan)
        out = tmp_path / f"mask.{suffix}"
        write_mask(labels, scan, out, TWO)
        back = read_back(out)
        if back.axes == "yx":  # OME-Zarr has a volume of one slice as a picture
            np.testing.assert_array_equal(back.data, labels[0])
            return
        np.testing.assert_array_equal(back.data, labels)
        single = suffix == "nii.gz" and source == "nrrd"
        atol = 4e-6 if single else 1e-6
        np.testing.assert_allclose(back.geometry.affine, scan.geometry.affine, rtol=0, atol=atol)

    def test_pynrrd_nibabel_and_simpleitk_agree(self, tmp_path):
        scan = read_scan(save_itk(tmp_path / "a.mha", random_array((5, 6, 7)), placed_affine(codes="PIR")))
        labels = labels_for(scan)
        for name in ("a.seg.nrrd", "a.nii.gz"):
            write_mask(labels, scan, tmp_path / name, TWO)
        voxels, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = header["space directions"].T, header["space origin"]
        image = nib.load(tmp_path / "a.nii.gz")
        np.testing.assert_allclose(LPS_FROM_RAS @ image.affine, lps, rtol=0, atol=4e-6)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), voxels)
        assert image.header.get_zooms() == pytest.approx(SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd")).GetSpacing())

    @pytest.mark.parametrize("suffix", ["nii.gz", "seg.nrrd", "ome.zarr", "tif"])
    def test_a_scan_without_a_position(self, tmp_path, suffix):
        nrrd.write(str(tmp_path / "a.nrrd"), random_array((5, 6, 7)), {"spacings": [1.0, 2.0, 3.0]})
        scan = read_scan(tmp_path / "a.nrrd")
        out = tmp_path / f"mask.{suffix}"
        write_mask(labels_for(scan), scan, out, TWO)
        back = read_back(out)
        np.testing.assert_array_equal(back.data, labels_for(scan))
        np.testing.assert_allclose(back.geometry.spacing, (3, 2, 1), rtol=1e-6)

    @pytest.mark.parametrize("suffix", ["nii.gz", "seg.nrrd", "ome.zarr", "tif", "png"])
    def test_pictures(self, tmp_path, picture, suffix):
        out = tmp_path / f"mask.{suffix}"
        write_mask(labels_for(picture), picture, out, TWO)
        np.testing.assert_array_equal(read_back(out).data, labels_for(picture))


class TestSegNrrd:
    def test_names_colours_and_extents(self, tmp_path, volume):
        schema = LabelSchema(
            classes=(
                LabelClass(id=2, name="Läsion\n(links)", colour=(1, 0.5, 0)),
                LabelClass(id=7, name="nothing of it", colour=(0, 0, 1)),
            )
        )
        labels = np.zeros(volume.spatial_shape, np.uint8)
        stored = volume.geometry.axis_map.to_source(labels)
        stored[1:3, 2, 3:6] = 2
        labels = volume.geometry.axis_map.to_loaded(stored)
        write_mask(labels, volume, tmp_path / "mask.seg.nrrd", schema)
        header = (tmp_path / "mask.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
        keys = dict(line.split(":=") for line in header.splitlines() if ":=" in line)
        assert (keys["Segment0_ID"], keys["Segment0_Name"]) == ("Segment_2", "Läsion (links)")
        assert (keys["Segment0_LabelValue"], keys["Segment0_Layer"]) == ("2", "0")
        assert keys["Segment0_Color"] == "1 0.5 0"
        assert keys["Segment0_Extent"] == "1 2 2 2 3 5"
        assert keys["Segment1_Extent"] == "0 -1 0 -1 0 -1"
        assert keys["Segmentation_MasterRepresentation"] == "Binary labelmap"
        assert "space: left-posterior-superior" in header
        assert "Segment2_ID" not in keys


class TestOtherFormats:
    @pytest.mark.parametrize("suffix", ["tif", "tiff"])
    def test_tiff_keeps_the_spacing(self, tmp_path, volume, suffix):
        labels = labels_for(volume)
        write_mask(labels, volume, tmp_path / f"mask.{suffix}", TWO)
        back = read_scan(tmp_path / f"mask.{suffix}")
        assert back.data.dtype == np.uint8
        np.testing.assert_array_equal(back.data, labels)
        np.testing.assert_allclose(back.geometry.spacing, volume.geometry.spacing, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(3, 20, 30), (5, 20, 4), (1, 20, 30), (20, 3)])
    def test_tiff_shapes_that_look_like_colour(self, tmp_path, shape):
        for spacing in (None, (1.5,) * len(shape)):
            geometry = Geometry(spacing, axis_map=AxisMap.identity(len(shape)))
            scan = Scan(np.zeros(shape, np.uint8), "zyx"[-len(shape) :], geometry)
            write_mask(labels_for(scan), scan, tmp_path / "mask.tif", TWO)
            back = read_scan(tmp_path / "mask.tif")
            np.testing.assert_array_equal(back.data, np.squeeze(labels_for(scan)))

    @pytest.mark.parametrize("suffix", ["png", "tif", "nii.gz", "seg.nrrd", "ome.zarr"])
    def test_labels_beyond_255_are_widened(self, tmp_path, picture, suffix):
        labels = (picture.data > 50).astype(np.int64) * 300
        write_mask(labels, picture, tmp_path / f"mask.{suffix}", WIDE)
        back = read_zarr(tmp_path / "mask.ome.zarr") if suffix == "ome.zarr" else read_scan(tmp_path / f"mask.{suffix}")
        back = back.data
        assert back.dtype == np.uint16
        np.testing.assert_array_equal(back, labels)

    def test_raw_values_in_a_png(self, tmp_path, picture):
        write_mask(labels_for(picture), picture, tmp_path / "out" / "deep" / "mask.png", TWO)
        with Image.open(tmp_path / "out" / "deep" / "mask.png") as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), labels_for(picture))

    def test_colour_pictures_have_flat_masks(self, tmp_path):
        tifffile.imwrite(tmp_path / "rgb.tif", random_array((20, 30, 3), np.uint8), photometric="rgb")
        scan = read_scan(tmp_path / "rgb.tif")
        write_mask(labels_for(scan), scan, tmp_path / "mask.tif", TWO)
        assert read_scan(tmp_path / "mask.tif").data.shape == (20, 30)


class TestSuffix:
    def test_like_the_source(self, tmp_path, volume, picture):
        assert mask_suffix(None, volume) == ".nii.gz"
        assert mask_suffix(None, picture) == ".png"
        tifffile.imwrite(tmp_path / "a.tiff", random_array((5, 6, 7)), photometric="minisblack")
        assert mask_suffix(None, read_scan(tmp_path / "a.tiff")) == ".tif"
        twins = save_twins(tmp_path, random_array((5, 6, 7)), placed_affine())
        suffixes = {name: mask_suffix(None, read_scan(path)) for name, path in twins.items()}
        assert suffixes == {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "mha": ".nii.gz"}
        save_ome_zarr(tmp_path / "a.ome.zarr", random_array((5, 6, 7)))
        assert mask_suffix(None, read_zarr(tmp_path / "a.ome.zarr")) == ".ome.zarr"

    def test_by_name(self, volume, picture):
        assert [mask_suffix(name, picture) for name in ("nifti", "tiff", "png")] == [".nii.gz", ".tif", ".png"]
        with pytest.raises(ExportError, match="one slice"):
            mask_suffix("png", volume)
        suffixes = {"dicom-seg": ".dcm", "seg-nrrd": ".seg.nrrd", "ome-zarr": ".ome.zarr"}
        for name, suffix in suffixes.items():
            assert mask_suffix(name, volume) == suffix
            assert format_of(f"a{suffix}") == name
        assert [format_of(name) for name in ("a.nii", "a.TIFF", "a.jpg")] == ["nifti", "tiff", None]
        with pytest.raises(ExportError, match="no format 'jpg'"):
            mask_suffix("jpg", picture)


class TestRefusals:
    def test_volume_as_png_and_unknown_suffixes(self, tmp_path, volume, picture):
        with pytest.raises(ExportError, match="one slice"):
            write_mask(labels_for(volume), volume, tmp_path / "mask.png", TWO)
        for name in ("mask.jpg", "mask", "mask.gz", "mask.nrrd", "mask.zarr"):
            with pytest.raises(ExportError, match=r"names no format that masks are written in: \.nii\.gz, .* or \.png"):
                write_mask(labels_for(picture), picture, tmp_path / name, TWO)

    def test_another_shape_or_labels_without_a_class(self, tmp_path, picture):
        with pytest.raises(ExportError, match="shape"):
            write_mask(np.zeros((3, 3), np.uint8), picture, tmp_path / "mask.png", TWO)
        with pytest.raises(ExportError, match="no class: 3, 4"):
            write_mask(random_array((20, 30)) % 5, picture, tmp_path / "mask.png", TWO)

    def test_the_source_is_never_overwritten(self, tmp_path, picture):
        before = picture.source.read_bytes()
        (tmp_path / "symlink.png").symlink_to(picture.source)
        os.link(picture.source, tmp_path / "hardlink.png")
        (tmp_path / "sub").mkdir()
        for path in (
            picture.source,
            tmp_path / "sub" / ".." / "picture.png",
            tmp_path / "symlink.png",
            tmp_path / "hardlink.png",
        ):
            with pytest.raises(ExportError, match="scan itself"):
                write_mask(labels_for(picture), picture, path, TWO)
        assert picture.source.read_bytes() == before

    def test_the_data_files_of_the_source_are_never_overwritten(self, tmp_path):
        path = save_itk(tmp_path / "a.nhdr", random_array((5, 6, 7)), placed_affine(), compressed=False)
        (tmp_path / "a.raw").rename(tmp_path / "a.nii")
        path.write_bytes(path.read_bytes().replace(b"a.raw", b"a.nii"))
        scan = read_scan(path)
        with pytest.raises(ExportError, match="scan itself"):
            write_mask(labels_for(scan), scan, tmp_path / "a.nii", TWO)

    def test_dicom_segmentations_are_of_dicom_scans(self, tmp_path, volume):
        with pytest.raises(ExportError, match="DICOM"):
            write_mask(labels_for(volume), volume, tmp_path / "mask.dcm", TWO)

    @pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.nii.gz", "mask.seg.nrrd"])
    def test_a_full_disk_leaves_the_old_mask(self, tmp_path, name):
        shape = (400, 400)
        Image.fromarray(random_array(shape, np.uint8)).save(tmp_path / "picture.png")
        scan = read_scan(tmp_path / "picture.png")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_bytes(b"old")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(ExportError, match="could not be written"):
                write_mask(labels_for(scan), scan, tmp_path / "out" / name, TWO)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        assert (tmp_path / "out" / name).read_bytes() == b"old"

    def test_a_folder_that_cannot_be(self, tmp_path, picture):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ExportError, match="could not be written"):
            write_mask(labels_for(picture), picture, tmp_path / "file" / "mask.png", TWO)

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may write everywhere")
    def test_a_read_only_folder(self, tmp_path, picture):
        (tmp_path / "out").mkdir(mode=0o500)
        with pytest.raises(ExportError, match="could not be written"):
            write_mask(labels_for(picture), picture, tmp_path / "out" / "mask.png", TWO)

    def test_an_older_mask_is_replaced_and_nothing_is_left_over(self, tmp_path, picture):
        out = tmp_path / "out" / "mask.png"
        for n in (1, 2):
            write_mask(labels_for(picture, n), picture, out, TWO)
        np.testing.assert_array_equal(read_scan(out).data, labels_for(picture, 2))
        assert list(out.parent.iterdir()) == [out]
