"""Faulty DICOM: refused with a sentence that fits, or loaded as the person says (rows 1, 2, 7-9, 13, 17-19)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

from napari_unet.domain.errors import ScanError, UntrustedGeometryError
from napari_unet.io.dicom.reader import to_acquired_slices, was_resampled
from napari_unet.io.registry import can_read, read_scan
from tests.io.dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    PATIENT,
    SAGITTAL,
    dataset,
    edit,
    numbers,
    positions,
    save,
    volume,
    write_enhanced,
    write_series,
)

PLANES = pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["ax", "sag", "cor", "obl"])


@pytest.fixture
def folder(tmp_path):
    return write_series(tmp_path / "series", volume())


def move(folder, shifts, orientation=AXIAL):
    """Shift slices by LPS mm."""
    where = positions(8, 2.5, orientation)
    for k, shift in shifts.items():
        edit(folder / f"{k:03d}.dcm", ImagePositionPatient=numbers(where[k] + shift))


def tilt(folder, degrees, orientation=AXIAL):
    """Lean the stack along its rows, as a tilted gantry does."""
    lean = np.tan(np.radians(degrees)) * 2.5 * np.array(orientation[3:])
    move(folder, {k: k * lean for k in range(8)}, orientation)


class TestMissing:
    @PLANES
    def test_refused(self, tmp_path, orientation):
        folder = write_series(tmp_path / "series", volume(), orientation=orientation)
        (folder / "003.dcm").unlink()
        for resample in (False, True):
            with pytest.raises(UntrustedGeometryError, match=r"1 slice is missing: a gap of 5 mm") as error:
                read_scan(folder, resample=resample)
            assert not error.value.can_resample
            assert all(word in str(error.value) for word in ("002.dcm", "004.dcm", "2.5 mm apart", "--untrusted"))

    def test_where(self, folder):
        (folder / "003.dcm").unlink()
        with pytest.raises(UntrustedGeometryError, match=r"between z = 106\.8 mm and z = 111\.8 mm"):
            read_scan(folder)

    @pytest.mark.parametrize(("gone", "text"), [((2, 3), "2 slices are missing"), ((1, 5), "gap.* and 1 more gap,")])
    def test_several(self, folder, gone, text):
        for k in gone:
            (folder / f"{k:03d}.dcm").unlink()
        with pytest.raises(UntrustedGeometryError, match=text):
            read_scan(folder)

    @PLANES
    def test_loaded_as_untrusted(self, tmp_path, orientation):
        folder = write_series(tmp_path / "series", volume(), orientation=orientation)
        (folder / "003.dcm").unlink()
        scan = read_scan(folder, untrusted=True)
        assert sorted(scan.geometry.spacing) == pytest.approx([0.7, 0.8, 2.5])
        assert any("loaded as untrusted" in line and "gap of 5 mm" in line for line in scan.warnings)
        frames = to_acquired_slices(scan, scan.data)
        for file, frame in zip(scan.source_files, frames, strict=True):
            np.testing.assert_array_equal(frame, pydicom.dcmread(file).pixel_array)

    def test_in_one_file(self, tmp_path):
        path = write_enhanced(tmp_path / "mf.dcm", volume(), order=[7, 0, 1, 2, 4, 5, 6])
        with pytest.raises(UntrustedGeometryError, match=r"gap of 5 mm.*frame 4 of mf\.dcm"):
            read_scan(path)


class TestDoubled:
    @pytest.mark.parametrize("new_uid", [False, True])
    def test_refused_and_the_first_kept(self, folder, new_uid):
        other = pydicom.dcmread(folder / "003.dcm")
        if new_uid:
            other.SOPInstanceUID = generate_uid()
        other.PixelData = bytes(len(other.PixelData))
        other.save_as(folder / "copy.dcm")
        with pytest.raises(ScanError, match=r"more than one slice at 1 place \(003\.dcm and copy\.dcm\).*untrusted"):
            read_scan(folder)
        scan = read_scan(folder, untrusted=True)
        np.testing.assert_array_equal(scan.data, volume())
        assert any("1 doubled slice left out" in line for line in scan.warnings)
        assert folder / "copy.dcm" not in scan.source_files

    def test_all_copied(self, folder):
        for path in list(folder.iterdir()):
            (folder / f"x{path.name}").write_bytes(path.read_bytes())
        with pytest.raises(ScanError, match="more than one slice at 8 places"):
            read_scan(folder)
        np.testing.assert_array_equal(read_scan(folder, untrusted=True).data, volume())


class TestTilt:
    @PLANES
    def test_refused(self, tmp_path, orientation):
        folder = write_series(tmp_path / "series", volume(), orientation=orientation)
        tilt(folder, 15, orientation)
        with pytest.raises(UntrustedGeometryError, match=r"leans by 15\.0 degrees.*--resample.*--untrusted") as error:
            read_scan(folder)
        assert error.value.can_resample

    @pytest.mark.parametrize("degrees", [-20, -1, 1, 15])
    def test_untrusted_keeps_the_places(self, folder, degrees):
        tilt(folder, degrees)
        scan = read_scan(folder, untrusted=True)
        np.testing.assert_array_equal(scan.data, volume())
        np.testing.assert_allclose(scan.geometry.spacing, (2.5, 0.8, 0.7), atol=1e-6)
        for k, path in enumerate(sorted(folder.iterdir())):
            place = pydicom.dcmread(path).ImagePositionPatient
            np.testing.assert_allclose((scan.geometry.affine @ [k, 0, 0, 1])[:3], place, atol=1e-5)

    @PLANES
    @pytest.mark.parametrize("degrees", [-18, 15])
    def test_resampled_in_the_right_place(self, tmp_path, orientation, degrees):
        """A linear ramp in the patient is reproduced exactly by linear interpolation, wherever slices cover it."""

        def ramp(points):
            return points @ [3.0, -2.0, 5.0] + 1000

        folder = write_series(tmp_path / "series", volume((8, 40, 30)), orientation=orientation)
        tilt(folder, degrees, orientation)
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            corner = np.array(image.ImagePositionPatient, float)
            rows, columns = np.mgrid[:40, :30]
            down, along = np.array(orientation[3:]) * 0.8, np.array(orientation[:3]) * 0.7
            points = corner + rows[..., None] * down + columns[..., None] * along
            image.PixelData = np.rint(ramp(points) * 8).astype("<i2").tobytes()
            image.RescaleSlope = 0.125
            image.save_as(path)
        scan = read_scan(folder, resample=True)
        assert was_resampled(scan)
        assert any("resampled onto a regular grid" in line for line in scan.warnings)
        units = scan.geometry.affine[:3, :3] / np.linalg.norm(scan.geometry.affine[:3, :3], axis=0)
        np.testing.assert_allclose(units.T @ units, np.eye(3), atol=1e-6)
        index = np.stack(np.indices(scan.data.shape), axis=-1).reshape(-1, 3)
        expected = ramp((index @ scan.geometry.affine[:3, :3].T) + scan.geometry.affine[:3, 3]).reshape(scan.data.shape)
        covered = np.abs(scan.data - scan.data.min()) > 0.2
        planes = scan.to_planes(covered)
        inner = np.zeros_like(planes)
        inner[:, 8:-8, 8:-8] = planes[:, 8:-8, 8:-8]
        inner = scan.from_planes(inner)
        close = np.abs(scan.data - expected)[inner] < 0.3
        assert inner.sum() > 1000
        assert close.mean() > 0.97  # the rest are voxels that slices cover in part

    @PLANES
    def test_masks_go_back_to_the_slices(self, tmp_path, orientation):
        """What is drawn on the resampled scan lands on the same bright voxels of the acquired slices."""
        array = np.zeros((8, 40, 30), np.int16)
        array[2:6, 10:25, 8:20] = 1000
        folder = write_series(tmp_path / "series", array, orientation=orientation)
        tilt(folder, 15, orientation)
        scan = read_scan(folder, resample=True)
        labels = (scan.data > 500).astype(np.uint8)
        back = to_acquired_slices(scan, labels)
        for file, frame in zip(scan.source_files, back, strict=True):
            truth = pydicom.dcmread(file).pixel_array > 500
            assert np.count_nonzero(frame != truth) <= 30  # half a pixel along the edges


class TestUneven:
    @pytest.mark.parametrize("shift", [0.3, 1.0, -0.8])
    def test_refused(self, folder, shift):
        move(folder, {4: [0, 0, shift]})
        with pytest.raises(UntrustedGeometryError, match=r"uneven: .* mm, oddest with .* mm between z = ") as error:
            read_scan(folder)
        assert error.value.can_resample

    def test_a_slice_pushed_sideways(self, folder):
        move(folder, {4: [1.5, 0, 0]})
        with pytest.raises(UntrustedGeometryError, match=r"slice 004\.dcm at z = 111\.8 mm is shifted sideways"):
            read_scan(folder)

    def test_growing_steps_are_no_missing_slices(self, folder):
        move(folder, {k: [0, 0, 2.5 * max(0, k - 3)] for k in range(8)})
        with pytest.raises(UntrustedGeometryError, match=r"uneven: 2\.5 to 5 mm"):
            read_scan(folder)

    def test_untrusted(self, folder):
        move(folder, {4: [0, 0, 1.0]})
        scan = read_scan(folder, untrusted=True)
        np.testing.assert_array_equal(scan.data, volume())
        np.testing.assert_allclose(scan.geometry.spacing, (2.5, 0.8, 0.7))
        assert any("taken to be 2.5 mm apart" in line for line in scan.warnings)

    def test_resampled(self, folder):
        heights = 2.5 * np.arange(8) + [0, 0.4, -0.3, 0, 0.8, 0, -0.5, 0]
        for k, path in enumerate(sorted(folder.iterdir())):
            move(folder, {k: [0, 0, heights[k] - 2.5 * k]})
            flat = np.full((12, 10), round(heights[k] * 100), "<i2")
            edit(path, PixelData=flat.tobytes())
        scan = read_scan(folder, resample=True)
        z = scan.geometry.affine[2, 3] - 101.75 + np.arange(len(scan.data)) * scan.geometry.spacing[0]
        np.testing.assert_allclose(scan.data, np.broadcast_to(z[:, None, None] * 100, scan.data.shape), atol=1)
        assert (z[0], z[-1]) == pytest.approx((0, heights[-1]))
        labels = np.zeros(scan.data.shape, np.uint8)
        labels[:] = np.arange(len(z))[:, None, None]
        nearest = np.abs(heights[:, None] - z).argmin(axis=1)
        assert [frame.flat[0] for frame in to_acquired_slices(scan, labels)] == nearest.tolist()

    def test_both_choices_mean_resampling(self, folder):
        move(folder, {4: [0, 0, 1.0]})
        assert was_resampled(read_scan(folder, resample=True, untrusted=True))

    def test_a_regular_grid_is_left_alone(self, folder):
        scan = read_scan(folder, resample=True)
        assert not was_resampled(scan)
        np.testing.assert_array_equal(scan.data, volume())


def test_row_9_positions_win_over_thickness(tmp_path):
    scan = read_scan(write_series(tmp_path / "s", volume(), SliceThickness=5, SpacingBetweenSlices=2.5))
    assert scan.geometry.spacing[0] == pytest.approx(2.5)
    assert scan.warnings == ("SliceThickness says 5 mm, positions say 2.5 mm between slices: positions are used",)


class TestWithoutPositions:
    def test_refused_or_stacked(self, tmp_path):
        folder = write_series(tmp_path / "s", volume(), ImagePositionPatient=None)
        with pytest.raises(UntrustedGeometryError, match="does not say where its 8 slices stand") as error:
            read_scan(folder)
        assert not error.value.can_resample
        scan = read_scan(folder, untrusted=True)
        np.testing.assert_array_equal(scan.data, volume())
        assert scan.geometry.affine is None

    @pytest.mark.parametrize(
        ("attributes", "text"),
        [
            ({"PixelSpacing": [0, 0.7]}, "no usable pixel size"),
            ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no right angle"),
            ({"ImagePositionPatient": [1e30, 0, 0]}, "ImagePositionPatient"),
        ],
    )
    def test_impossible_ones(self, tmp_path, attributes, text):
        with pytest.raises(ScanError, match=text):
            read_scan(write_series(tmp_path / "s", volume(), **attributes))


class TestBeside:
    """Row 19."""

    @pytest.fixture
    def crowded(self, folder):
        for kind, name in [
            (BasicTextSRStorage, "sr.dcm"),
            (RTStructureSetStorage, "rt"),
            (SegmentationStorage, "seg.dcm"),
            (MediaStorageDirectoryStorage, "DICOMDIR"),
        ]:
            save(dataset(kind, Modality="OT"), folder / name)
        (folder / "notes.txt").write_text("x")
        (folder / "thumbs").write_bytes(b"\0" * 500)
        (folder / "empty").touch()
        (folder / ".DS_Store").write_bytes(b"junk")
        (folder / "sub").mkdir()
        return folder

    def test_skipped_and_counted(self, crowded):
        scan = read_scan(crowded)
        np.testing.assert_array_equal(scan.data, volume())
        assert scan.warnings == (
            "7 files were skipped beside the images: 1 directory (DICOMDIR), 3 files that are not DICOM, 1 report, "
            "1 segmentation, 1 structure set",
        )

    def test_alone(self, crowded, tmp_path):
        for name, kind in [("sr.dcm", "report"), ("seg.dcm", "segmentation"), ("DICOMDIR", "directory")]:
            with pytest.raises(ScanError, match=f"{name} is a DICOM {kind}.* and not an image"):
                read_scan(crowded / name)
        for path in crowded.glob("0*.dcm"):
            path.unlink()
        assert not can_read(crowded)
        with pytest.raises(ScanError, match="is a folder and not a scan"):
            read_scan(crowded)


class TestDamage:
    def test_voxels_cut_short(self, folder):
        path = folder / "003.dcm"
        path.write_bytes(path.read_bytes()[:-50])
        for source in (folder, path):
            with pytest.raises(ScanError, match=r"003\.dcm is cut short: it holds 190 of 240 bytes"):
                read_scan(source)

    @pytest.mark.parametrize("size", [0, 100, 140, 400, 900])
    def test_headers_cut_short(self, folder, size):
        path = folder / "003.dcm"
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ScanError) as error:
            read_scan(path)
        assert "003.dcm" in str(error.value)
        if size >= 140:
            with pytest.raises(ScanError, match=r"003\.dcm.*(damaged|cut short)"):
                read_scan(folder)

    def test_a_folder_of_damaged_files(self, tmp_path):
        folder = write_series(tmp_path / "s", volume((1, 5, 6)))
        path = folder / "000.dcm"
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(ScanError, match=r"000\.dcm"):
            read_scan(folder)

    def test_more_frames_than_voxels(self, tmp_path):
        path = edit(write_enhanced(tmp_path / "mf.dcm", volume()), NumberOfFrames=9)
        with pytest.raises(ScanError, match="describes 8 frames and holds 9"):
            read_scan(path)

    def test_a_huge_size_costs_no_memory(self, tmp_path):
        folder = write_series(tmp_path / "s", volume((1, 5, 6)), Rows=65535, Columns=65535)
        with pytest.raises(ScanError, match="cut short"):
            read_scan(folder)

    def test_compressed_voxels_cut_short(self, tmp_path):
        folder = write_series(tmp_path / "s", volume((1, 64, 64)))
        image = pydicom.dcmread(folder / "000.dcm")
        image.compress(pydicom.uid.RLELossless)
        image.save_as(folder / "000.dcm")
        whole = (folder / "000.dcm").read_bytes()
        for lost in (8, 500, 4000):
            (folder / "000.dcm").write_bytes(whole[:-lost])
            with pytest.raises(ScanError, match="cut short"):
                read_scan(folder)


class TestRow17And18:
    def test_an_invalid_value_representation(self, folder):
        path = folder / "003.dcm"
        raw = path.read_bytes()
        at = raw.index(b"\x28\x00\x30\x00DS")
        path.write_bytes(raw[: at + 4] + b"QQ" + raw[at + 6 :])
        for source in (path, folder):
            with pytest.raises(ScanError, match=r"003\.dcm holds an invalid value.* in PixelSpacing \(0028,0030\)"):
                read_scan(source)

    @pytest.mark.parametrize("value", [b"1.5e\\0.8 ", b"\xff\xfe\\1   ", b"NaN\\0.75"])
    def test_an_invalid_value(self, folder, value):
        path = folder / "003.dcm"
        raw = path.read_bytes()
        at = raw.index(b"\x28\x00\x30\x00DS") + 8
        length = int.from_bytes(raw[at - 2 : at], "little")
        path.write_bytes(raw[:at] + value[:length].ljust(length) + raw[at + length :])
        with pytest.raises(ScanError, match="PixelSpacing"):
            read_scan(folder)

    def test_no_preamble(self, folder):
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[132:])
        for source in (folder / "003.dcm", folder):
            with pytest.raises(ScanError, match=r"lacks the preamble.*untrusted"):
                read_scan(source)
        np.testing.assert_array_equal(read_scan(folder, untrusted=True).data, volume())
        (folder / "003.dcm").rename(folder / "no suffix")
        with pytest.raises(ScanError, match="no suffix lacks the preamble"):
            read_scan(folder / "no suffix")

    @pytest.mark.parametrize("implicit", [False, True])
    def test_no_preamble_and_no_meta(self, folder, implicit):
        for path in folder.iterdir():
            image = pydicom.dcmread(path)
            image.remove_private_tags()
            with path.open("wb") as stream:
                pydicom.dcmwrite(stream, _without_meta(image), implicit_vr=implicit, little_endian=True)
        with pytest.raises(ScanError, match="lacks the preamble"):
            read_scan(folder)
        np.testing.assert_array_equal(read_scan(folder, untrusted=True).data, volume())

    def test_something_else_named_dicom(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(b"\x89PNG\r\n" * 100)
        for untrusted in (False, True):
            with pytest.raises(ScanError, match=r"a\.dcm"):
                read_scan(tmp_path / "a.dcm", untrusted=untrusted)


def _without_meta(image):
    bare = pydicom.Dataset()
    bare.update({element.tag: element for element in image})
    return bare


def test_row_13_a_missing_codec_is_named(tmp_path):
    folder = write_series(tmp_path / "s", volume((1, 16, 16), 0, 200))
    image = pydicom.dcmread(folder / "000.dcm")
    image.compress(pydicom.uid.JPEGLSLossless)
    image.save_as(folder / "000.dcm")
    np.testing.assert_array_equal(read_scan(folder).data, volume((1, 16, 16), 0, 200)[0])
    code = (
        "import sys\n"
        "for name in ('jpeg_ls', 'pylibjpeg', 'gdcm'): sys.modules[name] = None\n"
        "from napari_unet.domain.errors import ScanError\n"
        "from napari_unet.io.registry import read_scan\n"
        "try: read_scan(sys.argv[1])\n"
        "except ScanError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert "000.dcm is compressed with JPEG-LS" in run.stdout
    assert "'pip install pylibjpeg pyjpegls'" in run.stdout


def test_a_method_that_nothing_decodes(folder):
    image = pydicom.dcmread(folder / "003.dcm")
    assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    image.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    image.save_as(folder / "003.dcm")
    with pytest.raises(ScanError, match=r"MPEG2.*no decoder"):
        read_scan(folder / "003.dcm")


def test_an_unknown_encoding(folder):
    raw = (folder / "003.dcm").read_bytes()
    (folder / "003.dcm").write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    with pytest.raises(ScanError, match=r"an unknown method \(1\.2\.840\.10008\.9\.9\.9\)"):
        read_scan(folder)


def test_nothing_of_the_patient_in_any_sentence(folder, tmp_path):
    """Row 58, for the errors and warnings of this reader."""
    sentences = list(read_scan(folder).warnings)
    move(folder, {4: [0, 0, 1.0]})
    with pytest.raises(ScanError) as error:
        read_scan(folder)
    sentences += [str(error.value), *read_scan(folder, untrusted=True).warnings]
    assert not any(word in line for line in sentences for word in (*PATIENT.split("^"), "PLANTED-ID", "19010203"))


def test_paths_in_sentences_are_names_only(folder):
    (folder / "003.dcm").unlink()
    with pytest.raises(ScanError) as error:
        read_scan(folder)
    assert str(Path(folder).parent) not in str(error.value)
