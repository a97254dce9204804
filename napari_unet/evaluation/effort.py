"""How much correcting a proposal leaves to do: the two measures of the effort benchmark.

Arithmetic on label arrays only. The loop that proposes, corrects and learns is the session's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError


def pooled_dice(predictions: Sequence[NDArray], truths: Sequence[NDArray], n_classes: int) -> float | None:
    """Return the mean Dice over the foreground classes present in the truth, pooled over a group's voxels.

    Parameters
    ----------
    predictions, truths : sequences of integer arrays
        Label arrays of one scan (one group: a volume, or all frames of a patient), pair by pair of one shape.
    n_classes : int
        Number of foreground classes: values 1 to ``n_classes`` count. A larger number changes nothing, because
        classes absent from the truth are left out.

    Returns
    -------
    float or None
        In [0, 1]; None if the truth holds no foreground.

    Raises
    ------
    MaskError
        Predictions and truths do not pair up.
    """
    overlap, predicted, true = np.zeros((3, n_classes + 1), np.int64)
    for prediction, truth in _pairs(predictions, truths):
        predicted += _counts(prediction, n_classes)
        true += _counts(truth, n_classes)
        overlap += _counts(truth[prediction == truth], n_classes)
    present = np.flatnonzero(true[1:]) + 1
    if not len(present):
        return None
    return float((2 * overlap[present] / (predicted[present] + true[present])).mean())


def correction_effort(predictions: Sequence[NDArray], truths: Sequence[NDArray]) -> int:
    """Return the number of voxels of a group that a person has to correct.

    Voxels where prediction and truth differ, capped at the foreground voxels of the truth: nobody corrects more than
    they would paint from scratch. An empty truth therefore costs nothing.

    Parameters
    ----------
    predictions, truths : sequences of integer arrays
        As in :func:`pooled_dice`.

    Raises
    ------
    MaskError
        Predictions and truths do not pair up.
    """
    differing = foreground = 0
    for prediction, truth in _pairs(predictions, truths):
        differing += int(np.count_nonzero(prediction != truth))
        foreground += int(np.count_nonzero(truth))
    return min(differing, foreground)


def _pairs(predictions: Sequence[NDArray], truths: Sequence[NDArray]) -> Iterator[tuple[NDArray, NDArray]]:
    if len(predictions) != len(truths):
        raise MaskError(f"{len(predictions)} predictions cannot be compared with {len(truths)} truths: give pairs.")
    for prediction, truth in zip(predictions, truths, strict=True):
        if prediction.shape != truth.shape:
            raise MaskError(
                f"A prediction has shape {prediction.shape} and its truth {truth.shape}: "
                "compare masks made for the same scan."
            )
        yield prediction, truth


def _counts(labels: NDArray, n_classes: int) -> NDArray[np.int64]:
    """Return the number of voxels of each value from 0 to ``n_classes``; larger values are left out."""
    return np.bincount(np.ravel(labels), minlength=n_classes + 1)[: n_classes + 1]
