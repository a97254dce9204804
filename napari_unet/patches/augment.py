"""Random changes to training patches: one composite resampling, then intensities. The ranges are settings.

Which voxel a patch lies around, and reading the image and the labels there, is ``sampling``'s. Chance comes from
generators on the CPU, so that a seed means the same patches on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from napari_unet.domain.settings import AugmentationSettings

#: Elastic: cells of the control grid along each axis of a patch.
_CELLS = 4
#: Elastic: a cubic B-spline deformation folds nowhere while its control points move by less than 1 / 2.48 of their
#: distance (in 3D; 1 / 2.05 in 2D). Choi and Lee, Graphical Models 62 (2000).
_UNFOLDED = 0.4
#: Share of patches that lose resolution, by either way: nnU-Net blurs a fifth and coarsens a quarter.
_SHARE = 0.2
#: Beyond this ratio of its sides a patch of a volume is taken for a stack of thick slices (nnU-Net's threshold).
_FLAT = 3


def random_transform(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    centre: NDArray[np.int64],
    settings: AugmentationSettings,
    rng: np.random.Generator,
    zoom: Sequence[float] | None = None,
) -> Tensor:
    """Return the sampling grid of one random patch.

    The patch is deformed, mirrored, scaled, turned and shifted on the network's grid, in this order, and then laid over
    the acquired one: where the network's pixels are square, angles and proportions are those in millimetres, whatever
    the acquired ones are.

    Parameters
    ----------
    shape : tuple of int
        Spatial shape of the image, ``(h, w)`` or ``(s, h, w)``.
    patch : tuple of int
        Shape of the patch in network voxels, as many axes.
    centre : (n,) int array
        Acquired voxel wished at the patch's middle; moved so that the undeformed patch stays inside the image where
        it fits.
    settings : AugmentationSettings
        Ranges.
    rng : numpy Generator
        Source of chance.
    zoom : sequence of float or None
        Acquired voxels per network voxel, per axis (planned spacing over the scan's); None: 1. An undeformed
        patch reads the voxel wished for, so that whole zooms copy voxels.

    Returns
    -------
    (1, *patch, n) float32 tensor
        On the CPU, for :func:`torch.nn.functional.grid_sample` with ``align_corners=True``.
    """
    return grid_of(draw_transform(len(shape), settings, rng), shape, patch, centre, zoom)


@dataclass(frozen=True, eq=False)
class RandomTransform:
    """What chance has to do with one patch of n axes; see :func:`random_transform`.

    Parameters
    ----------
    matrix : (n, n) array
        Mirrors, scales and turns network voxels.
    shift : (n,) array
        As a share of the patch.
    moves : (\\*control grid, n) array or None
        Of the elastic deformation's control points, as a share of the most that folds nothing.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]
    moves: NDArray[np.float64] | None


def draw_transform(n: int, settings: AugmentationSettings, rng: np.random.Generator) -> RandomTransform:
    """Draw what :func:`grid_of` makes a grid of; cheap beside that."""
    matrix, shift = _draw_affine(n, settings, rng)
    moves = None
    if settings.elastic > 0 and rng.random() < settings.probability:
        moves = rng.uniform(-1, 1, (*(_CELLS + 3,) * n, n)) * settings.elastic
    return RandomTransform(matrix, shift, moves)


def grid_of(
    drawn: RandomTransform,
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    centre: NDArray[np.int64],
    zoom: Sequence[float] | None = None,
) -> Tensor:
    """Return the sampling grid of a patch whose chance was drawn before; see :func:`random_transform`."""
    n = len(shape)
    size, extent = np.array(shape, float), np.array(patch, float)
    step = np.ones(n) if zoom is None else np.array(zoom, float)
    # The voxel wished for is one of those that an undeformed patch reads: half a voxel off it would be blurred and its
    # labels shifted against it, and where the network's voxels are larger a reviewed one might never be seen.
    reach = (extent - 1) * step
    room = size - 1 - reach
    wished = np.where(room <= 0, room / 2, np.clip(centre - np.floor(extent // 2 * step), 0, room))
    before = np.ceil((centre - wished) / step - 1e-9)
    inside = np.clip(before, np.ceil((centre - room) / step - 1e-9), np.floor(centre / step + 1e-9))
    corner = centre - np.clip(np.where(room > 0, inside, before), 0, extent - 1) * step
    middle = corner + reach / 2
    to_unit = 2 / np.maximum(size - 1, 1)  # grid_sample wants [-1, 1] between the outer voxel centres
    per_voxel = (to_unit * step)[:, None] * drawn.matrix
    grid = _affine_grid(patch, per_voxel, (middle + drawn.shift * extent * step) * to_unit - 1)
    if drawn.moves is not None:
        moves = drawn.moves * (_UNFOLDED * (extent - 1) / _CELLS)
        # The spline is linear in its control points, which are few: they are turned and scaled, not the voxels.
        moves = (moves @ per_voxel.T)[..., ::-1].astype(np.float32)
        grid = grid + _spline(torch.from_numpy(moves), patch)
    return grid


def _draw_affine(
    n: int, settings: AugmentationSettings, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the (n, n) matrix between network voxels and the (n,) shift as a share of the patch."""
    matrix, shift = np.eye(n), np.zeros(n)
    if rng.random() < settings.probability:
        angle = np.radians(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees))
        # Rotation within the acquired plane (the last two axes): through-plane turns would mix spacings.
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[-2:, -2:] = turn * rng.uniform(1 - settings.scale, 1 + settings.scale)
        if n == 3:
            matrix[0, 0] = rng.uniform(1 - settings.scale, 1 + settings.scale)
        if settings.shift > 0:
            shift = rng.uniform(-settings.shift, settings.shift, n)
    signs = np.ones(n)
    signs[list(settings.mirror)] = rng.choice([-1.0, 1.0], len(settings.mirror))
    return matrix @ np.diag(signs), shift


def _affine_grid(patch: tuple[int, ...], matrix: NDArray[np.float64], middle: NDArray[np.float64]) -> Tensor:
    """Return ``middle + matrix @ offset`` for each voxel of a patch, (1, *patch, n) with the last axis first (x, y, z).

    A sum of one vector per axis, several times faster than torch's own product with each voxel's coordinates.
    """
    n = len(patch)
    grid = torch.from_numpy(middle[::-1].astype(np.float32))
    for axis, length in enumerate(patch):
        offsets = (np.arange(length) - (length - 1) / 2)[:, None] * matrix[::-1, axis]
        along = torch.from_numpy(offsets.astype(np.float32))
        grid = grid + along.view(*(length if i == axis else 1 for i in range(n)), n)
    return grid[None]


def _spline(controls: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Return the cubic B-spline of (*control grid, n) values at each voxel of a patch, (1, *patch, n)."""
    for length in patch:
        # Takes the first axis away and puts the patch's behind the others: each axis gets its turn.
        controls = torch.tensordot(controls, _basis(length), dims=([0], [1]))
    return controls.movedim(0, -1)[None]


@lru_cache(maxsize=64)
def _basis(length: int) -> Tensor:
    """Return the (length, control points) weights of a uniform cubic B-spline along one axis."""
    knots = np.arange(-3.0, _CELLS + 4)
    places = np.linspace(0, _CELLS, length)
    return torch.from_numpy(BSpline.design_matrix(places, knots, 3).toarray().astype(np.float32))


def change_intensities(
    image: Tensor, settings: AugmentationSettings, rng: torch.Generator, part: tuple[int, range] | None = None
) -> Tensor:
    """Change resolution, gamma, contrast, brightness and noise of each patch at random, in this order.

    Parameters
    ----------
    image : (B, C, *spatial) float tensor
        About zero mean and unit deviation, on any device.
    settings : AugmentationSettings
        Ranges; a zero leaves that change out.
    rng : torch Generator
        Source of chance, on the CPU.
    part : (int, range), optional
        Of how many patches these are which: they change as they would among all of them.

    Returns
    -------
    Tensor
        Same shape and device; the input where nothing was to change.
    """
    # One draw for all channels: neighbouring slices, and the colours of one stain, change together.
    n, seats = part or (image.shape[0], range(image.shape[0]))
    here = slice(seats.start, seats.stop)
    each = (n, *(1,) * (image.ndim - 1))

    def uniform(spread: float) -> Tensor:
        return ((torch.rand(each, generator=rng)[here] * 2 - 1) * spread).to(image.device)

    def on_some(change: Callable[[Tensor, Tensor], Tensor], amount: Tensor) -> Tensor:
        chosen = torch.rand(n, generator=rng) < _SHARE
        return _where(chosen[here], image, change, amount[here])

    if settings.blur > 0:
        image = on_some(gaussian_blur, torch.rand(n, generator=rng) * settings.blur)
    if settings.low_resolution > 0:
        image = on_some(coarsen, 1 - torch.rand(n, generator=rng) * settings.low_resolution)
    if settings.gamma > 0:
        image = adjust_gamma(image, 1 + uniform(settings.gamma))
    if settings.contrast > 0:
        image = image * (1 + uniform(settings.contrast))
    if settings.brightness > 0:
        image = image + uniform(settings.brightness)
    if settings.noise > 0:
        level = torch.rand(each, generator=rng)[here] * settings.noise
        image = image + (torch.randn((n, *image.shape[1:]), generator=rng)[here] * level).to(image.device)
    return image


def _where(chosen: Tensor, image: Tensor, change: Callable[[Tensor, Tensor], Tensor], amount: Tensor) -> Tensor:
    """Change the chosen patches, each by its own amount."""
    chosen = chosen.nonzero()[:, 0]
    if not len(chosen):
        return image
    where = chosen.to(image.device)
    return image.index_copy(0, where, change(image[where], amount[chosen]))


def adjust_gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """Raise each patch to a power between its own darkest and brightest value, which stay.

    Parameters
    ----------
    image : (B, C, *spatial) float tensor
    exponent : tensor that broadcasts to ``image``
        Above 1 darkens, below 1 brightens.
    """
    each = (image.shape[0], *(1,) * (image.ndim - 1))
    flat = image.flatten(1)
    low = flat.amin(1).view(each)
    span = (flat.amax(1).view(each) - low).clamp_min(1e-6)
    return ((image - low) / span).clamp_min(0).pow(exponent) * span + low


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Smooth each patch by a Gaussian; beyond its border a patch counts for nothing.

    Parameters
    ----------
    image : (B, C, *spatial) float tensor
    sigma : (B,) tensor on the CPU
        Standard deviation in voxels, from 0. The slices of a flat patch (less than a third of its longest side) are
        not mixed: they are far apart.
    """

    def rows(length: int) -> Tensor:
        places = torch.arange(length, dtype=torch.float32)
        distance = (places[:, None] - places) / sigma.clamp_min(1e-3)[:, None, None]
        weights = torch.exp(-0.5 * distance**2)
        return weights / weights.sum(-1, keepdim=True)

    return _along_axes(image, rows)


def coarsen(image: Tensor, share: Tensor) -> Tensor:
    """Resample each patch to fewer voxels and back: to the nearest voxel, then linearly.

    What nnU-Net does to simulate a low resolution (Isensee 2021).

    Parameters
    ----------
    image : (B, C, *spatial) float tensor
    share : (B,) tensor on the CPU
        Resolution kept along each axis, above 0 and at most 1. The slices of a flat patch (less than a
        third of its longest side) keep theirs: they are coarse already.
    """

    def rows(length: int) -> Tensor:
        few = (share * length).round().clamp_min(1)[:, None]
        at = ((torch.arange(length) + 0.5) * few / length - 0.5).clamp_min(0)
        lower = torch.minimum(at.floor(), few - 1)
        weights = torch.zeros(len(share), length, length)
        for coarse, weight in ((lower, 1 - (at - lower)), (torch.minimum(lower + 1, few - 1), at - lower)):
            nearest = ((coarse + 0.5) * length / few).floor().long()
            weights.scatter_add_(2, nearest[:, :, None], weight[:, :, None])
        return weights

    return _along_axes(image, rows)


def _along_axes(image: Tensor, rows: Callable[[int], Tensor]) -> Tensor:
    """Apply to each axis of each patch its (B, length, length) matrix.

    Products of matrices: patches of different strength go through one call, faster than convolutions at these lengths.
    """
    sides = image.shape[2:]
    flat = len(sides) == 3 and sides[0] * _FLAT < max(sides)
    for axis in range(3 if flat else 2, image.ndim):
        moved = image.movedim(axis, -1)
        weights = rows(moved.shape[-1]).to(image).transpose(1, 2)
        image = torch.bmm(moved.flatten(1, -2), weights).view(moved.shape).movedim(-1, axis)
    return image
