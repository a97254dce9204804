"""Shapes with known sizes, random masks, and real ones, for the tests of the tools."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet.io.masks import read_mask
from tests.real_data import REAL_DATA

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8))
label_arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7),
    elements=st.integers(0, 3),
)
volumes = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7), elements=st.integers(0, 2)
)
spacings = st.one_of(st.none(), st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=3, max_size=3))


def fitting(spacing, ndim):
    return None if spacing is None else tuple(spacing[:ndim])


def ball(shape, middle, radius, spacing=None):
    widths = spacing or (1,) * len(shape)
    places = zip(np.indices(shape), middle, widths, strict=True)
    return sum(((axis - m) * width) ** 2 for axis, m, width in places) <= radius**2


def hippocampus(n):
    """Return masks ``[z, y, x]`` of anterior (1) and posterior (2) hippocampus, 1 mm."""
    paths = sorted((REAL_DATA / "hippocampus_mr" / "masks").glob("*.nii.gz"))
    return [read_mask(path).data for path in paths[:: len(paths) // n][:n]]


def cardiac(n):
    """Return planes of the left ventricle's blood pool."""
    paths = sorted((REAL_DATA / "cardiac_cine_mr" / "masks").glob("*.png"))
    return [read_mask(path).data > 0 for path in paths[:: len(paths) // n][:n]]


def cut(rng, mask, margin=6):
    """Return the part of a mask around its voxels, and a picture of two noisy greys that fits it."""
    hit = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in range(2)]
    box = tuple(slice(max(0, at[0] - margin), at[-1] + 1 + margin) for at in hit)
    return mask[box], np.where(mask[box], 100.0, 60.0) + rng.normal(0, 5, mask[box].shape)
