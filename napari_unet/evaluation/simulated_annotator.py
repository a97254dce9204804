"""Annotators that stand in for a person in the effort benchmark and the demo.

They only turn a proposal into corrected labels; the loop around them is the session's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError
from napari_unet.evaluation.brush_strokes import Painted, paint_plane

_JUDGING_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Corrected:
    """What an annotator leaves of one scan.

    Parameters
    ----------
    labels : array
        Of the proposal's shape.
    reviewed : bool array of the same shape
        Accepted slices as a whole; of the others the voxels painted by hand.
    strokes : int or None
        Strokes, and buttons pressed to clear a slice; None where the annotator does not count.
    path : float or None
        Pixels painted along, the travels between strokes not counted.
    seconds : float or None
        All of the time: painting, travelling, searching, judging.
    """

    labels: NDArray
    reviewed: NDArray[np.bool_]
    strokes: int | None = None
    path: float | None = None
    seconds: float | None = None


class Annotator(Protocol):
    """Anyone who corrects proposals."""

    def correct(self, proposal: NDArray, truth: NDArray, slice_axis: int | None = None) -> Corrected:
        """Return what the person leaves of a proposal.

        Parameters
        ----------
        proposal, truth : (h, w) arrays, or volumes of three axes, of uint8 or uint16
            Label arrays of one shape; neither is changed.
        slice_axis : int or None
            The axis across the slices of a volume; None for a plane.

        Raises
        ------
        MaskError
            The shapes differ.
        """


class OracleAnnotator:
    """A person who corrects every voxel to the truth, at no cost that is counted."""

    def correct(self, proposal: NDArray, truth: NDArray, slice_axis: int | None = None) -> Corrected:
        """Return the truth, all of it reviewed; see :meth:`Annotator.correct`."""
        _require_one_shape(proposal, truth)
        return Corrected(truth.copy(), np.ones(truth.shape, bool))


class BrushAnnotator:
    """A person with a round brush, who looks at each slice, paints what is wrong, and accepts the slice.

    Wrong regions are painted with the right class, or erased; slivers at borders are left
    (:func:`~napari_unet.evaluation.brush_strokes.find_slivers`). Where painting all by hand takes less time than
    correcting, the slice is cleared first. What is timed, and how, stands in docs/benchmarks.md.

    Parameters
    ----------
    patience_seconds : float
        Time for one scan. Slices are taken in order; when it is over the person leaves, in the middle of a stroke if
        need be.
    """

    def __init__(self, patience_seconds: float = math.inf) -> None:
        self._patience = patience_seconds

    def correct(self, proposal: NDArray, truth: NDArray, slice_axis: int | None = None) -> Corrected:
        """Return what the person leaves, and what it took; see :meth:`Annotator.correct`."""
        _require_one_shape(proposal, truth)
        labels = proposal.astype(np.promote_types(proposal.dtype, truth.dtype))
        reviewed = np.zeros(truth.shape, bool)
        strokes, path, seconds = 0, 0.0, 0.0
        planes = [
            array[np.newaxis] if slice_axis is None else np.moveaxis(array, slice_axis, 0)
            for array in (labels, truth, reviewed)
        ]
        for plane, true, known in zip(*planes, strict=True):
            if seconds + _JUDGING_SECONDS > self._patience:
                break
            seconds += _JUDGING_SECONDS
            painted = _correct_plane(plane, true, self._patience - seconds)
            known[...] = painted.done | (painted.labels != plane)
            plane[...] = painted.labels
            strokes, path, seconds = strokes + painted.strokes, path + painted.path, seconds + painted.seconds
            if not painted.done:
                break
        return Corrected(labels, reviewed, strokes, path, seconds)


def _correct_plane(labels: NDArray, truth: NDArray, limit: float) -> Painted:
    """Correct a plane, or clear it and paint all of it, whichever takes less time and leaves no more wrong than was."""
    corrected = paint_plane(labels, truth, limit)
    if corrected.strokes == 0 or not labels.any():
        return corrected
    cleared = paint_plane(np.zeros_like(labels), truth, corrected.seconds if corrected.done else limit, actions=1)
    cheaper = cleared.done and (not corrected.done or cleared.seconds < corrected.seconds)
    if cheaper and np.count_nonzero(cleared.labels != truth) <= np.count_nonzero(labels != truth):
        return cleared
    return corrected


def _require_one_shape(proposal: NDArray, truth: NDArray) -> None:
    if proposal.shape != truth.shape:
        raise MaskError(
            f"The proposal has shape {proposal.shape} and the truth {truth.shape}: correct masks of the same scan."
        )
