"""Where an edit may change labels, and which of them: every tool's result goes through one door."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError, SettingsError

#: ``all``: whatever stands there. ``unlocked``: locked classes neither lose nor gain a voxel. ``empty``: background
#: only, beside the classes that are edited, and locked classes as before.
OverwriteRule = Literal["all", "unlocked", "empty"]

_RULES = ("all", "unlocked", "empty")


@dataclass(frozen=True)
class Region:
    """A box of a scan that an edit is restricted to: the visible slice, a slab of slices, or all of it.

    Parameters
    ----------
    box : tuple of slice
        One per array axis, with start and stop inside the array.
    """

    box: tuple[slice, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """Return all of an array of this shape."""
        return cls(tuple(slice(0, n) for n in shape))

    @classmethod
    def slices(cls, shape: Sequence[int], axis: int | None, first: int, stop: int) -> Region:
        """Return consecutive slices across an axis, what lies beyond the array left out; a picture (None) as a whole.

        Raises
        ------
        SettingsError
            No slice of the array is among them.
        """
        box = [slice(0, n) for n in shape]
        if axis is not None:
            start, end = max(0, first), min(shape[axis], stop)
            if start >= end:
                raise SettingsError(f"The scan has no slices from {first} to {stop - 1}: choose slices of the scan.")
            box[axis] = slice(start, end)
        return cls(tuple(box))

    @property
    def _thin(self) -> tuple[int, ...]:
        thin = [axis for axis, side in enumerate(self.box) if side.stop - side.start == 1]
        return tuple(thin[: max(0, len(self.box) - 2)])

    def cut(self, array: NDArray) -> NDArray:
        """Return a view of the region's part of an array; a single slice of a volume comes as a plane.

        As a plane, since a hole of a slice is none in a volume that is one slice thick.
        """
        return np.squeeze(array[self.box], axis=self._thin)

    def spacing(self, spacing: Sequence[float] | None) -> tuple[float, ...] | None:
        """Return the spacing along the axes of what :meth:`cut` returns."""
        if spacing is None:
            return None
        return tuple(step for axis, step in enumerate(spacing) if axis not in self._thin)

    def thickness(self, spacing: Sequence[float] | None) -> float:
        """Return the length along the axes that :meth:`cut` leaves out; 1 where it leaves out none."""
        return 1.0 if spacing is None else float(np.prod([spacing[axis] for axis in self._thin]))


def merge(
    labels: NDArray,
    wanted: NDArray,
    region: Region,
    rule: OverwriteRule = "unlocked",
    locked: Collection[int] = (),
    edited: Collection[int] = (),
) -> NDArray:
    """Return labels with a wanted result put in, as far as the region, the rule and the locks allow.

    Parameters
    ----------
    labels : integer array
        What stands there. It is not changed.
    wanted : integer array
        What a tool made of ``region.cut(labels)``: the labels that should stand there.
    region : Region
        Outside nothing changes.
    rule : {"all", "unlocked", "empty"}
        What may be overwritten.
    locked : collection of int
        Classes that neither lose nor gain voxels, except under ``all``. Background (0) may be among them.
    edited : collection of int
        The classes that the tool works on, which under ``empty`` may lose voxels.

    Returns
    -------
    array of the shape and dtype of ``labels``

    Raises
    ------
    MaskError
        The result does not fit the region, or holds values that the labels' type cannot.
    SettingsError
        There is no such rule.
    """
    if rule not in _RULES:
        raise SettingsError(f"There is no overwrite rule {rule!r}: choose one of {', '.join(_RULES)}.")
    merged = labels.copy()
    part = region.cut(merged)
    if wanted.shape != part.shape:
        raise MaskError(f"The result has shape {wanted.shape} and the region {part.shape}: run the tool on the region.")
    if wanted.size and (wanted.min() < 0 or wanted.max() > np.iinfo(labels.dtype).max):
        raise MaskError(f"The result holds labels that {labels.dtype} cannot: use labels of a wider type.")
    change = wanted != part
    if rule != "all" and locked:
        change &= ~(np.isin(part, list(locked)) | np.isin(wanted, list(locked)))
    if rule == "empty":
        change &= np.isin(part, [0, *edited])
    part[change] = wanted[change]
    return merged


def painted(labels: NDArray, mask: NDArray[np.bool_], value: int) -> NDArray:
    """Return labels with a class (0: background) put where a mask says so; what strokes and growing ask for."""
    _require_one_shape(labels, mask)
    found = labels.copy()
    found[mask] = value
    return found


def erased(labels: NDArray, mask: NDArray[np.bool_], value: int) -> NDArray:
    """Return labels without one class where a mask says so; other classes stay."""
    _require_one_shape(labels, mask)
    found = labels.copy()
    found[mask & (labels == value)] = 0
    return found


def replaced(labels: NDArray, mask: NDArray[np.bool_], value: int) -> NDArray:
    """Return labels in which a class is exactly a mask; what it loses becomes background."""
    _require_one_shape(labels, mask)
    found = labels.copy()
    found[labels == value] = 0
    found[mask] = value
    return found


def _require_one_shape(labels: NDArray, mask: NDArray) -> None:
    if labels.shape != mask.shape:
        raise MaskError(f"The labels have shape {labels.shape} and the mask {mask.shape}: use those of one scan.")
