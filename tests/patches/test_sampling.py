"""Training patches: image, labels and what is known of them move as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_unet.domain.settings import AugmentationSettings, TrainingSettings
from napari_unet.patches import sampling
from napari_unet.patches.augment import change_intensities, random_transform
from napari_unet.patches.sampling import Example, PatchSampler

PLAIN = {"brightness": 0, "contrast": 0, "gamma": 0, "noise": 0}
STILL = AugmentationSettings(probability=0, mirror=(), **PLAIN)
MOVING = AugmentationSettings(probability=1, rotation_degrees=180, scale=0.3, mirror=(0, 1), elastic=0.3, **PLAIN)


def example_of(labels, image=None, reviewed=None):
    """An example whose image shows its labels, unless another is given."""
    image = labels if image is None else image
    return Example(
        torch.from_numpy(np.asarray(image, np.float32)[None]),
        torch.from_numpy(np.asarray(labels, np.uint8)),
        None if reviewed is None else torch.from_numpy(reviewed),
    )


def blobs(shape, seed=0):
    """Smooth, lopsided regions of three classes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return np.digitize(noise, np.quantile(noise, (0.4, 0.7)))


def sampler_of(examples, patch, augmentation=STILL, seed=0, **training):
    examples = examples if isinstance(examples, list) else [examples]
    return PatchSampler(examples, patch, TrainingSettings(batch_size=4, **training), augmentation, seed)


@pytest.mark.parametrize("patch", [(8, 8), (7, 9), (8, 13), (16, 16), (1, 1)])
def test_unchanged_patches_are_cut_out_of_the_image_to_the_voxel_in_2d(patch):
    shape = (3, 16, 19)
    labels = blobs(shape)
    numbers = np.arange(labels.size).reshape(shape)
    sampler = sampler_of(example_of(labels, numbers), patch)
    for _ in range(5):
        batch = sampler.draw()
        for image, found in zip(batch.image[:, 0].numpy(), batch.labels.numpy(), strict=True):
            s, y, x = np.unravel_index(round(float(image[0, 0])), shape)
            box = (s, slice(y, y + patch[0]), slice(x, x + patch[1]))
            np.testing.assert_allclose(image, numbers[box], atol=0.01)
            np.testing.assert_array_equal(found, labels[box])
        assert batch.reviewed.all()


@pytest.mark.parametrize("patch", [(4, 8, 8), (3, 7, 8), (6, 12, 12)])
def test_unchanged_patches_are_cut_out_of_the_image_to_the_voxel_in_3d(patch):
    shape = (6, 12, 13)
    labels = blobs(shape)
    numbers = np.arange(labels.size).reshape(shape)
    batch = sampler_of(example_of(labels, numbers), patch).draw()
    for image, found in zip(batch.image[:, 0].numpy(), batch.labels.numpy(), strict=True):
        corner = np.unravel_index(round(float(image[0, 0, 0])), shape)
        box = tuple(slice(a, a + n) for a, n in zip(corner, patch, strict=True))
        np.testing.assert_allclose(image, numbers[box], atol=0.01)
        np.testing.assert_array_equal(found, labels[box])


@pytest.mark.parametrize("shape", [(1, 5, 9), (1, 6, 8), (2, 10, 3)])
@pytest.mark.parametrize("patch", [(16, 16), (15, 15)])
def test_a_patch_larger_than_the_image_holds_it_whole_and_knows_nothing_outside(shape, patch):
    labels = np.ones(shape)
    numbers = np.broadcast_to(np.arange(shape[1] * shape[2]).reshape(shape[1:]), shape)
    batch = sampler_of(example_of(labels, numbers), patch).draw()
    for image, reviewed in zip(batch.image[:, 0].numpy(), batch.reviewed.numpy(), strict=True):
        assert reviewed.sum() == shape[1] * shape[2]
        np.testing.assert_allclose(image[reviewed], numbers[0].ravel(), atol=0.01)
        # Beyond the image its border goes on, as in prediction.
        assert (image.min(), image.max()) == pytest.approx((0, numbers.max()), abs=0.01)
    assert not batch.labels[~batch.reviewed].any()


@pytest.mark.parametrize("patch", [(24, 24), (4, 24, 24)])
def test_image_and_labels_stay_together_however_they_are_turned(patch):
    labels = blobs((6, 40, 44))
    sampler = sampler_of(example_of(labels), patch, MOVING)
    clear = agreeing = total = 0
    for _ in range(5):
        batch = sampler.draw()
        image = batch.image[:, 0]
        # Where the interpolated image shows one class and no mixture, its label is that class.
        sure = ((image - image.round()).abs() < 1e-3) & batch.reviewed
        total += int(batch.reviewed.sum())
        clear += int(sure.sum())
        agreeing += int((image.round() == batch.labels)[sure].sum())
    assert clear > 0.6 * total
    assert agreeing > 0.99 * clear  # a mixture of classes 0 and 2 may look like class 1


def test_what_is_not_reviewed_is_never_called_reviewed():
    random = np.random.default_rng(0)
    reviewed = ndimage.binary_dilation(random.random((2, 40, 40)) < 0.01, iterations=2)
    sampler = sampler_of(example_of(blobs((2, 40, 40)), reviewed, reviewed), (24, 24), MOVING)
    for _ in range(10):
        batch = sampler.draw()
        # The image shows the mask itself: the nearest voxel has a quarter of the weight at least.
        assert batch.image[:, 0][batch.reviewed].min() >= 0.24
        assert batch.reviewed.any()


def test_patches_lie_around_reviewed_voxels():
    reviewed = np.zeros((5, 30, 30), bool)
    reviewed[3, 20, 25] = True
    numbers = np.broadcast_to(np.arange(5)[:, None, None], reviewed.shape)
    batch = sampler_of(example_of(np.zeros(reviewed.shape), numbers, reviewed), (8, 8)).draw()
    assert (batch.image == 3).all()
    assert (batch.reviewed.sum((1, 2)) == 1).all()


def test_only_the_axes_without_sides_are_mirrored():
    labels = np.zeros((1, 8, 8))
    labels[0, :2, :] = 1  # on top
    labels[0, :, 7] = 2  # to the right
    for mirror, wanted in (
        ((), {(False, False)}),
        ((1,), {(False, False), (False, True)}),
        ((0,), {(False, False), (True, False)}),
    ):
        sampler = sampler_of(example_of(labels), (8, 8), AugmentationSettings(probability=0, mirror=mirror, **PLAIN))
        patches = [patch for _ in range(6) for patch in sampler.draw().labels.numpy()]
        assert {(bool(p[7, 3] == 1), bool(p[4, 0] == 2)) for p in patches} == wanted


def test_through_plane_and_in_plane_are_never_mixed():
    """A turn within the plane leaves each slice where it is."""
    numbers = np.broadcast_to(np.arange(8)[:, None, None], (8, 20, 20))
    turning = AugmentationSettings(probability=1, rotation_degrees=90, scale=0, mirror=(), **PLAIN)
    batch = sampler_of(example_of(np.ones((8, 20, 20)), numbers), (4, 12, 12), turning).draw()
    per_slice = batch.image[:, 0].flatten(2)
    assert (per_slice - per_slice[..., :1]).abs().max() < 1e-3


@pytest.mark.parametrize(("fraction", "share"), [(0.5, 0.5), (0.25, 0.25), (0.35, 0.35), (1.0, 1.0)])
def test_the_newest_scan_has_its_share_of_every_batch(fraction, share):
    examples = [example_of(np.zeros((1, 9, 9)), np.full((1, 9, 9), i)) for i in range(3)]
    sampler = sampler_of(examples, (4, 4), newest_fraction=fraction)
    counts = [int((sampler.draw().image[:, 0, 0, 0].round() == 2).sum()) for _ in range(100)]
    assert np.mean(counts) / 4 == pytest.approx(share, abs=0.06)
    assert max(counts) - min(counts) <= 1


def test_earlier_scans_are_all_replayed():
    examples = [example_of(np.zeros((1, 9, 9)), np.full((1, 9, 9), i)) for i in range(4)]
    sampler = sampler_of(examples, (4, 4), newest_fraction=0.5)
    seen = {int(v) for _ in range(20) for v in sampler.draw().image[:, 0, 0, 0].round()}
    assert seen == {0, 1, 2, 3}


def test_rare_foreground_is_found():
    labels = np.zeros((1, 40, 40))
    labels[0, 20, 20] = 1
    batch = sampler_of(example_of(labels), (8, 8), foreground_fraction=1.0).draw()
    assert (batch.labels.sum((1, 2)) == 1).all()
    batch = sampler_of(example_of(labels), (8, 8), foreground_fraction=0.0, seed=3).draw()
    assert batch.labels.sum() <= 1


def test_equal_seeds_draw_equal_batches_and_others_do_not():
    augmentation = AugmentationSettings(probability=1)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(draws))  # whatever the global generators have been through
        np.random.seed(len(draws))  # noqa: NPY002
        draws.append(
            [sampler_of(example_of(blobs((2, 20, 20))), (8, 8), augmentation, seed).draw() for _ in range(2)][1]
        )
    for name in ("image", "labels", "reviewed"):
        assert torch.equal(getattr(draws[0], name), getattr(draws[1], name))
    assert not torch.equal(draws[0].image, draws[2].image)


def test_a_scan_about_which_nothing_is_known_is_never_drawn():
    unknown = example_of(np.ones((1, 9, 9)), np.full((1, 9, 9), 7), np.zeros((1, 9, 9), bool))
    known = example_of(np.zeros((1, 9, 9)), np.zeros((1, 9, 9)))
    assert not unknown.usable
    batch = sampler_of([known, unknown], (4, 4)).draw()
    assert not batch.image.any()
    with pytest.raises(ValueError, match="reviewed"):
        sampler_of([unknown], (4, 4))


def test_batches_are_what_the_loop_takes():
    batch = sampler_of(example_of(blobs((2, 20, 20))), (8, 12), AugmentationSettings(probability=1)).draw()
    assert (batch.image.shape, batch.image.dtype) == ((4, 1, 8, 12), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 8, 12), torch.int64)
    assert (batch.reviewed.shape, batch.reviewed.dtype) == ((4, 8, 12), torch.bool)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 20), (3, 2, 2)])
def test_tiny_and_constant_scans_give_finite_patches(shape):
    sampler = sampler_of(example_of(np.zeros(shape)), (8, 8), AugmentationSettings(probability=1, elastic=0.5))
    for _ in range(3):
        assert sampler.draw().image.isfinite().all()


def test_intensity_changes_that_are_off_change_nothing():
    image = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(change_intensities(image, STILL, rng), image)


def test_intensity_changes_differ_by_patch_and_stay_finite():
    image = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0)).expand(3, 1, 9, 9)
    strong = AugmentationSettings(brightness=1, contrast=0.9, gamma=0.9, noise=1)
    changed = change_intensities(image, strong, torch.Generator().manual_seed(0))
    assert changed.isfinite().all()
    assert not torch.equal(changed[0], changed[1])
    assert change_intensities(torch.zeros(1, 1, 4, 4), strong, torch.Generator()).isfinite().all()


def test_a_grid_never_leaves_the_image_where_the_patch_fits():
    rng = np.random.default_rng(0)
    for _ in range(20):
        centre = rng.integers(0, (20, 30))
        grid = random_transform((20, 30), (8, 16), centre, STILL, rng)
        assert grid.shape == (1, 8, 16, 2)
        assert grid.abs().max() <= 1 + 1e-6


def test_a_rare_class_is_seen_as_often_as_asked_for():
    """One scan in ten holds the second class: chosen class first, it is in half of the patches."""
    scans = [np.zeros((1, 24, 24), int) for _ in range(10)]
    for one in scans:
        one[0, 2:10, 2:10] = 1
    scans[3][0, 18:20, 18:20] = 2
    shares = []
    for fraction in (0.0, 1.0):
        sampler = sampler_of([example_of(s) for s in scans], (8, 8), rare_class_fraction=fraction, newest_fraction=0)
        labels = torch.cat([sampler.draw().labels for _ in range(50)])
        shares.append(float((labels == 2).flatten(1).any(1).float().mean()))
    assert shares[0] < 0.2
    assert 0.4 < shares[1] < 0.6


def test_patches_of_large_images_are_the_same_as_of_small_ones(monkeypatch):
    """Large images are cut down to a patch's surroundings first; that must not be seen."""
    labels = blobs((9, 40, 44))
    reviewed = np.random.default_rng(0).random(labels.shape) < 0.7
    for patch in ((8, 12, 12), (16, 16), (12, 50, 12)):
        drawn = []
        for limit in (2**20, 0):
            monkeypatch.setattr(sampling, "_CROP_FROM", limit)
            sampler = sampler_of(example_of(labels, reviewed=reviewed), patch, MOVING.model_copy(update={"mirror": ()}))
            drawn.append([sampler.draw() for _ in range(4)])
        for whole, cut in zip(*drawn, strict=True):
            torch.testing.assert_close(whole.image, cut.image, atol=1e-3, rtol=0)
            assert (whole.labels != cut.labels).float().mean() < 1e-3
            assert (whole.reviewed != cut.reviewed).float().mean() < 1e-3


def test_patches_are_at_the_spacing_of_the_network():
    """Every second voxel where the network's are twice as large; its labels with it."""
    labels = np.kron(blobs((1, 20, 20)), np.ones((1, 2, 2), int))
    numbers = np.arange(labels.size).reshape(labels.shape)
    example = replace(example_of(labels, numbers), zoom=(1.0, 2.0, 2.0))
    batch = sampler_of(example, (8, 8)).draw()
    for image, found in zip(batch.image[:, 0].numpy(), batch.labels.numpy(), strict=True):
        steps = np.diff(image, axis=1)
        np.testing.assert_allclose(steps, 2, atol=0.02)
        np.testing.assert_allclose(np.diff(image, axis=0), 80, atol=0.02)
        # The mean index of a patch says where its middle is; the labels there are those of the scan.
        rows, columns = np.clip(np.round(image // 40).astype(int), 0, 39), np.round(image % 40).astype(int) % 40
        assert (found == labels[0, rows, columns]).mean() > 0.85


def test_a_volume_of_one_slice_knows_nothing_beyond_it():
    batch = sampler_of(example_of(blobs((1, 16, 16))), (4, 8, 8)).draw()
    assert (batch.reviewed.flatten(2).all(2).sum(1) == 1).all()
    assert (batch.reviewed.flatten(2).any(2).sum(1) == 1).all()
