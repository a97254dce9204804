"""What the session knows about one open scan."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.scan import Scan
from napari_unet.session.history import History


@dataclass(eq=False)
class ScanState:
    """An open scan with its annotation and history.

    Parameters
    ----------
    name : str
        What the window calls it: ``scan 1``. Never a patient's name, never a file's.
    scan : Scan
    annotation : Annotation
        The truth; views show copies of its labels.
    locked : (n_slices,) bool array
        Slices that judge models and never teach. A slice never changes sides.
    """

    name: str
    scan: Scan
    annotation: Annotation
    locked: NDArray[np.bool_]
    history: History = field(default_factory=History)
    #: Checkpoint of the last proposal, None before any.
    proposed_by: str | None = None
    #: Stem of the source's file, for naming what is exported.
    stem: str = "scan"

    @property
    def n_accepted(self) -> int:
        """Number of accepted slices."""
        return int(self.annotation.accepted.sum())

    def lock_some(self) -> None:
        """Put a fifth of the accepted slices, as one block, aside as judges once there are five.

        Neighbouring slices look alike, so single slices sprinkled over a scan would flatter the model: judges are
        contiguous, at the far end of what is accepted, and stay judges for good.
        """
        accepted = np.flatnonzero(self.annotation.accepted)
        if len(accepted) >= 5 and not self.locked[accepted].any():
            self.locked[accepted[-max(1, len(accepted) // 5) :]] = True
