"""Scans of a folder that nobody has labelled: for the Mean Teacher, which learns from them what scans look like."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan
from napari_unet.io.pairs import scale_down
from napari_unet.io.registry import find_sources, read_scan


def load_unlabelled(folder: Path, known: Collection[str], max_side: int | None = None) -> list[Scan]:
    """Read all scans of a folder that are not among the labelled ones.

    Parameters
    ----------
    folder : Path
        Searched with its subfolders.
    known : collection of str
        Fingerprints of scans that teach or judge: those that judge must not be learnt from in any way.
    max_side : int, optional
        Longest side in pixels, as the labelled scans were read.

    Returns
    -------
    list of Scan

    Raises
    ------
    ScanError
        No scan is left, or one cannot be read.
    """
    sources = find_sources(folder) if folder.is_dir() else []
    if not sources:
        raise ScanError(f"No scan that can be read was found in {folder}.")
    found = []
    for source in sources:
        scan = read_scan(source)
        if max_side is not None:
            scan, _ = scale_down(scan, np.zeros(scan.spatial_shape, np.uint8), max_side)
        if scan.fingerprint not in known:
            found.append(scan)
    if not found:
        raise ScanError(f"All scans in {folder} are among the labelled ones, so there is nothing unlabelled to add.")
    return found
