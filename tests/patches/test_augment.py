"""Random changes to patches: each setting does what it says, by as much as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_unet.domain.settings import AugmentationSettings, TrainingSettings
from napari_unet.patches.augment import adjust_gamma, change_intensities, coarsen, gaussian_blur, random_transform
from napari_unet.patches.sampling import Example, PatchSampler

SAME = {"brightness": 0, "contrast": 0, "gamma": 0, "noise": 0}
STILL = {"probability": 1, "rotation_degrees": 0, "scale": 0}


def only(**changes) -> AugmentationSettings:
    """Settings of which nothing else is on."""
    return AugmentationSettings(**{**SAME, **STILL, **changes})


class At(np.random.Generator):
    """Chance that always draws from one place of a range: 0 its lower end, 1 its upper one."""

    def __init__(self, place: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.place = place

    def uniform(self, low=0.0, high=1.0, size=None):
        drawn = low + self.place * (high - low)
        return drawn if size is None else np.full(size, drawn)


class Extremes(np.random.Generator):
    """Chance that draws only the ends of a range."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.where(super().random(size) < 0.5, low, high)


def read(image, grid, mode="bilinear"):
    """What a grid reads from an array."""
    tensor = torch.as_tensor(np.asarray(image, np.float32))[None, None]
    return F.grid_sample(tensor, grid, mode=mode, padding_mode="border", align_corners=True)[0, 0].numpy()


def places(grid, shape):
    """A grid as acquired voxels, (*patch, n) in the order of the array's axes."""
    return (grid[0].numpy()[..., ::-1].astype(float) + 1) / 2 * (np.array(shape) - 1)


def textured(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2).astype(np.float32) * 5


# Geometry


@given(st.data(), st.sampled_from([2, 3]))
def test_nothing_switched_on_reads_every_voxel_or_every_so_manieth_exactly(data, n):
    zoom = tuple(data.draw(st.integers(1, 3)) for _ in range(n))
    patch = tuple(data.draw(st.integers(1, 9)) for _ in range(n))
    shape = tuple((p - 1) * z + 1 + data.draw(st.integers(0, 9)) for p, z in zip(patch, zoom, strict=True))
    centre = np.array([data.draw(st.integers(0, s - 1)) for s in shape])
    numbers = np.arange(np.prod(shape)).reshape(shape)
    grid = random_transform(shape, patch, centre, only(), np.random.default_rng(0), zoom)
    found = read(numbers, grid, "nearest")
    corner = places(grid, shape)[(0,) * n].round().astype(int)
    read_along = [c + np.arange(p) * z for c, p, z in zip(corner, patch, zoom, strict=True)]
    expected = numbers[np.ix_(*(np.clip(r, 0, s - 1) for r, s in zip(read_along, shape, strict=True)))]
    np.testing.assert_array_equal(found, expected)
    assert np.abs(read(numbers, grid) - found).max() < 1e-5 * numbers.size
    for along, at, p, z, s in zip(read_along, centre, patch, zoom, shape, strict=True):
        assert at in along  # or a lone reviewed voxel would never be seen
        # Out of the image only by less than a voxel of the network.
        assert along[0] > -z
        assert along[-1] < s - 1 + z
        inner = min(max(at, p // 2 * z), s - 1 - (p - 1 - p // 2) * z)
        assert abs(along[p // 2] - inner) < z


def test_a_zoom_between_whole_numbers_reads_between_voxels():
    rows = np.broadcast_to(np.arange(50.0)[:, None], (50, 40))
    grid = random_transform((50, 40), (16, 16), np.array([25, 20]), only(), np.random.default_rng(0), (1.7, 0.6))
    np.testing.assert_allclose(np.diff(read(rows, grid), axis=0), 1.7, atol=1e-4)
    np.testing.assert_allclose(np.diff(places(grid, (50, 40))[..., 1], axis=1), 0.6, atol=1e-4)
    # The plan wants more than there is: about the middle, with the border on both sides.
    larger = places(
        random_transform((9, 9), (8, 8), np.array([0, 8]), only(), np.random.default_rng(0), (2, 2)), (9, 9)
    )
    np.testing.assert_array_equal(larger[0, 0].round(4), (-4, -4))


@pytest.mark.parametrize(("degrees", "place"), [(180, 0.0), (40, 0.1), (25, 0.8), (90, 1.0)])
@pytest.mark.parametrize(("shape", "patch"), [((60, 70), (32, 24)), ((12, 60, 70), (6, 32, 24))])
def test_a_turned_and_scaled_patch_is_what_scipy_makes_of_it(degrees, place, shape, patch):
    image, n = textured(shape), len(shape)
    zoom, centre = (1.0, 1.25, 0.8)[-n:], np.array(shape) // 2
    grid = random_transform(shape, patch, centre, only(rotation_degrees=degrees, scale=0.5), At(place), zoom)
    angle, factor = np.radians(degrees * (2 * place - 1)), 0.5 + place
    matrix = np.eye(n) * factor
    matrix[-2:, -2:] = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag(zoom) @ matrix
    unturned = random_transform(shape, patch, centre, only(), np.random.default_rng(0), zoom)
    middle = places(unturned, shape).reshape(-1, n).mean(0)
    offset = middle - matrix @ ((np.array(patch) - 1) / 2)
    wanted = ndimage.affine_transform(image, matrix, offset, patch, order=1, mode="nearest")
    np.testing.assert_allclose(read(image, grid), wanted, atol=2e-4)


@pytest.mark.parametrize("shape", [(40, 40), (9, 32, 36)])
def test_a_turned_and_scaled_patch_is_what_monai_makes_of_it(shape):
    transforms = pytest.importorskip("monai.transforms")
    image, n = textured(shape), len(shape)
    grid = random_transform(
        shape, shape, np.array(shape) // 2, only(rotation_degrees=50, scale=0.5), At(0.8), (1.0,) * n
    )
    angle = np.radians(30)
    affine = transforms.Affine(
        rotate_params=angle if n == 2 else (angle, 0, 0),
        scale_params=(1.3,) * n,
        padding_mode="border",
        image_only=True,
    )
    np.testing.assert_allclose(read(image, grid), affine(image[None])[0].numpy(), atol=2e-3)


@given(st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)), st.integers(0, 2**32))
@settings(max_examples=25)
def test_angles_and_lengths_are_those_in_millimetres_whatever_the_acquired_pixels_are(spacing, seed):
    zoom = tuple(1 / s for s in spacing)  # planned: 1 mm
    grid = random_transform((200, 200), (16, 16), np.array([100, 100]), only(rotation_degrees=180), _rng(seed), zoom)
    millimetres = places(grid, (200, 200)) * spacing
    across, down = millimetres[0, 15] - millimetres[0, 0], millimetres[15, 0] - millimetres[0, 0]
    assert np.hypot(*across) == pytest.approx(15, abs=2e-3)
    assert np.hypot(*down) == pytest.approx(15, abs=2e-3)
    assert across @ down == pytest.approx(0, abs=0.05)


def _rng(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("patch", [(24, 24), (16, 24, 24)])
def test_a_mark_lands_in_one_place_in_image_and_labels(patch):
    everything = AugmentationSettings(
        probability=1, rotation_degrees=180, scale=0.2, shift=0.1, elastic=1, mirror=tuple(range(len(patch))), **SAME
    )
    apart = []
    for seed in range(80):
        mark = np.zeros((24, 40, 40), np.uint8)
        mark[tuple(_rng(seed).integers((8, 10, 10), (16, 30, 30)))] = 1
        ball = ndimage.distance_transform_edt(mark == 0) <= 3
        example = Example(torch.from_numpy(ball.astype(np.float32)[None]), torch.from_numpy(ball.astype(np.uint8)))
        training = TrainingSettings(batch_size=1, foreground_fraction=1)
        batch = PatchSampler([example], patch, training, everything, seed).draw()
        image, labels = batch.image[0, 0].numpy(), batch.labels[0].numpy()
        inner = tuple(slice(1, -1) for _ in patch)
        if labels.sum() < 20 or image.sum() > image[inner].sum():
            continue  # a slice through the ball's rim, or cut off by the patch
        assert image[labels == 1].min() >= 0.5 ** len(patch) - 0.01  # the nearest voxel weighs at least this
        apart.append(np.subtract(*(ndimage.center_of_mass(a) for a in (image, labels))))
    assert len(apart) > 30
    assert np.linalg.norm(apart, axis=1).max() < 0.7  # labels go to whole voxels
    assert np.abs(np.mean(apart, 0)).max() < 0.08  # without a direction


@given(st.sets(st.integers(0, 2)), st.integers(0, 2**32))
def test_only_the_axes_named_are_mirrored(axes, seed):
    numbers = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    grid = random_transform((4, 5, 6), (4, 5, 6), np.zeros(3, int), only(mirror=tuple(axes)), _rng(seed))
    found = read(numbers, grid, "nearest")
    flipped = {axis for axis in range(3) if np.diff(found, axis=axis).flat[0] < 0}
    assert flipped <= axes
    np.testing.assert_array_equal(found, np.flip(numbers, sorted(flipped)))


def test_each_axis_is_mirrored_about_half_the_time_and_by_itself():
    rng, seen = _rng(0), []
    for _ in range(200):
        grid = random_transform((5, 5), (5, 5), np.zeros(2, int), only(mirror=(0, 1), probability=0), rng)
        corner = places(grid, (5, 5))[0, 0]
        seen.append(tuple((corner > 2).tolist()))
    assert min(seen.count(pair) for pair in {(a, b) for a in (False, True) for b in (False, True)}) > 30


@given(st.floats(0, 0.5), st.integers(0, 2**32), st.sampled_from([(1.0, 1.0), (2.0, 0.5)]))
def test_a_patch_is_shifted_by_no_more_than_its_share(shift, seed, zoom):
    shape, patch, centre = (90, 90), (16, 20), np.array([45, 45])
    still = places(random_transform(shape, patch, centre, only(), _rng(0), zoom), shape)
    moved = places(random_transform(shape, patch, centre, only(shift=shift), _rng(seed), zoom), shape) - still
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0, 0], moved.shape), atol=1e-3)
    assert (np.abs(moved[0, 0]) <= shift * np.array(patch) * zoom + 1e-3).all()
    far = places(random_transform(shape, patch, centre, only(shift=shift), At(1), zoom), shape) - still
    np.testing.assert_allclose(far[0, 0], shift * np.array(patch) * zoom, atol=1e-3)


def test_the_share_of_deformed_patches_is_the_probability():
    rng, changed = _rng(0), 0
    plain = random_transform((40, 40), (8, 8), np.array([20, 20]), only(), _rng(0))
    for _ in range(500):
        settings_ = only(probability=0.3, rotation_degrees=90, scale=0.2, shift=0.2)
        changed += not torch.equal(random_transform((40, 40), (8, 8), np.array([20, 20]), settings_, rng), plain)
    assert changed / 500 == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("patch", [(32, 32), (20, 61), (8, 24, 24), (2, 16, 16), (1, 9)])
@pytest.mark.parametrize("chance", [np.random.Generator, Extremes])
def test_the_strongest_elastic_deformation_folds_nothing(patch, chance):
    rng, n = chance(np.random.PCG64(0)), len(patch)
    shape = tuple(3 * p for p in patch)
    still = places(random_transform(shape, patch, np.array(shape) // 2, only(), rng), shape)
    sizes = []
    for _ in range(20):
        warped = places(random_transform(shape, patch, np.array(shape) // 2, only(elastic=1), rng), shape)
        moved = warped - still
        assert (np.abs(moved) <= 0.1 * np.array(patch) + 1e-3).all()
        sizes.append((moved[..., -1] / patch[-1]).std())
        axes = [i for i in range(n) if patch[i] > 1]
        jacobian = np.stack([np.stack(np.gradient(warped[..., i], axis=axes), -1) for i in axes], -2)
        assert np.linalg.det(jacobian.reshape(-1, len(axes), len(axes))).min() > 0
    # Bent visibly, too: by some hundredths of the patch.
    assert 0.01 < np.mean(sizes) < 0.06


def test_a_weaker_elastic_deformation_is_the_same_but_smaller():
    def bend(strength):
        return random_transform((50, 50), (32, 32), np.array([25, 25]), only(elastic=strength), _rng(3))

    still = bend(0)
    assert torch.allclose((bend(1) - still) / 2, bend(0.5) - still, atol=1e-6)


def test_a_bend_turns_with_the_patch_and_grows_with_its_voxels():
    """The order of the parts: what is bent is then turned, and laid over the acquired voxels last."""
    shape, patch, centre, zoom = (120, 120), (16, 16), np.array([60, 60]), (2.0, 0.5)

    def at(elastic, degrees):
        rng = At(0.5)
        rng.uniform = lambda low=0.0, high=1.0, size=None: high if size is None else _rng(1).uniform(-1, 1, size)
        drawn = random_transform(shape, patch, centre, only(elastic=elastic, rotation_degrees=degrees), rng, zoom)
        return places(drawn, shape) / zoom

    plain = at(1, 0) - at(0, 0)
    turned = at(1, 90) - at(0, 90)
    np.testing.assert_allclose(turned[..., 0], -plain[..., 1], atol=1e-3)
    np.testing.assert_allclose(turned[..., 1], plain[..., 0], atol=1e-3)


# Intensities


def patches(n=6, shape=(24, 20), channels=1, seed=0):
    return torch.from_numpy(np.stack([textured((channels, *shape), seed + i) for i in range(n)]))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_gamma_is_monais(exponent):
    transforms = pytest.importorskip("monai.transforms")
    image = patches(3, channels=2)
    found = adjust_gamma(image, torch.full((3, 1, 1, 1), exponent))
    for patch, one in zip(image, found, strict=True):
        wanted = transforms.AdjustContrast(exponent)(patch)
        np.testing.assert_allclose(one.numpy(), wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 33), (20, 24, 22)])
def test_blur_is_monais_and_scipys_inside_and_keeps_the_border(shape):
    transforms = pytest.importorskip("monai.transforms")
    image, sigma = patches(3, shape), torch.tensor([0.4, 1.0, 1.8])
    found = gaussian_blur(image, sigma)
    for patch, one, s in zip(image, found, sigma.tolist(), strict=True):
        inner = tuple(slice(9, -9) for _ in shape)
        wanted = ndimage.gaussian_filter(patch[0].numpy(), s, truncate=5)
        np.testing.assert_allclose(one[0].numpy()[inner], wanted[inner], atol=1e-4)
        if s >= 1:  # MONAI's narrower kernels do not sum to one
            theirs = transforms.GaussianSmooth(s, approx="sampled")(patch)[0].numpy()
            np.testing.assert_allclose(one[0].numpy()[inner], theirs[inner], atol=2e-3)
    level = gaussian_blur(torch.full((3, 1, *shape), 7.0), sigma)
    assert torch.allclose(level, torch.tensor(7.0))
    assert torch.equal(gaussian_blur(image, torch.zeros(3)), image)


@pytest.mark.parametrize("shape", [(32, 30), (16, 20, 18), (7, 9)])
@pytest.mark.parametrize("share", [0.13, 0.5, 0.77, 1.0])
def test_coarsening_is_monais(shape, share):
    transforms = pytest.importorskip("monai.transforms")
    image = patches(2, shape, channels=2)
    found = coarsen(image, torch.tensor([share, share]))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    theirs = transforms.RandSimulateLowResolution(1.0, "nearest-exact", mode, (share, share))
    for patch, one in zip(image, found, strict=True):
        np.testing.assert_allclose(one.numpy(), theirs(patch).numpy(), atol=1e-4)
    if share == 1:
        assert torch.equal(found, image)


@pytest.mark.parametrize(("change", "amount"), [(gaussian_blur, 2.0), (coarsen, 0.5)])
def test_the_thick_slices_of_a_flat_patch_are_not_mixed(change, amount):
    for shape, mixed in (((4, 20, 20), False), ((12, 20, 20), True)):
        image = torch.zeros(1, 1, *shape)
        image[:, :, 1] = 1
        changed = change(image, torch.tensor([amount]))
        assert torch.allclose(changed, image, atol=1e-5) is not mixed


@pytest.mark.parametrize("setting", ["blur", "low_resolution"])
def test_a_fifth_of_the_patches_lose_resolution_and_the_others_nothing(setting):
    image = patches(1, (16, 16)).repeat(1000, 1, 1, 1)
    changed = change_intensities(image, only(**{setting: 0.8}), torch.Generator().manual_seed(0))
    untouched = (changed == image).flatten(1).all(1)
    assert 1 - untouched.float().mean().item() == pytest.approx(0.2, abs=0.05)
    # Not brighter, only less sharp; each by its own amount.
    assert changed.std((2, 3)).max() <= image.std((2, 3)).max() * 1.1
    assert len(torch.unique(changed[~untouched].flatten(1)[:, 40])) > 5
    strongest = (gaussian_blur if setting == "blur" else coarsen)(
        image[:1], torch.tensor([0.8 if setting == "blur" else 0.2])
    )
    assert (changed - image).flatten(1).norm(dim=1).max() <= (strongest - image[:1]).norm() * 1.2


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_contrast_brightness_gamma_and_noise_stay_within_their_ranges_and_fill_them(spread):
    image = patches(1, (16, 16)).repeat(400, 1, 1, 1)
    changed = {
        name: change_intensities(image, only(**{name: spread}), torch.Generator().manual_seed(0))
        for name in ("contrast", "brightness", "gamma", "noise")
    }
    unit = (image - image.amin((2, 3), True)) / (image.amax((2, 3), True) - image.amin((2, 3), True))
    bright = (changed["gamma"] - image.amin((2, 3), True)) / (image.amax((2, 3), True) - image.amin((2, 3), True))
    middle = unit[0, 0].flatten().sub(0.5).abs().argmin()
    measured = {
        "contrast": (changed["contrast"] / image)[:, 0, 3, 3] - 1,
        "brightness": (changed["brightness"] - image).mean((1, 2, 3)),
        "gamma": bright.flatten(1)[:, middle].log() / unit.flatten(1)[:, middle].log() - 1,
    }
    for values in measured.values():
        assert values.abs().max() <= spread + 1e-3
        assert values.min() < -0.9 * spread
        assert values.max() > 0.9 * spread
    assert torch.equal(changed["gamma"].amin((1, 2, 3)), image.amin((1, 2, 3)))
    noise = (changed["noise"] - image).std((1, 2, 3))
    assert 0.8 * spread < noise.max() <= 1.2 * spread
    assert noise.min() < 0.2 * spread


def test_channels_change_together():
    image = patches(8, channels=1).repeat(1, 3, 1, 1)
    strong = only(brightness=0.5, contrast=0.5, gamma=0.5, blur=2, low_resolution=0.7)
    changed = change_intensities(image, strong, torch.Generator().manual_seed(2))
    assert torch.allclose(changed[:, :1].expand_as(changed), changed, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -1e6, 3.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 8, 8)])
def test_constant_and_tiny_patches_stay_finite_with_everything_on(value, shape):
    everything = AugmentationSettings(gamma=0.9, contrast=0.9, noise=1, brightness=1, blur=3, low_resolution=0.9)
    changed = change_intensities(torch.full((50, 2, *shape), value), everything, torch.Generator().manual_seed(0))
    assert changed.isfinite().all()


def test_the_patches_that_came_in_are_not_touched():
    image = patches()
    before = image.clone()
    everything = AugmentationSettings(gamma=0.9, contrast=0.9, noise=1, brightness=1, blur=3, low_resolution=0.9)
    change_intensities(image, everything, torch.Generator().manual_seed(0))
    assert torch.equal(image, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_means_the_same_on_every_device():
    everything = AugmentationSettings(gamma=0.5, contrast=0.5, noise=0.5, brightness=0.5, blur=2, low_resolution=0.7)
    image = patches(32)
    here = change_intensities(image, everything, torch.Generator().manual_seed(1))
    there = change_intensities(image.cuda(), everything, torch.Generator().manual_seed(1))
    assert there.is_cuda
    assert torch.allclose(here, there.cpu(), atol=1e-3)
