"""Scans as napari layers, and napari layers as scans."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan

#: Key of a layer's metadata under which its scan lies.
SCAN_KEY = "napari_unet_scan"
#: The same for layers that only show something about a scan.
OVERLAY_KEY = "napari_unet_overlay"
#: Windows of CT in Hounsfield units, from black to white, by their usual centres and widths.
CT_WINDOWS = {
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
}
_TO_MM = {"millimeter": 1.0, "micrometer": 1e-3, "meter": 1e3, "centimeter": 10.0, "nanometer": 1e-6}


def placement(scan: Scan) -> dict[str, Any]:
    """Return scale, translation, units and axis labels of a layer over a scan's spatial axes."""
    n = len(scan.spatial_shape)
    known = scan.geometry.spacing is not None
    arguments: dict[str, Any] = {
        "scale": scan.spacing_or_unit,
        "units": ("mm" if known else "pixel",) * n,
        "axis_labels": ("z", "y", "x")[-n:],
    }
    if scan.geometry.translation is not None and n == 3:
        # Flips only: an oblique affine is never given to napari, which would draw it wrongly.
        arguments["translate"] = scan.geometry.translation
    return arguments


def picture(scan: Scan) -> NDArray:
    """Return what napari draws of a scan: all of it, or the first channel where the channels are no colours."""
    return scan.data[..., 0] if scan.has_channels and not scan.is_rgb else scan.data


def image_arguments(scan: Scan, name: str) -> dict[str, Any]:
    """Return what an image layer of a scan is made with, besides its data."""
    arguments = {"name": name, "rgb": scan.is_rgb, "metadata": {SCAN_KEY: scan}, **placement(scan)}
    if not scan.is_rgb:
        arguments["contrast_limits"] = scan.window or whole_window(scan)
        arguments["colormap"] = "gray_r" if scan.inverted else "gray"
    return arguments


def label_colours(schema: LabelSchema) -> DirectLabelColormap:
    """Return the colours of the classes as a Labels layer takes them; other values are grey."""
    colours: dict[int | None, object] = {each.id: (*each.colour, 1.0) for each in schema.classes}
    return DirectLabelColormap(color_dict={0: "transparent", None: (0.5, 0.5, 0.5, 1.0), **colours})


def whole_window(scan: Scan) -> tuple[float, float]:
    """Return the intensities between which nearly all voxels of a scan lie (0.5 to 99.5 per cent of a sample)."""
    drawn = picture(scan)
    if scan.is_lazy:
        # One plane stands for all of them: reading everything could take minutes.
        drawn = np.asarray(drawn[drawn.shape[0] // 2])
    low, high = (float(v) for v in np.percentile(drawn.reshape(-1)[:: max(1, drawn.size // 500_000)], (0.5, 99.5)))
    if not high > low:
        low, high = float(drawn.min()), float(drawn.max())
    return (low, high) if high > low else (low, low + 1)


def scan_of_layer(layer: Image) -> Scan:
    """Return the scan behind an image layer: the one it was read as, or one made of its array and scale.

    Raises
    ------
    ScanError
        The layer is lazy, multiscale, or has an unusual number of axes.
    """
    known = layer.metadata.get(SCAN_KEY)
    if isinstance(known, Scan):
        return known
    data = layer.data
    if layer.multiscale or not isinstance(data, np.ndarray):
        raise ScanError("This layer is not a plain array in memory: load the scan as a file to segment it.")
    n = data.ndim - bool(layer.rgb)
    if n not in (2, 3) or data.size == 0:
        raise ScanError(f"This layer has {n} axes: a scan has two, or three for a volume.")
    unit = {_TO_MM.get(str(unit)) for unit in layer.units}
    factor = unit.pop() if len(unit) == 1 else None
    spacing = tuple(float(s) * factor for s in layer.scale[-n:]) if factor else None
    if data.dtype == np.float64:
        data = data.astype(np.float32)
    if not np.isfinite(data).all():
        raise ScanError("This layer holds values that are not numbers: load the scan as a file to have them replaced.")
    return Scan(
        np.ascontiguousarray(data),
        ("zyx"[-n:]) + ("c" if layer.rgb else ""),
        Geometry(spacing, axis_map=AxisMap.identity(n)),
        slice_axis=0 if n == 3 else None,
    )
