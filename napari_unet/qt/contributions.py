"""What the manifest offers to napari: readers, a writer, sample data. Thin adapters; the work is the floors' below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_unet.domain.errors import ScanError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import can_read
from napari_unet.io.writers import write_mask
from napari_unet.qt.choosing import read_asking
from napari_unet.qt.layer_data import SCAN_KEY, image_arguments, picture, placement

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return a reader for what napari was given, or None if it is not ours."""
    paths = [path] if isinstance(path, str) else list(path)
    return _read if paths and all(can_read(p) for p in paths) else None


def _read(path: str | Sequence[str]) -> list[LayerData]:
    paths = [path] if isinstance(path, str) else list(path)
    scans = [read_asking(p) for p in paths]
    # napari's word for "read, but nothing to show": the person cancelled.
    return [_layer(scan) for scan in scans if scan is not None] or [(None,)]  # type: ignore[list-item]


def _layer(scan: Scan) -> LayerData:
    return picture(scan), image_arguments(scan, "scan"), "image"


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a Labels layer on its scan's acquired grid (napari's File > Save).

    Raises
    ------
    ScanError
        The layer does not belong to a scan that this plugin read.
    """
    scan = meta.get("metadata", {}).get(SCAN_KEY)
    if not isinstance(scan, Scan):
        raise ScanError(
            "This layer does not belong to a scan opened with U-Net: use the dock's Export, or napari's own writer."
        )
    labels = np.asarray(data)
    write_mask(labels, scan, Path(path), LabelSchema.numbered(max(1, int(labels.max(initial=0)))))
    return [path]


def phantom_thin() -> list[LayerData]:
    """Return the computed abdomen with thin slices and its truth (hidden)."""
    return _phantom("thin")


def phantom_thick() -> list[LayerData]:
    """Return the same computed abdomen with thick slices and its truth (hidden)."""
    return _phantom("thick")


def _phantom(spacing: Literal["thin", "thick"]) -> list[LayerData]:
    from napari_unet.io.samples import ct_phantom

    scan, truth, schema = ct_phantom(1, spacing)
    arguments = {"name": f"CT phantom, {spacing} slices (computed): truth", "visible": False, **placement(scan)}
    arguments["features"] = {"index": [0, *schema.ids], "class": ["background", *(c.name for c in schema.classes)]}
    return [(truth, arguments, "labels"), _layer(scan)]


def sample_retina() -> list[LayerData]:
    """Return scikit-image's fundus photograph."""
    return _picture("retina")


def sample_ihc() -> list[LayerData]:
    """Return scikit-image's histology picture."""
    return _picture("ihc")


def sample_cell() -> list[LayerData]:
    """Return scikit-image's picture of a cell."""
    return _picture("cell")


def _picture(wanted: str) -> list[LayerData]:
    from napari_unet.io.samples import picture_samples

    for key, _, load in picture_samples():
        if key == wanted:
            return [_layer(load())]
    raise ScanError("This picture does not come with the installed scikit-image: choose another sample.")
