"""Between masks: a class and another one, a proposal, a mask that was loaded; and from slice to slice."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError, SettingsError
from napari_unet.editing.regions import replaced

Operation = Literal["copy", "union", "intersect", "subtract"]


def combine(labels: NDArray, value: int, other: NDArray[np.bool_], operation: Operation) -> NDArray:
    """Return labels with a class combined with a mask.

    Parameters
    ----------
    labels : integer array
    value : int
        The class that changes.
    other : bool array of the same shape
        Another class of these labels (``labels == 2``), or of others: a proposal, a mask that was loaded. A voxel has
        one class only: what the class takes from another one, that one loses.
    operation : {"copy", "union", "intersect", "subtract"}
        The class becomes the mask; gets what is in the mask; keeps only what is in the mask; loses what is in it.

    Raises
    ------
    MaskError
        The shapes differ.
    SettingsError
        There is no such operation.
    """
    if labels.shape != other.shape:
        raise MaskError(f"The labels have shape {labels.shape} and the mask {other.shape}: use those of one scan.")
    own = labels == value
    if operation == "copy":
        return replaced(labels, other, value)
    if operation == "union":
        return replaced(labels, own | other, value)
    if operation == "intersect":
        return replaced(labels, own & other, value)
    if operation == "subtract":
        return replaced(labels, own & ~other, value)
    raise SettingsError(f"There is no operation {operation!r}: choose copy, union, intersect or subtract.")


def copy_slice(
    labels: NDArray, slice_axis: int, source: int, target: int, classes: Collection[int] | None = None
) -> NDArray:
    """Return the labels that a slice gets when those of another one are copied onto it.

    Parameters
    ----------
    labels : integer array of three axes
    slice_axis : int
    source, target : int
        From which slice, onto which.
    classes : collection of int or None
        Which to copy; the others of the target stay where none of these comes. None: all, and the background.

    Returns
    -------
    integer array of two axes
        The target's labels.

    Raises
    ------
    SettingsError
        There is no such slice.
    """
    planes = np.moveaxis(labels, slice_axis, 0)
    if not (0 <= source < len(planes) and 0 <= target < len(planes)):
        raise SettingsError(f"The scan has slices 0 to {len(planes) - 1}: there is no neighbour to copy from.")
    if classes is None:
        return planes[source].copy()
    chosen = np.isin(planes[source], list(classes))
    found = np.where(np.isin(planes[target], list(classes)), 0, planes[target]).astype(labels.dtype)
    found[chosen] = planes[source][chosen]
    return found
