"""Labels back on the grid that was acquired, for formats that store the fastest axis first (NIfTI, NRRD)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.scan import Scan
from napari_unet.io.formats import METAIMAGE, NIFTI, NRRD
from napari_unet.io.placement import lps_on_source_grid

#: Formats whose reader counts a file's axes from the fastest; the others count from the slowest, as numpy does.
_FASTEST_FIRST = (*NIFTI.suffixes, *NRRD.suffixes, *METAIMAGE.suffixes)


def acquired_grid(labels: NDArray, scan: Scan) -> tuple[NDArray, NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Return labels in the axes of the source, fastest first, and where they stand.

    Parameters
    ----------
    labels : integer array
        Over the scan's spatial axes, as loaded.
    scan : Scan
        The scan they belong to.

    Returns
    -------
    array
        A view of the labels. Without a position the axes are x, y(, z) as loaded, since then nothing else says
        how the scan is to be shown.
    affine : (4, 4) array or None
        From indices of that array to LPS millimetres; None where the position is unknown.
    spacing : tuple of float or None
        Millimetres along the axes of that array; None where unknown.
    """
    geometry = scan.geometry
    lps = lps_on_source_grid(geometry, labels.shape)
    if lps is None:
        return labels.transpose(), None, None if geometry.spacing is None else geometry.spacing[::-1]
    array = geometry.axis_map.to_source(labels)
    if scan.source is None or not scan.source.name.lower().endswith(_FASTEST_FIRST):
        array, lps = array.transpose(), lps @ np.eye(4)[[2, 1, 0, 3]]
    return array, lps, tuple(float(step) for step in np.linalg.norm(lps[:3, :3], axis=0))
