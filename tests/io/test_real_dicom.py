"""The real DICOM beside the checkout: right places, and for what is refused a sentence that fits."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from napari_unet.domain.errors import ScanError, SeriesChoiceError, UntrustedGeometryError, VolumeChoiceError
from napari_unet.io.registry import can_read, find_sources, list_series, read_scan
from tests.real_data import REAL_DATA, needs_real_data

pytestmark = needs_real_data

AWKWARD, ZOO = REAL_DATA / "dicom_awkward", REAL_DATA / "dicom_awkward" / "pydicom_zoo"
#: Folder, shape, spacing, a word of every warning.
SERIES = [
    ("dicom_mr_series/study1_hcrop", (32, 51, 35), (1, 1, 1), ()),
    ("dicom_mr_series/study2_hcrop", (35, 48, 36), (1, 1, 1), ()),
    ("dicom_mr_series/study3_hcrop", (40, 50, 34), (1, 1, 1), ()),
    ("dicom_mr_series/study3_flair_reg", (22, 320, 280), (6.5, 0.6875, 0.6875), ("SliceThickness", "oblique")),
    ("multiorgan_ct_mr/images/ct_dicom_j2k", (20, 512, 512), (2, 0.9765625, 0.9765625), ("SliceThickness",)),
    ("dicom_awkward/dcmqi_ct3_seg/ct", (3, 512, 512), (1, 0.810547, 0.810547), ("SliceThickness",)),
]


@pytest.mark.parametrize(("name", "shape", "spacing", "warnings"), SERIES, ids=[row[0] for row in SERIES])
def test_series(name, shape, spacing, warnings):
    folder = REAL_DATA / name
    scan = read_scan(folder)
    assert (scan.axes, scan.data.shape, scan.slice_axis) == ("zyx", shape, 0)
    assert scan.geometry.source_orientation == "LPS"
    np.testing.assert_allclose(scan.geometry.spacing, spacing, atol=1e-5)
    assert len(scan.warnings) == len(warnings)
    assert all(word in line for word, line in zip(warnings, scan.warnings, strict=True))

    files = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    assert list(scan.source_files) == files
    image = sitk.ReadImage([str(path) for path in files])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan.data)
    for index in np.random.default_rng(0).integers(0, shape, (20, 3)):
        point = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose((scan.geometry.affine @ [*index, 1])[:3], point, atol=2e-3)

    datasets = [pydicom.dcmread(path) for path in files]
    for dataset in datasets:
        dataset.SOPClassUID = dataset.SOPClassUID or pydicom.uid.CTImageStorage  # emptied in one of the series
    volume = hd.get_volume_from_series(datasets)
    np.testing.assert_array_equal(volume.array[::-1], scan.data)
    last = volume.affine @ [shape[0] - 1, 0, 0, 1]
    np.testing.assert_allclose(last, scan.geometry.affine[:, 3], atol=1e-4)


def test_the_series_fits_its_mask():
    """Its mask is a NIfTI file of another program's."""
    scan = read_scan(REAL_DATA / "multiorgan_ct_mr" / "images" / "ct_dicom_j2k")
    mask = read_scan(REAL_DATA / "multiorgan_ct_mr" / "masks" / "ct_dicom_j2k.nii.gz")
    assert mask.data.shape == scan.data.shape
    np.testing.assert_allclose(mask.geometry.affine, scan.geometry.affine, atol=1e-3)


#: What is refused and why; everything else in the folder has to be read.
REFUSED = {
    "emri_small.dcm": (UntrustedGeometryError, "does not say where its 10 slices stand"),
    "emri_small_big_endian.dcm": (UntrustedGeometryError, "does not say where its 10 slices stand"),
    "emri_small_jpeg_2k_lossless_too_short.dcm": (ScanError, "cut short"),
    "OBXXXX1A_rle_2frame.dcm": (VolumeChoiceError, "2 volumes"),
    "sparse-labelmap-noppv.dcm": (ScanError, "a DICOM segmentation"),
    "sparse-labelmap-ppv5.dcm": (ScanError, "a DICOM segmentation"),
    "partial_overlaps.dcm": (ScanError, "a DICOM segmentation"),
    "liver.dcm": (ScanError, "a DICOM segmentation"),
    "liver_rle.dcm": (ScanError, "a DICOM segmentation"),
    "liver_expb.dcm": (ScanError, "a DICOM segmentation"),
}
AWKWARD_FILES = sorted(AWKWARD.rglob("*.dcm"))


@pytest.mark.parametrize("path", AWKWARD_FILES, ids=lambda path: path.relative_to(AWKWARD).as_posix())
def test_awkward_files(path):
    assert can_read(path)
    if path.name in REFUSED:
        kind, sentence = REFUSED[path.name]
        with pytest.raises(kind, match=sentence):
            read_scan(path)
        return
    scan = read_scan(path)
    assert np.isfinite(scan.data).all()
    dataset = pydicom.dcmread(path)
    if path.name.startswith(("explicit_VR-UN", "HTJ2K", "parametric_map")) or dataset.get("NumberOfFrames", 1) > 1:
        return  # more than SimpleITK reads
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    theirs = theirs[0] if theirs.ndim > 2 and theirs.shape[0] == 1 else theirs
    theirs = 1023 - theirs if scan.inverted else theirs  # which turns the values themselves over
    np.testing.assert_allclose(scan.data, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "axes", "shape", "dtype", "spacing", "inverted"),
    [
        ("RG3_J2KR.dcm", "yx", (1760, 1760), "uint16", None, True),
        ("MR2_J2KR.dcm", "yx", (1024, 1024), "float32", (0.195313, 0.195313), False),
        ("HTJ2KLossless_08_RGB.dcm", "yxc", (480, 640, 3), "uint8", None, False),
        ("693_J2KR.dcm", "yx", (512, 512), "int16", (0.478516, 0.478516), False),
        ("JPEG-LL.dcm", "yx", (1024, 256), "int16", (2.26, 2.26), False),
        ("parametric_map_float.dcm", "yx", (128, 128), "float32", (0.661468, 0.661468), False),
        ("explicit_VR-UN.dcm", "yx", (512, 512), "int16", (0.859375, 0.859375), False),
    ],
)
def test_awkward_pictures(name, axes, shape, dtype, spacing, inverted):
    scan = read_scan(ZOO / name)
    assert (scan.axes, scan.data.shape, str(scan.data.dtype)) == (axes, shape, dtype)
    assert scan.geometry.spacing == (None if spacing is None else pytest.approx(spacing))
    assert scan.inverted is inverted


def test_what_the_person_insists_on():
    plain, packed = (
        read_scan(ZOO / f"emri_small{end}.dcm", untrusted=True) for end in ("", "_jpeg_2k_lossless_too_short")
    )
    big = read_scan(ZOO / "emri_small_big_endian.dcm", untrusted=True)
    assert plain.data.shape == (10, 64, 64)
    np.testing.assert_array_equal(plain.data, pydicom.dcmread(ZOO / "emri_small.dcm").pixel_array)
    np.testing.assert_array_equal(plain.data, big.data)
    np.testing.assert_array_equal(plain.data, packed.data)
    clip = read_scan(ZOO / "OBXXXX1A_rle_2frame.dcm", volume=1)
    assert (clip.axes, clip.modality, clip.data.shape) == ("yxc", "US", (600, 800, 3))


def test_slices_as_frames():
    folder = AWKWARD / "dcmqi_multiframe"
    frames = read_scan(folder / "24x38x3_multiframe_mf.dcm")
    series = read_scan(folder, series=list_series(folder)[0].uid)
    np.testing.assert_array_equal(frames.data, series.data)
    np.testing.assert_allclose(frames.geometry.affine, series.geometry.affine, atol=1e-6)
    assert series.warnings == ("2 files were skipped beside the images: 2 segmentations",)


def test_a_folder_of_everything():
    with pytest.raises(SeriesChoiceError, match="14 series") as error:
        read_scan(ZOO)
    uids = [series.uid for series in error.value.series]
    assert len(set(uids)) == len(uids) == 14
    refused = 0
    for uid in uids:
        try:
            assert read_scan(ZOO, series=uid).data.size
        except ScanError:
            refused += 1
    assert refused == 4


def test_folders_are_sources():
    found = [path.relative_to(REAL_DATA).as_posix() for path in find_sources(AWKWARD)]
    assert found == [
        "dicom_awkward/dcmqi_ct3_seg/ct",
        *(f"dicom_awkward/dcmqi_ct3_seg/{name}_seg.nrrd" for name in ("heart", "liver", "liver_spine", "spine")),
        "dicom_awkward/dcmqi_multiframe",
        "dicom_awkward/pydicom_zoo",
    ]
