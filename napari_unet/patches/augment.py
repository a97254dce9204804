"""Random changes to training patches: one composite resampling, then intensities. The ranges are settings."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.settings import AugmentationSettings


def random_transform(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    centre: NDArray[np.int64],
    settings: AugmentationSettings,
    rng: np.random.Generator,
) -> Tensor:
    """Return the sampling grid of one random patch.

    Parameters
    ----------
    shape : tuple of int
        Spatial shape of the image, ``(h, w)`` or ``(s, h, w)``.
    patch : tuple of int
        Shape of the patch, as many axes.
    centre : (n,) int array
        Voxel wished at the patch's middle; moved so that the patch stays inside the image where it fits.
    settings : AugmentationSettings
        Ranges.
    rng : numpy Generator
        Source of chance.

    Returns
    -------
    (1, *patch, n) float32 tensor
        For :func:`torch.nn.functional.grid_sample` with ``align_corners=True``.
    """
    n = len(shape)
    size, extent = np.array(shape, float), np.array(patch, float)
    # The patch's first voxel falls on one of the image's: half a voxel off, an unturned patch would be blurred and its
    # labels shifted against it.
    corner = np.where(extent >= size, (size - extent) // 2, np.clip(centre - extent // 2, 0, size - extent))
    middle = corner + (extent - 1) / 2
    matrix = np.eye(n)
    if rng.random() < settings.probability:
        angle = np.radians(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees))
        # Rotation within the acquired plane (the last two axes): through-plane turns would mix spacings.
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[-2:, -2:] = turn * rng.uniform(1 - settings.scale, 1 + settings.scale)
        if n == 3:
            matrix[0, 0] = rng.uniform(1 - settings.scale, 1 + settings.scale)
    signs = np.ones(n)
    signs[list(settings.mirror)] = rng.choice([-1.0, 1.0], len(settings.mirror))
    matrix = matrix @ np.diag(signs)
    # grid_sample wants (x, y, z) and [-1, 1] between the outer voxel centres.
    to_unit = 2 / np.maximum(size - 1, 1)
    theta = np.zeros((n, n + 1))
    theta[:, :n] = (to_unit[:, None] * matrix * (extent - 1)[None, :] / 2)[::-1, ::-1]
    theta[:, n] = (middle * to_unit - 1)[::-1]
    grid = F.affine_grid(torch.from_numpy(theta[None].astype(np.float32)), [1, 1, *patch], align_corners=True)
    if settings.elastic > 0 and rng.random() < settings.probability:
        grid = grid + _smooth_noise(patch, settings.elastic, rng) * torch.tensor(
            (to_unit * extent)[::-1].copy(), dtype=torch.float32
        )
    return grid


def _smooth_noise(patch: tuple[int, ...], strength: float, rng: np.random.Generator) -> Tensor:
    n = len(patch)
    coarse = torch.from_numpy(rng.standard_normal((1, n, *(4,) * n)).astype(np.float32))
    fine = F.interpolate(coarse, size=patch, mode="bicubic" if n == 2 else "trilinear", align_corners=True)
    return fine.movedim(1, -1) * (0.1 * strength)


def change_intensities(image: Tensor, settings: AugmentationSettings, rng: torch.Generator) -> Tensor:
    """Change contrast, brightness, gamma and noise of each patch at random.

    Parameters
    ----------
    image : (B, C, *spatial) float tensor
        About zero mean and unit deviation.
    settings : AugmentationSettings
        Ranges; a zero leaves that change out.
    rng : torch Generator
        Source of chance, on the CPU.

    Returns
    -------
    Tensor
        Same shape.
    """
    # One draw for all channels: neighbouring slices, and the colours of one stain, change together.
    each = (image.shape[0], *(1,) * (image.ndim - 1))

    def uniform(spread: float) -> Tensor:
        return (torch.rand(each, generator=rng) * 2 - 1) * spread

    if settings.gamma > 0:
        flat = image.flatten(1)
        low = flat.amin(1).view(each)
        span = (flat.amax(1).view(each) - low).clamp_min(1e-6)
        image = ((image - low) / span).clamp_min(0).pow(1 + uniform(settings.gamma)) * span + low
    if settings.contrast > 0:
        image = image * (1 + uniform(settings.contrast))
    if settings.brightness > 0:
        image = image + uniform(settings.brightness)
    if settings.noise > 0:
        level = torch.rand(each, generator=rng) * settings.noise
        image = image + torch.randn(image.shape, generator=rng) * level
    return image
