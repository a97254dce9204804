"""The phantom is one patient per seed, anatomically the right way round, and no threshold solves it."""

import socket
from functools import cache

import numpy as np
import pytest

from napari_unet.domain.geometry import orientation_codes
from napari_unet.io.samples import ct_phantom, picture_samples

SEEDS = (0, 1, 2, 3)
LIVER, KIDNEYS, SPLEEN, AORTA = 1, 2, 3, 4


@cache
def phantom(seed, spacing="thin"):
    return ct_phantom(seed, spacing)


def centroid(scan, mask):
    """Return the LPS position (x, y, z) in mm of the middle of a mask."""
    return (scan.geometry.affine @ [*np.argwhere(mask).mean(0), 1])[:3]


@pytest.mark.parametrize(("spacing", "n", "dz"), [("thin", 64, 2.5), ("thick", 32, 5.0)])
def test_it_is_a_ct_on_a_known_grid(spacing, n, dz):
    scan, labels, schema = phantom(0, spacing)
    assert scan.data.shape == labels.shape == (n, 112, 128)
    assert (scan.data.dtype, labels.dtype) == (np.int16, np.uint8)
    assert (scan.axes, scan.slice_axis, scan.modality, scan.source) == ("zyx", 0, "CT", None)
    assert scan.geometry.spacing == (dz, 2.5, 2.5)
    assert orientation_codes(scan.geometry.affine) == "SPL"
    np.testing.assert_allclose(np.linalg.norm(scan.geometry.affine[:3, :3], axis=0), scan.geometry.spacing)
    assert [c.name for c in schema.classes] == ["liver", "kidneys", "spleen", "aorta"]
    assert scan.warnings == ("phantom: computed, not a patient",)
    assert -1024 <= scan.data.min() < -950


def test_equal_seeds_are_equal_to_the_voxel():
    scan, labels, _ = phantom(3)
    again, labels_again, _ = ct_phantom(3)
    assert scan.fingerprint == again.fingerprint
    np.testing.assert_array_equal(labels, labels_again)


def test_other_seeds_are_other_patients():
    sizes = [np.bincount(phantom(s)[1].ravel(), minlength=5)[1:] for s in SEEDS]
    assert len({phantom(s)[0].fingerprint for s in SEEDS}) == len(SEEDS)
    assert (np.std(sizes, axis=0) / np.mean(sizes, axis=0) > 0.05).all()
    means = [[phantom(s)[0].data[phantom(s)[1] == i].mean() for i in (1, 2, 3, 4)] for s in SEEDS]
    assert (np.std(means, axis=0) > 3).all()
    # One patient's mask does not do for another.
    first, second = phantom(0)[1] == SPLEEN, phantom(1)[1] == SPLEEN
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_have_human_sizes_and_sides(seed):
    scan, labels, _ = phantom(seed)
    millilitres = {i: (labels == i).sum() * np.prod(scan.geometry.spacing) / 1000 for i in range(1, 5)}
    assert 300 < millilitres[LIVER] < 2500
    assert 100 < millilitres[KIDNEYS] < 500
    assert 40 < millilitres[SPLEEN] < 450
    assert 30 < millilitres[AORTA] < 150
    liver, spleen, aorta = (centroid(scan, labels == i) for i in (LIVER, SPLEEN, AORTA))
    # x rises to the patient's left, y to the back, z to the head.
    assert liver[0] < -15 < 30 < spleen[0]
    assert -5 < aorta[0] < 25
    assert spleen[1] > liver[1]
    middle = labels.shape[2] // 2
    right, left = labels.copy(), labels.copy()
    right[..., middle:], left[..., :middle] = 0, 0
    assert (right == KIDNEYS).any()
    assert (left == KIDNEYS).any()
    assert spleen[2] > centroid(scan, left == KIDNEYS)[2]


def test_both_spacings_show_one_patient():
    thin, thin_labels, _ = phantom(2)
    thick, thick_labels, _ = phantom(2, "thick")
    pairs = (thin.data[0::2].astype(float) + thin.data[1::2]) / 2
    # Air is cut off at -1024 in both, before and after the mean.
    tissue = pairs > -900
    assert np.abs(pairs - thick.data)[tissue].max() <= 1
    for organ in (LIVER, KIDNEYS, SPLEEN, AORTA):
        fine, coarse = (labels == organ for labels in (thin_labels, thick_labels))
        assert coarse.sum() * 2 == pytest.approx(fine.sum(), rel=0.06)
        np.testing.assert_allclose(centroid(thin, fine), centroid(thick, coarse), atol=0.6)


def best_interval_dice(image, mask):
    """Return the best Dice that any interval of grey values reaches."""
    values = np.clip(image, -200, 600).ravel() + 200
    inside = np.bincount(values[mask.ravel()], minlength=801).cumsum()
    everything = np.bincount(values, minlength=801).cumsum()
    return max(
        (2 * (inside[low + 1 :] - inside[low]) / (everything[low + 1 :] - everything[low] + inside[-1])).max()
        for low in range(800)
    )


@pytest.mark.parametrize(("organ", "bound"), [(LIVER, 0.8), (KIDNEYS, 0.7), (SPLEEN, 0.4), (AORTA, 0.5)])
def test_no_threshold_finds_an_organ(organ, bound):
    # Not even with the best interval for each patient, chosen by looking at the truth.
    assert max(best_interval_dice(phantom(s)[0].data, phantom(s)[1] == organ) for s in SEEDS) < bound


def test_lesions_are_darker_parts_of_the_liver():
    from scipy import ndimage

    for seed in SEEDS:
        scan, labels, _ = phantom(seed)
        smooth = ndimage.gaussian_filter(scan.data.astype(float), 1.5)
        deep = ndimage.binary_erosion(labels == LIVER, iterations=3)
        assert np.median(smooth[deep]) - smooth[deep].min() > 20


def test_a_spacing_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="thin"):
        ct_phantom(0, "medium")


def test_pictures_load_without_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    samples = picture_samples()
    assert {key for key, _, _ in samples} == {"retina", "ihc", "cell", "microaneurysms"}
    for _, name, load in samples:
        scan = load()
        assert name
        assert min(scan.spatial_shape) > 90
        assert scan.data.dtype == np.uint8
        assert scan.is_rgb == (scan.data.ndim == 3)
        assert scan.data.std() > 5
        assert scan.geometry.spacing is None


def test_only_pictures_that_are_there_are_offered(monkeypatch, tmp_path):
    from importlib.machinery import ModuleSpec

    spec = ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cell.png").write_bytes(b"")
    monkeypatch.setattr("napari_unet.io.samples.find_spec", lambda name: spec)
    assert [key for key, _, _ in picture_samples()] == ["cell"]
    monkeypatch.setattr("napari_unet.io.samples.find_spec", lambda name: None)
    assert picture_samples() == []
