"""What a model says about a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Proposal:
    """Labels proposed for consecutive acquired planes of one scan.

    Parameters
    ----------
    first_slice : int
        Index, along the scan's slice axis, of the first plane.
    labels : (n, h, w) array of uint8 or uint16
        Values of the label schema.
    uncertainty : (n, h, w) array of uint8, or None
        Entropy of the class probabilities, 255 = all classes alike; None where it is not known.
    checkpoint : str
        Identifier of the checkpoint that made it.
    scan : str
        Fingerprint of the scan it was made for.
    notes : tuple of str
        What the person should know: the scan is unlike those the model knows, memory or device failed.
    """

    first_slice: int
    labels: NDArray
    uncertainty: NDArray[np.uint8] | None
    checkpoint: str
    scan: str
    notes: tuple[str, ...] = ()
