"""What the person has said about a scan: labels, which voxels count as reviewed, and edits that can undo themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SparseChange:
    """Values of some elements of an array before and after an edit.

    Parameters
    ----------
    indices : (n,) int64 array
        Flat (C order) indices, each at most once.
    before, after : (n,) arrays
        Values in the array's dtype.
    """

    indices: NDArray[np.int64]
    before: NDArray
    after: NDArray

    @classmethod
    def between(cls, before: NDArray, after: NDArray) -> SparseChange:
        """Return what turns one array into another of the same shape."""
        if before.shape != after.shape:
            raise ValueError(f"shapes differ: {before.shape} and {after.shape}")
        flat_before, flat_after = np.ravel(before), np.ravel(after)
        indices = np.flatnonzero(flat_before != flat_after)
        return cls(indices, flat_before[indices], flat_after[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def inverse(self) -> SparseChange:
        """Return the change that undoes this one."""
        return SparseChange(self.indices, self.after, self.before)

    def apply(self, array: NDArray) -> None:
        """Write the values after the edit into an array, in place."""
        array.flat[self.indices] = self.after


@dataclass(frozen=True, eq=False)
class Correction:
    """One edit of an annotation, which can invert itself.

    Parameters
    ----------
    kind : str
        What it was: ``stroke``, ``proposal``, ``accept``, ``import``...
    labels : SparseChange or None
        Voxels whose label changed.
    painted : SparseChange or None
        Voxels whose "painted by hand" mark changed.
    accepted : SparseChange or None
        Slices (indices along the slice axis) whose acceptance changed.
    proposal : str or None
        Identifier of the checkpoint behind the proposal that was on screen, so that nothing stale is applied.
    """

    kind: str
    labels: SparseChange | None = None
    painted: SparseChange | None = None
    accepted: SparseChange | None = None
    proposal: str | None = None

    @classmethod
    def between(cls, kind: str, before: Annotation, after: Annotation) -> Correction:
        """Return what turns one annotation into another of the same shape."""
        labels, painted, accepted = (
            SparseChange.between(getattr(before, name), getattr(after, name).astype(getattr(before, name).dtype))
            for name in ("labels", "painted", "accepted")
        )
        return cls(kind, labels, painted, accepted)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not any(part is not None and len(part) for part in (self.labels, self.painted, self.accepted))

    def inverse(self) -> Correction:
        """Return the correction that undoes this one."""
        labels, painted, accepted = (
            None if part is None else part.inverse() for part in (self.labels, self.painted, self.accepted)
        )
        return Correction(self.kind, labels, painted, accepted, self.proposal)


# Stands for "none given" in the defaults below.
_NOTHING: NDArray[np.bool_] = np.zeros(0, bool)


@dataclass(eq=False)
class Annotation:
    """The label array of one scan with what of it counts as truth.

    Reviewed, and so trained on, are all voxels of accepted slices plus the painted voxels of the others. An
    untouched slice is unknown, not background.

    Parameters
    ----------
    labels : array of uint8 or uint16
        Over the scan's spatial axes; 0 is background.
    slice_axis : int or None
        The scan's slice axis; None in 2D.
    painted : bool array
        Same shape: voxels set by the person's hand.
    accepted : (n_slices,) bool array
        Slices declared right as a whole.
    """

    labels: NDArray
    slice_axis: int | None
    painted: NDArray[np.bool_] = field(default_factory=lambda: _NOTHING)
    accepted: NDArray[np.bool_] = field(default_factory=lambda: _NOTHING)

    def __post_init__(self) -> None:
        if self.labels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"labels must be uint8 or uint16, not {self.labels.dtype}")
        n = 1 if self.slice_axis is None else self.labels.shape[self.slice_axis]
        if self.painted is _NOTHING:
            self.painted = np.zeros(self.labels.shape, bool)
        if self.accepted is _NOTHING:
            self.accepted = np.zeros(n, bool)
        if self.painted.shape != self.labels.shape or self.accepted.shape != (n,):
            raise ValueError(
                f"labels {self.labels.shape}, painted {self.painted.shape}, accepted {self.accepted.shape}"
            )

    @classmethod
    def empty(cls, shape: tuple[int, ...], slice_axis: int | None, dtype: type = np.uint8) -> Annotation:
        """Return an annotation with nothing said yet."""
        return cls(np.zeros(shape, dtype), slice_axis)

    def copy(self) -> Annotation:
        """Return an independent copy."""
        return Annotation(self.labels.copy(), self.slice_axis, self.painted.copy(), self.accepted.copy())

    def slice_index(self, slices: object) -> tuple[Any, ...]:
        """Return the index that selects slices (an int, a slice or a mask) from an array over the spatial axes."""
        if self.slice_axis is None:
            return (Ellipsis,)
        return (slice(None),) * self.slice_axis + (slices,)

    def flat_indices(self, mask: NDArray[np.bool_], first_slice: int) -> NDArray[np.int64]:
        """Return the flat (C order) indices of a mask over some consecutive slices, beginning at ``first_slice``."""
        found = list(np.nonzero(mask))
        if self.slice_axis is not None:
            found[self.slice_axis] += first_slice
        return np.ravel_multi_index(found, self.labels.shape)

    def reviewed(self) -> NDArray[np.bool_]:
        """Return the mask of voxels that count as truth, shape of ``labels``."""
        mask = self.painted.copy()
        if self.slice_axis is None:
            if self.accepted[0]:
                mask[...] = True
        else:
            mask[self.slice_index(self.accepted)] = True
        return mask

    def reviewed_slices(self) -> NDArray[np.int64]:
        """Return the indices of slices with at least one reviewed voxel, in order."""
        if self.slice_axis is None:
            return np.flatnonzero(self.accepted | self.painted.any())
        other = tuple(i for i in range(self.labels.ndim) if i != self.slice_axis)
        return np.flatnonzero(self.accepted | self.painted.any(axis=other))

    def apply(self, correction: Correction) -> None:
        """Carry out a correction, in place."""
        for change, array in (
            (correction.labels, self.labels),
            (correction.painted, self.painted),
            (correction.accepted, self.accepted),
        ):
            if change is not None:
                change.apply(array)

    def acceptance(self, slices: NDArray[np.int64] | list[int], value: bool = True) -> Correction:
        """Return the correction that accepts (or un-accepts) slices, without carrying it out."""
        after = self.accepted.copy()
        after[slices] = value
        return Correction("accept" if value else "reopen", accepted=SparseChange.between(self.accepted, after))
