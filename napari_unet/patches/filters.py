"""Features of pixels that need no training: a plane seen through filters of several scales.

What ilastik and the trainable Weka segmentation work with (Berg et al. 2019, Arganda-Carreras et al. 2017); the filters
are scikit-image's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.settings import ModelSettings

# From single pixels to what lies 16 of them around, in octaves.
_FINEST, _COARSEST = 0.5, 16.0


def filter_features(plane: NDArray[np.float32], place: float | None = None) -> NDArray[np.float32]:
    """Return the features of each pixel.

    Parameters
    ----------
    plane : (C, h, w) float32 array
        One plane on the network's grid, its own channels only.
    place : float, optional
        Where the plane lies in its volume, from 0 to 1. With it the place of each pixel is a feature too: in scans that
        stand upright it tells much.

    Returns
    -------
    (F, h, w) float32 array
        Per channel and scale: smoothed intensity, strength of the gradient, and the two eigenvalues of the Hessian.
    """
    from skimage.feature import multiscale_basic_features

    h, w = plane.shape[1:]
    # A line of pixels has no gradient across: it is given a neighbour like itself.
    wide = np.pad(plane, ((0, 0), (0, int(h < 2)), (0, int(w < 2))), mode="edge")
    found = multiscale_basic_features(wide, sigma_min=_FINEST, sigma_max=_COARSEST, channel_axis=0)
    features = np.moveaxis(found, -1, 0)[:, :h, :w]
    if place is not None:
        rows, columns = np.meshgrid(np.linspace(0, 1, h), np.linspace(0, 1, w), indexing="ij")
        features = np.concatenate([features, [np.full((h, w), place), rows, columns]])
    return features.astype(np.float32, copy=False)


def plane_features(
    image: NDArray[np.float32], n_planes: int, index: int, settings: ModelSettings
) -> NDArray[np.float32]:
    """Return the features of a plane of a prepared scan.

    Parameters
    ----------
    image : (C, h, w) float32 array
        All channels of the plane, on the network's grid; of neighbouring slices nothing is used.
    n_planes, index : int
        Where the plane lies in its scan.
    settings : ModelSettings
        Where training turns scans by any angle the place of a pixel means nothing; elsewhere it is a feature.

    Returns
    -------
    (F, h, w) float32 array
    """
    reach = settings.preparation.context_slices
    own = len(image) // (2 * reach + 1)
    upright = settings.augmentation.rotation_degrees < 180
    return filter_features(image[own * reach : own * (reach + 1)], index / max(1, n_planes - 1) if upright else None)
