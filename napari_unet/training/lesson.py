"""What a fine-tune is handed and what it hands back. No torch here: the window's process sees nothing but these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.scan import Scan


@dataclass(frozen=True, eq=False)
class Lesson:
    """One scan with what is known about it, frozen for training.

    Parameters
    ----------
    scan : Scan
        The image.
    labels : array over the spatial axes
        Values of the label schema.
    reviewed : bool array of the same shape, or None
        Voxels that teach; None: all.
    locked : (n_slices,) bool array or None
        Slices that only judge. Their voxels never teach, reviewed or not.
    """

    scan: Scan
    labels: NDArray
    reviewed: NDArray[np.bool_] | None = None
    locked: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class CaseVerdict:
    """Dice of one locked case with the old model and with the new one.

    Parameters
    ----------
    case : str
        Fingerprint of the scan.
    before, after : float or None
        Mean over the classes present; None: no model, or nothing to score.
    slices : int
        How many slices judged.
    classes : tuple of (before, after)
        The same per class of the schema; None where a class is absent.
    """

    case: str
    before: float | None
    after: float | None
    slices: int
    classes: tuple[tuple[float | None, float | None], ...] = ()


@dataclass(frozen=True, eq=False)
class FineTuned:
    """The new checkpoint with the evidence."""

    checkpoint: Checkpoint
    verdicts: tuple[CaseVerdict, ...]
    steps: int
    seconds: float
