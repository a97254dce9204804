"""How a scan was read, as plain JSON values. Reads no file and prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_unet.domain.scan import Scan, SeriesInfo


def describe(scan: Scan) -> dict[str, Any]:
    """Return what the command line's ``info`` prints.

    Returns
    -------
    dict
        ``axes``, ``shape``, ``spacing_mm`` (spatial axes), ``orientation`` (the source's codes in file order),
        ``affine`` (4x4, from ``[z, y, x, 1]`` as loaded to LPS mm), ``dtype``, ``modality``, ``series``,
        ``warnings``. None where unknown; all numbers finite.
    """
    geometry = scan.geometry
    return {
        "axes": scan.axes,
        "shape": [int(n) for n in scan.data.shape],
        "spacing_mm": None if geometry.spacing is None else [float(step) for step in geometry.spacing],
        "orientation": geometry.source_orientation,
        "affine": None if geometry.affine is None else geometry.affine.tolist(),
        "dtype": str(scan.data.dtype),
        "modality": scan.modality,
        "series": _listed(scan.series),
        "warnings": list(scan.warnings),
    }


def describe_choice(series: Sequence[SeriesInfo]) -> dict[str, Any]:
    """Return the same keys for a source of several series, none of which is chosen: all None, but for ``series``."""
    unknown = ("axes", "shape", "spacing_mm", "orientation", "affine", "dtype", "modality")
    return {**dict.fromkeys(unknown), "series": _listed(series), "warnings": []}


def _listed(series: Sequence[SeriesInfo]) -> list[dict[str, Any]]:
    return [
        {"uid": s.uid, "description": s.description, "shape": [int(n) for n in s.shape], "chosen": s.chosen}
        for s in series
    ]
