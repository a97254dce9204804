"""Sound DICOM: every voxel in its place, whatever the files are called and however they are cut into frames."""

import random
import shutil

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from napari_unet.domain.errors import ScanError, SeriesChoiceError, VolumeChoiceError
from napari_unet.io.dicom.reader import series_datasets, to_acquired_slices
from napari_unet.io.registry import list_series, read_scan
from tests.io.dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    ORIENTATIONS,
    ORIGIN,
    PATIENT,
    SAGITTAL,
    edit,
    positions,
    volume,
    write_enhanced,
    write_picture,
    write_series,
)


def by_sitk(folder):
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return sitk.ReadImage(names)


def assert_same_places(scan, image, n=60):
    """The same value at the same LPS point as SimpleITK has it."""
    array, rng = sitk.GetArrayFromImage(image), np.random.default_rng(1)
    assert sorted(array.shape) == sorted(scan.data.shape)
    for index in rng.integers(0, scan.data.shape, (n, 3)):
        point = (scan.geometry.affine @ [*index, 1])[:3]
        there = image.TransformPhysicalPointToIndex([float(v) for v in point])
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(there), point, atol=1e-5)
        assert array[there[::-1]] == scan.data[tuple(index)]


class TestPlaces:
    @pytest.mark.parametrize("name", ORIENTATIONS)
    def test_as_simpleitk_has_them(self, tmp_path, name):
        write_series(tmp_path / "s", volume(), orientation=ORIENTATIONS[name])
        scan = read_scan(tmp_path / "s")
        assert_same_places(scan, by_sitk(tmp_path / "s"))
        assert scan.axes == "zyx"
        assert scan.data.flags.writeable
        assert scan.data.flags.c_contiguous

    @pytest.mark.parametrize("name", ORIENTATIONS)
    def test_as_highdicom_has_them(self, tmp_path, name):
        write_series(tmp_path / "s", volume(), orientation=ORIENTATIONS[name])
        scan = read_scan(tmp_path / "s")
        theirs = hd.get_volume_from_series([pydicom.dcmread(path) for path in (tmp_path / "s").iterdir()])
        ours = scan.geometry.axis_map.to_source(scan.data)
        affine = scan.geometry.source_affine[:, [2, 1, 0, 3]]
        # highdicom counts slices against the normal.
        np.testing.assert_array_equal(ours, theirs.array[::-1])
        np.testing.assert_allclose(affine[:3, 1:3], theirs.affine[:3, 1:3], atol=1e-6)
        np.testing.assert_allclose(affine[:3, 0], -theirs.affine[:3, 0], atol=1e-6)

    @pytest.mark.parametrize(
        ("orientation", "codes", "axis", "spacing"),
        [
            (AXIAL, "LPS", 0, (2.5, 0.8, 0.7)),
            (CORONAL, "LIP", 1, (0.8, 2.5, 0.7)),
            (SAGITTAL, "PIR", 2, (0.8, 0.7, 2.5)),
        ],
    )
    def test_the_acquired_plane(self, tmp_path, orientation, codes, axis, spacing):
        scan = read_scan(write_series(tmp_path / "s", volume(), orientation=orientation))
        assert (scan.slice_axis, scan.geometry.source_orientation) == (axis, codes)
        np.testing.assert_allclose(scan.geometry.spacing, spacing)
        assert scan.n_slices == 8
        # Left is where x grows, back where y does, head where z does.
        assert (np.diag(scan.geometry.affine[2::-1, :3]) > 0).all()

    def test_oblique_is_said_and_exact(self, tmp_path):
        scan = read_scan(write_series(tmp_path / "s", volume(), orientation=OBLIQUE))
        assert any(line.startswith("oblique by 2") for line in scan.warnings)
        source = np.eye(4)
        source[:3, 0], source[:3, 1] = np.array(OBLIQUE[:3]) * 0.7, np.array(OBLIQUE[3:]) * 0.8
        source[:3, 2], source[:3, 3] = np.cross(OBLIQUE[:3], OBLIQUE[3:]) * 2.5, ORIGIN
        np.testing.assert_allclose(scan.geometry.source_affine, source, atol=1e-6)

    def test_the_tags_of_it(self, tmp_path):
        scan = read_scan(write_series(tmp_path / "s", volume(), WindowCenter=[40, 400], WindowWidth=[300, 1500]))
        assert (scan.modality, scan.window, scan.inverted, scan.warnings) == ("CT", (-110.0, 190.0), False, ())
        assert [(s.description, s.shape, s.chosen) for s in scan.series] == [("made up", (8, 12, 10), True)]
        assert PATIENT not in repr((scan.series, scan.warnings))


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL], ids=["axial", "sagittal", "coronal"])
def test_row_3_and_4_names_and_numbers_mean_nothing(tmp_path, orientation):
    expected = read_scan(write_series(tmp_path / "a", volume(), orientation=orientation))
    shuffled = write_series(
        tmp_path / "b",
        volume(),
        orientation=orientation,
        change=lambda image, k: setattr(image, "InstanceNumber", 100 - k),
    )
    files = sorted(shuffled.iterdir())
    for path, number in zip(files, random.Random(2).sample(range(len(files)), len(files)), strict=True):
        path.rename(shuffled / f"IM{number}")
    scan = read_scan(shuffled)
    np.testing.assert_array_equal(scan.data, expected.data)
    np.testing.assert_array_equal(scan.geometry.affine, expected.geometry.affine)


def test_files_and_headers_follow_the_slices(tmp_path):
    for name, orientation in ORIENTATIONS.items():
        array = volume()
        scan = read_scan(write_series(tmp_path / name, array, orientation=orientation))
        headers = series_datasets(scan)
        assert len(headers) == len(scan.source_files) == scan.n_slices
        assert not any("PixelData" in header for header in headers)
        frames = to_acquired_slices(scan, scan.data)
        for header, frame in zip(headers, frames, strict=True):
            np.testing.assert_array_equal(frame, array[header.InstanceNumber - 1])


def test_one_file_is_a_picture(tmp_path):
    array = volume()
    folder = write_series(tmp_path / "s", array)
    scan = read_scan(folder / "003.dcm")
    assert (scan.axes, scan.slice_axis, scan.geometry.spacing) == ("yx", None, (0.8, 0.7))
    assert scan.geometry.affine is None
    np.testing.assert_array_equal(scan.data, array[3])
    np.testing.assert_array_equal(to_acquired_slices(scan, scan.data), array[3:4])
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "003.dcm", tmp_path / "alone" / "no suffix")
    np.testing.assert_array_equal(read_scan(tmp_path / "alone").data, array[3])
    np.testing.assert_array_equal(read_scan(tmp_path / "alone" / "no suffix").data, array[3])


class TestSeries:
    """Rows 5 and 6."""

    @pytest.fixture
    def folder(self, tmp_path):
        write_series(tmp_path / "s", volume(), series="1.2.3.4", SeriesDescription="portal")
        write_series(tmp_path / "s", volume((5, 12, 10)), series="1.2.3.5", prefix="b")
        return tmp_path / "s"

    def test_a_chooser(self, folder):
        with pytest.raises(SeriesChoiceError, match=r"2 series.*--series.*1\.2\.3\.4 \(portal, 8x12x10\)") as error:
            read_scan(folder)
        assert [(s.uid, s.shape, s.chosen) for s in error.value.series] == [
            ("1.2.3.4", (8, 12, 10), False),
            ("1.2.3.5", (5, 12, 10), False),
        ]
        assert list_series(folder) == error.value.series
        assert PATIENT not in str(error.value)

    def test_chosen_by_uid_or_its_beginning(self, folder):
        scan = read_scan(folder, series="1.2.3.5")
        assert scan.data.shape == (5, 12, 10)
        assert [s.chosen for s in scan.series] == [False, True]
        for wrong in ("1.2", "1.2.3.9", ""):
            with pytest.raises(SeriesChoiceError):
                read_scan(folder, series=wrong)
        write_series(folder, volume(), series="1.2.4", prefix="c")
        assert read_scan(folder, series="1.2.4").data.shape == (8, 12, 10)
        # A whole UID is meant, even if another begins with it.
        write_series(folder, volume((3, 12, 10)), series="1.2.4.1", prefix="d")
        assert read_scan(folder, series="1.2.4").data.shape == (8, 12, 10)

    def test_a_localizer_with_the_uid_of_the_scan(self, tmp_path):
        write_series(tmp_path, volume(), series="1.2.3")
        localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write_series(
            tmp_path, volume((1, 20, 20)), series="1.2.3", orientation=CORONAL, prefix="l", ImageType=localizer
        )
        with pytest.raises(SeriesChoiceError) as error:
            read_scan(tmp_path)
        assert [(s.uid, s.description, s.shape) for s in error.value.series] == [
            ("1.2.3-1", "made up", (8, 12, 10)),
            ("1.2.3-2", "made up, localizer", (20, 20)),
        ]
        assert read_scan(tmp_path, series="1.2.3-1").warnings == ()
        with pytest.raises(SeriesChoiceError, match=r"2 series that begin with '1\.2\.3'"):
            read_scan(tmp_path, series="1.2.3")

    @pytest.mark.parametrize(
        "attributes",
        [{"EchoNumbers": 2}, {"orientation": SAGITTAL}, {"spacing": (2.5, 0.8, 0.8)}, {"ImageType": ["DERIVED"]}],
        ids=str,
    )
    def test_what_else_divides_a_uid(self, tmp_path, attributes):
        write_series(tmp_path, volume(), series="1.2.3", EchoNumbers=1, ImageType=["ORIGINAL"])
        write_series(tmp_path, volume(), series="1.2.3", prefix="b", **{"EchoNumbers": 1, **attributes})
        assert [s.uid for s in list_series(tmp_path)] == ["1.2.3-1", "1.2.3-2"]

    def test_acquisitions_end_to_end_are_one_volume_and_on_another_grid_two(self, tmp_path):
        array = volume()
        write_series(tmp_path / "a", array, change=lambda image, k: setattr(image, "AcquisitionNumber", k // 4))
        assert read_scan(tmp_path / "a").data.shape == (8, 12, 10)
        write_series(tmp_path / "b", array, series="1.2.3", AcquisitionNumber=1)
        write_series(tmp_path / "b", array[:4], series="1.2.3", AcquisitionNumber=2, prefix="b")
        assert [s.shape for s in list_series(tmp_path / "b")] == [(8, 12, 10), (4, 12, 10)]


class TestFrames:
    """Row 14."""

    @pytest.mark.parametrize("name", ORIENTATIONS)
    def test_sorted_by_position(self, tmp_path, name):
        array = volume()
        order = random.Random(3).sample(range(8), 8)
        write_enhanced(tmp_path / "mf.dcm", array, order=order, orientation=ORIENTATIONS[name])
        scan = read_scan(tmp_path / "mf.dcm")
        expected = read_scan(write_series(tmp_path / "s", array, orientation=ORIENTATIONS[name]))
        np.testing.assert_array_equal(scan.data, expected.data)
        np.testing.assert_allclose(scan.geometry.affine, expected.geometry.affine, atol=1e-6)
        assert scan.source_files == (tmp_path / "mf.dcm",)
        assert len(series_datasets(scan)) == 1

    def test_slopes_of_frames(self, tmp_path):
        slopes = [1.0, 2.0, 3.0, 0.5]
        scan = read_scan(write_enhanced(tmp_path / "mf.dcm", volume((4, 6, 5)), slopes=slopes))
        expected = volume((4, 6, 5)) * np.array(slopes)[:, None, None]
        np.testing.assert_array_equal(scan.data, expected.astype(np.float32))

    def test_a_clip_is_a_time_axis(self, tmp_path):
        clip = volume((6, 20, 30), 0, 200).astype(np.uint8)
        path = write_picture(tmp_path / "clip.dcm", clip, frames=True)
        with pytest.raises(VolumeChoiceError, match="6 volumes") as error:
            read_scan(path)
        assert error.value.n_volumes == 6
        scan = read_scan(path, volume=4)
        assert (scan.axes, scan.modality) == ("yx", "US")
        np.testing.assert_array_equal(scan.data, clip[4])
        with pytest.raises(ScanError, match="no volume 6"):
            read_scan(path, volume=6)

    def test_in_a_folder_with_others(self, tmp_path):
        write_enhanced(tmp_path / "a.dcm", volume())
        write_enhanced(tmp_path / "b.dcm", volume((4, 12, 10)))
        assert sorted(s.shape for s in list_series(tmp_path)) == [(4, 12, 10), (8, 12, 10)]


class TestTime:
    """Row 15: time is its own axis."""

    def assert_volumes(self, path, array):
        with pytest.raises(VolumeChoiceError, match="3 volumes") as error:
            read_scan(path)
        assert error.value.n_volumes == 3
        for number in range(3):
            scan = read_scan(path, volume=number)
            np.testing.assert_array_equal(scan.data, array[number])
            np.testing.assert_allclose(scan.geometry.spacing, (2.5, 0.8, 0.7))
        assert list_series(path)[0].description.endswith("3 volumes")

    @pytest.mark.parametrize(
        "keyword", ["TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "ContentTime"]
    )
    def test_repeated_positions(self, tmp_path, keyword):
        array = volume((12, 9, 8)).reshape(3, 4, 9, 8)
        numbers = iter(random.Random(1).sample(range(12), 12))
        for time, content in enumerate(array):
            stamp = f"10000{time}" if keyword == "ContentTime" else time + 1
            write_series(
                tmp_path / "s",
                content,
                series="1.2.3",
                prefix=f"{9 - time}-",
                change=lambda image, k: setattr(image, "InstanceNumber", next(numbers)),
                **{keyword: stamp},
            )
        self.assert_volumes(tmp_path / "s", array)

    def test_frames(self, tmp_path):
        array = volume((12, 9, 8))
        write_enhanced(tmp_path / "mf.dcm", array, times=3, order=random.Random(1).sample(range(12), 12))
        self.assert_volumes(tmp_path / "mf.dcm", array.reshape(3, 4, 9, 8))

    def test_a_beating_slice(self, tmp_path):
        array = volume((5, 9, 8))
        write_series(
            tmp_path / "s", array, spacing=(0, 1, 1), change=lambda image, k: setattr(image, "TriggerTime", 50 * k)
        )
        with pytest.raises(VolumeChoiceError, match="5 volumes"):
            read_scan(tmp_path / "s")
        scan = read_scan(tmp_path / "s", volume=2)
        assert scan.axes == "yx"
        np.testing.assert_array_equal(scan.data, array[2])

    def test_pictures_without_positions(self, tmp_path):
        for number in range(3):
            picture = volume((1, 9, 8), number, number + 1).astype(np.uint8)[0]
            write_picture(tmp_path / f"{9 - number}.dcm", picture, SeriesInstanceUID="1.2", InstanceNumber=number)
        with pytest.raises(VolumeChoiceError, match="3 volumes"):
            read_scan(tmp_path)
        assert (read_scan(tmp_path, volume=1).data == 1).all()


def test_strange_paths(tmp_path):
    folder = tmp_path / "Größe 测试 with  blanks" / ("d" * 200)
    array = volume()
    write_series(folder, array)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"ü 画像 {number}{'n' * 200}")
    np.testing.assert_array_equal(read_scan(folder).data, array)


def test_positions_a_little_rounded_are_even(tmp_path):
    where = positions(40, 0.7)
    write_series(
        tmp_path / "s",
        volume((40, 5, 6)),
        change=lambda image, k: setattr(image, "ImagePositionPatient", [round(v, 2) for v in where[k]]),
    )
    scan = read_scan(tmp_path / "s")
    assert scan.geometry.spacing[0] == pytest.approx(0.7, abs=1e-3)
    edit(tmp_path / "s" / "020.dcm", ImagePositionPatient=list(where[20] + [0, 0, 0.1]))
    with pytest.raises(ScanError, match="uneven"):
        read_scan(tmp_path / "s")
