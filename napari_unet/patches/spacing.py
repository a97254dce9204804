"""From a scan's voxels to those that the network sees, where the plan gave it a spacing of its own."""

from __future__ import annotations

from napari_unet.domain.errors import SettingsError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings

# Beyond this a slip of the pen is likelier than a wish, and memory would be asked for that no computer has.
_LARGEST = 16.0
# A finer or coarser grid by less than this blurs more than it explains.
_EQUAL = 0.05


def zoom_of(scan: Scan, settings: ModelSettings) -> tuple[float, float, float]:
    """Return the spacing of the network's voxels over that of the scan's, per axis of the acquired planes.

    Parameters
    ----------
    scan : Scan
        A picture or a volume. Without a known spacing it is seen as it is.
    settings : ModelSettings
        ``preparation.spacing``, and ``preparation.coarsen`` on top of it; 2D networks see every slice, whatever the
        spacing says of them.

    Returns
    -------
    tuple of float
        Slices, rows, columns; 1 where the two spacings are equal but for 5 %.

    Raises
    ------
    SettingsError
        The two differ by more than a factor of 16.
    """
    wished, spacing = settings.preparation.spacing, scan.geometry.spacing
    coarsen = settings.preparation.coarsen
    if wished is None or spacing is None:
        return 1.0, coarsen, coarsen
    if scan.slice_axis is None:
        own = (wished[0], *spacing[-2:])
    else:
        own = (spacing[scan.slice_axis], *(s for axis, s in enumerate(spacing) if axis != scan.slice_axis))
    if settings.network.dimensions == 2:
        own = (wished[0], *own[1:])
    ratios = [w / s for w, s in zip(wished, own, strict=True)]
    if not all(1 / _LARGEST <= ratio <= _LARGEST for ratio in ratios):
        raise SettingsError(
            f"preparation.spacing of {list(wished)} mm is too far from a scan's {[round(s, 4) for s in own]} mm "
            f"(slices, rows, columns): choose one within a factor of {_LARGEST:g}, or none."
        )
    slices, rows, columns = (1.0 if abs(ratio - 1) < _EQUAL else ratio for ratio in ratios)
    return slices, rows * coarsen, columns * coarsen
