"""Whether a scan is of the kind that a model learnt from."""

from __future__ import annotations

import numpy as np

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.scan import Scan
from napari_unet.patches.prepare import PreparedScan, intensity_quantiles

# Mean distance of the quantiles, in standard deviations. On six public sets (MR, EM, ultrasound, fundus and
# fluorescence pictures; five scans taught, nine asked) this warned of no scan of the same set; of most scans of other
# sets where those taught were much alike (EM, fundus, hippocampus), of few or none where they differed (heart, nuclei).
_LEAST_APART, _TIMES_THE_SPREAD = 0.3, 2.5


def unlike(card: ModelCard, scan: Scan, image: PreparedScan) -> str | None:
    """Return one sentence where a scan is of another kind than those that a model learnt from; None where it is not.

    Parameters
    ----------
    card : ModelCard
    scan : Scan
    image : PreparedScan
        The scan, prepared for the model.
    """
    if card.modality and scan.modality and card.modality != scan.modality:
        return f"The model learnt from {card.modality} and this scan is {scan.modality}: look at the mask with care."
    if card.intensities:
        apart = float(np.abs(intensity_quantiles(image) - np.asarray(card.intensities)).mean())
        if apart > max(_LEAST_APART, _TIMES_THE_SPREAD * card.intensity_spread):
            return (
                "The intensities of this scan are spread unlike those of the scans that the model learnt from: look at "
                "the mask with care."
            )
    return None
