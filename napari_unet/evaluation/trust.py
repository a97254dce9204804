"""How far proposals can be trusted by now: what correcting them took, scan by scan, and when that is little enough.

Arithmetic on numbers. A scan counts as it was before it was learnt from: its proposal against the corrected result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.evaluation.effort import correction_effort, pooled_dice

_WINDOW = 5
#: So little of a scan's foreground left to correct, on so many scans in a row, is reason to stop.
_LITTLE, _IN_A_ROW = 0.02, 8


@dataclass(frozen=True)
class CorrectedScan:
    """One scan that was proposed and then corrected.

    Parameters
    ----------
    scan : str
        Whatever names the scan to the caller, such as its fingerprint.
    model : str
        Name of the model that proposed.
    dice : float or None
        Of the proposal against the corrected labels; None where these hold no foreground.
    share : float or None
        Voxels changed, as a share of the foreground of the corrected labels, at most 1 (nobody corrects more than they
        would paint); None where these hold no foreground.
    """

    scan: str
    model: str
    dice: float | None
    share: float | None


def corrected_scan(scan: str, model: str, proposals: Sequence[NDArray], corrected: Sequence[NDArray]) -> CorrectedScan:
    """Return what correcting a scan took.

    Parameters
    ----------
    scan, model : str
        As in :class:`CorrectedScan`.
    proposals, corrected : sequences of integer arrays
        Label arrays of one scan, pair by pair of one shape: a volume, the accepted slices of one, or all frames of a
        patient. What nobody has looked at does not belong in here.

    Raises
    ------
    MaskError
        They do not pair up.
    """
    n_classes = max((int(labels.max(initial=0)) for labels in corrected), default=0)
    foreground = sum(int(np.count_nonzero(labels)) for labels in corrected)
    changed = correction_effort(proposals, corrected)
    return CorrectedScan(
        scan, model, pooled_dice(proposals, corrected, n_classes), changed / foreground if foreground else None
    )


def rolling_mean(values: Sequence[float | None], window: int = _WINDOW) -> list[float | None]:
    """Return, for each value, the mean of it and those before it, ``window`` at most; None counts for nothing."""
    found: list[float | None] = []
    for end in range(1, len(values) + 1):
        known = [value for value in values[max(0, end - window) : end] if value is not None]
        found.append(float(np.mean(known)) if known else None)
    return found


def stop_hint(scans: Iterable[CorrectedScan], most: float = _LITTLE, in_a_row: int = _IN_A_ROW) -> str | None:
    """Return one sentence where the last scans hardly needed correction; None where they did.

    Parameters
    ----------
    scans : iterable of CorrectedScan
        In the order in which they were corrected. Those without foreground say nothing.
    most : float
        Every one of the last scans has to have needed less than this share.
    in_a_row : int
        How many of them there have to be at least.
    """
    shares = [scan.share for scan in scans if scan.share is not None]
    n = 0
    while n < len(shares) and shares[-1 - n] < most:
        n += 1
    if n < in_a_row:
        return None
    return (
        f"The last {n} scans needed under {100 * most:g} % correction: correcting more of this kind will hardly change "
        "the model."
    )
