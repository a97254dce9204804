"""From a file's own matrix to the grid of a scan, for formats that can state that matrix in LPS millimetres.

Pure arithmetic: choosing the flips and the permutation, and saying in a line what is odd about a position. What a
format's header fields mean stands with its reader.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import AxisMap, Geometry, obliquity_degrees, orientation_codes

#: Where the axes as loaded lead. A lone slice is shown as a picture, whose rows run down the body.
_VOLUME_AXES, _PICTURE_AXES = "SPL", "IPL"
_OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))

POSITION_UNKNOWN = "position unknown (the file states none): left and right are a guess"


def axis_map_of(codes: str, is_picture: bool = False) -> AxisMap:
    """Return the way from a file's axes to the axes as loaded.

    Parameters
    ----------
    codes : str
        Direction in which each file axis increases: three letters of ``LRPASI``, or two where ``is_picture``.
    is_picture : bool
        The axes span one slice, which is shown with its rows running down the body.
    """
    permutation, flips = [], []
    for target in _PICTURE_AXES if is_picture else _VOLUME_AXES:
        for axis, code in enumerate(codes):
            if code in (target, _OPPOSITE[target]):
                permutation.append(axis)
                flips.append(code != target)
    return AxisMap(tuple(permutation), tuple(flips))


def placed(
    lps_mm: NDArray[np.float64], shape: tuple[int, ...], source_affine: NDArray[np.float64], name: str
) -> tuple[Geometry, list[str]]:
    """Return the grid of an image that says where it stands.

    Parameters
    ----------
    lps_mm : (4, 4) array
        From indices along the file's axes to LPS millimetres.
    shape : tuple of int
        Along the file's spatial axes: three, or two where a third one of one element was left out (a picture, whose
        third column of ``lps_mm`` still counts).
    source_affine : (4, 4) array
        The file's own matrix in the file's own convention.
    name : str
        File name for messages.

    Returns
    -------
    geometry, warnings
        A picture has spacing only, since positions belong to volumes.

    Raises
    ------
    ScanError
        A spacing of 0, or NaN.
    """
    if not (np.isfinite(lps_mm).all() and abs(np.linalg.det(lps_mm[:3, :3])) > 0):
        raise ScanError(f"{name} has a position matrix with a spacing of 0 or NaN: repair its header and try again.")
    codes = orientation_codes(lps_mm)
    is_picture = len(shape) == 2
    axis_map = axis_map_of(codes[: len(shape)], is_picture)
    steps = np.linalg.norm(lps_mm[:3, :3], axis=0)
    loaded_shape = tuple(shape[axis] for axis in axis_map.permutation)
    geometry = Geometry(
        spacing=tuple(float(steps[axis]) for axis in axis_map.permutation),
        affine=None if is_picture else lps_mm @ axis_map.index_matrix(loaded_shape),
        axis_map=axis_map,
        source_affine=source_affine,
        source_orientation=codes,
    )
    return geometry, oddities(lps_mm)


def unplaced(spacing: tuple[float, ...] | None, n_axes: int) -> Geometry:
    """Return the grid of an image that does not say where it stands, shown in the order in which it is stored.

    Parameters
    ----------
    spacing : tuple of float or None
        Millimetres along the file's axes, fastest first; None where unknown.
    n_axes : int
        2 for a picture, 3 for a volume.
    """
    axis_map = AxisMap(tuple(range(n_axes))[::-1], (False,) * n_axes)
    return Geometry(None if spacing is None else tuple(float(step) for step in spacing[::-1]), axis_map=axis_map)


def oddities(affine: NDArray[np.float64]) -> list[str]:
    """Return a line about sheared axes and one about an oblique position, where there is cause.

    Parameters
    ----------
    affine : (4, 4) array
        From array indices to millimetres of the patient.
    """
    found = []
    units = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(units.T @ units - np.eye(3)).max())
    if shear > 1e-3:
        angle = np.degrees(np.arcsin(min(shear, 1.0)))
        found.append(f"axes are sheared by {angle:.1f} degrees: shown on the acquired grid")
    oblique = obliquity_degrees(affine)
    if oblique > 0.5:
        found.append(f"oblique by {oblique:.1f} degrees: shown on the acquired grid")
    return found


def lps_on_source_grid(geometry: Geometry, loaded_shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return the matrix from indices along the file's axes to LPS millimetres; None where the position is unknown."""
    if geometry.affine is None:
        return None
    return geometry.affine @ np.linalg.inv(geometry.axis_map.index_matrix(loaded_shape))
