"""A second series on the grid of a scan: each voxel shows the same place in the patient."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.alignment import has_same_grid, resample_planes


def affine_of(spacing: tuple[float, ...], first: tuple[float, ...], degrees: float = 0) -> np.ndarray:
    """Return a grid in LPS, turned about the body's axis."""
    upright = np.zeros((4, 4))
    upright[[2, 1, 0], [0, 1, 2]] = spacing
    upright[3, 3] = 1
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.array([[c, -s, 0, first[0]], [s, c, 0, first[1]], [0, 0, 1, first[2]], [0, 0, 0, 1]])
    return turned @ upright


def ramp(shape: tuple[int, ...], affine: np.ndarray, spacing: tuple[float, ...]) -> Scan:
    """Return a scan whose intensities are a linear function of where they lie."""
    indices = np.concatenate([np.indices(shape).reshape(3, -1), np.ones((1, int(np.prod(shape))))])
    values = np.array([1.0, -2.0, 0.5, 300.0]) @ (affine @ indices)
    return Scan(values.reshape(shape).astype(np.float32), "zyx", Geometry(spacing, affine), slice_axis=0)


def test_intensities_come_from_the_same_place_in_the_patient() -> None:
    fixed = ramp((6, 20, 24), affine_of((5, 2, 2), (-10, -20, 30)), (5, 2, 2))
    moving = ramp((40, 50, 60), affine_of((1.5, 1.1, 1.2), (-20, -30, 28), 12), (1.5, 1.1, 1.2))
    out = np.zeros(fixed.spatial_shape, np.float32)
    *_, done = resample_planes(fixed, moving, out)
    assert done == 1
    # Outside of the second series there is nothing of it.
    matrix = np.linalg.solve(moving.geometry.affine, fixed.geometry.affine)
    where = np.einsum("ij,jzyx->izyx", matrix[:3, :3], np.indices(fixed.spatial_shape))
    where += matrix[:3, 3].reshape(3, 1, 1, 1)
    ends = np.array(moving.spatial_shape).reshape(3, 1, 1, 1) - 1
    inside, outside = ((where >= 0) & (where <= ends)).all(0), ((where < -1) | (where > ends + 1)).any(0)
    assert 0.2 < inside.mean() < 1
    np.testing.assert_allclose(out[inside], fixed.data[inside], atol=1e-2)
    assert (out[outside] == moving.data.min()).all()


def test_the_same_grid_is_told_from_another() -> None:
    affine = affine_of((5, 2, 2), (0, 0, 0))
    one, other = ramp((3, 4, 5), affine, (5, 2, 2)), ramp((3, 4, 5), affine_of((5, 2, 2), (0, 0, 0.1)), (5, 2, 2))
    assert has_same_grid(one, ramp((3, 4, 5), affine, (5, 2, 2)))
    assert not has_same_grid(one, other)
    out = np.zeros((3, 4, 5), np.float32)
    list(resample_planes(one, one, out))
    np.testing.assert_allclose(out, one.data, atol=1e-3)


def test_what_cannot_be_laid_over_a_scan_is_refused() -> None:
    fixed = ramp((6, 20, 24), affine_of((5, 2, 2), (0, 0, 0)), (5, 2, 2))
    head = ramp((6, 20, 24), affine_of((5, 2, 2), (0, 0, 800)), (5, 2, 2))
    nowhere = Scan(fixed.data, "zyx", Geometry((5.0, 2.0, 2.0)), slice_axis=0)
    out = np.zeros(fixed.spatial_shape, np.float32)
    with pytest.raises(ScanError, match="another part of the body"):
        next(resample_planes(fixed, head, out))
    with pytest.raises(ScanError, match="The second series does not say"):
        next(resample_planes(fixed, nowhere, out))
    with pytest.raises(ScanError, match="This scan does not say"):
        next(resample_planes(nowhere, fixed, out))
    assert not out.any()
