"""The real scans beside the checkout: everything reads, pairs fit; nibabel, SimpleITK and highdicom agree."""

import nibabel as nib
import numpy as np
import pytest

from napari_unet.domain.errors import MaskError
from napari_unet.domain.geometry import LPS_FROM_RAS
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.masks import LabelMapping, TruthRule
from napari_unet.io.pairs import find_pairs, group_of, load_pairs
from napari_unet.io.registry import find_sources, read_scan
from napari_unet.io.writers import mask_suffix, write_mask
from tests.real_data import REAL_DATA, needs_real_data

pytestmark = needs_real_data

# Name, pairs, rule, mapping; every n-th pair is loaded.
SETS = [
    ("hippocampus_mr", 200, TruthRule(), LabelMapping((1, 2)), 8),
    ("cardiac_cine_mr", 526, TruthRule(), LabelMapping((255,)), 20),
    ("nuclei_fluorescence", 52, TruthRule(binary=True), LabelMapping((), binary=True), 4),
    ("breast_ultrasound", 60, TruthRule(), LabelMapping((255,)), 4),
    ("em_membrane", 30, TruthRule((0,)), LabelMapping((0,), rest_is_background=True), 4),
    ("retina_vessel", 20, TruthRule(), LabelMapping((255,)), 4),
    ("multiorgan_ct_mr", 4, TruthRule(binary=True), LabelMapping((), binary=True), 1),
]


@pytest.mark.parametrize(("name", "n_pairs", "rule", "mapping", "step"), SETS, ids=[row[0] for row in SETS])
def test_pairs_of(name, n_pairs, rule, mapping, step):
    pairs = find_pairs(REAL_DATA / name / "images", REAL_DATA / name / "masks")
    assert len(pairs) == n_pairs
    loaded, found = load_pairs(list(pairs)[::step], rule)
    assert found == mapping
    for item in loaded:
        assert item.labels.shape == item.scan.spatial_shape
        assert item.labels.dtype == np.uint8
        assert item.scan.data.flags.writeable
        assert item.labels.max() <= mapping.n_classes


@pytest.mark.parametrize("name", ["hippocampus_mr", "multiorgan_ct_mr", "pixel_formats", "retina_vessel"])
def test_every_file_of(name):
    sources = find_sources(REAL_DATA / name)
    assert sources
    for path in sources:
        assert read_scan(path).data.size


@pytest.mark.parametrize("name", ["hippocampus_mr", "multiorgan_ct_mr"])
def test_nibabel_agrees(name, tmp_path):
    for path in [path for path in find_sources(REAL_DATA / name / "images") if path.is_file()][::20]:
        scan, image = read_scan(path), nib.load(path)
        array = np.asanyarray(image.dataobj)
        np.testing.assert_array_equal(scan.geometry.axis_map.to_source(scan.data), array)
        rng = np.random.default_rng(0)
        for index in rng.integers(0, scan.data.shape, (20, 3)):
            world = LPS_FROM_RAS @ [*(scan.geometry.affine @ [*index, 1])]
            ijk = np.rint(np.linalg.inv(image.affine) @ world).astype(int)[:3]
            assert array[tuple(ijk)] == scan.data[tuple(index)]
        out = tmp_path / f"mask{mask_suffix(None, scan)}"
        labels = (scan.data > np.median(scan.data)).astype(np.uint8)
        write_mask(labels, scan, out, LabelSchema.numbered(1))
        back = nib.load(out)
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), array > np.median(array))
        np.testing.assert_array_equal(back.affine, image.affine)
        for code in ("sform_code", "qform_code"):
            assert back.header[code] == image.header[code]


def test_the_second_observers_palettes_are_black_and_white():
    masks = REAL_DATA / "retina_vessel" / "masks_2nd_observer"
    pairs = find_pairs(REAL_DATA / "retina_vessel" / "images", masks)
    loaded, mapping = load_pairs(pairs, TruthRule())
    assert mapping == LabelMapping((255,))
    assert all(0.04 < item.labels.mean() < 0.2 for item in loaded)


def test_instances_and_many_organs_ask_for_a_rule():
    for name in ("nuclei_fluorescence", "multiorgan_ct_mr"):
        pairs = find_pairs(REAL_DATA / name / "images", REAL_DATA / name / "masks")
        with pytest.raises(MaskError, match=r"--binary.*--foreground"):
            load_pairs(pairs, TruthRule())


def test_patients_of_the_cine_set():
    pairs = find_pairs(REAL_DATA / "cardiac_cine_mr" / "images", REAL_DATA / "cardiac_cine_mr" / "masks")
    assert len({group_of(pair.stem, "^(.+)-IM-") for pair in pairs}) == 30


def test_sixteen_bits_stay_sixteen():
    folder = REAL_DATA / "pixel_formats" / "images"
    png, tif = (read_scan(folder / f"sub-{kind}_sample-16rgb_SEM.{kind}") for kind in ("png", "tif"))
    assert png.data.dtype == tif.data.dtype == np.uint16
    assert (png.axes, tif.axes) == ("yx", "yx")
    np.testing.assert_array_equal(png.data, tif.data)
