"""Filling between slices: the shapes of slices painted by hand, carried on over the slices between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import SettingsError
from napari_unet.editing.grids import box_around, distance_inside, voxel_widths

# Farther outside than anything on a plane.
_NOWHERE = -np.inf

_Plane = NDArray[np.bool_]


def fill_between(
    labels: NDArray,
    slice_axis: int,
    given: Sequence[int],
    spacing: Sequence[float] | None = None,
    classes: Collection[int] | None = None,
    silent: Mapping[int, Collection[int]] | None = None,
) -> tuple[NDArray[np.int64], NDArray]:
    """Return the labels of the slices that lie between given ones, by interpolating their shapes.

    Shape-based interpolation (Raya and Udupa 1990; Herman, Zheng and Bucholtz 1992): the signed distance to the border
    is interpolated along the slice axis, and what is positive is inside. Here

    - along a monotone cubic (Fritsch and Carlson 1980) through all slices of a structure, so that it follows a taper
      that a straight line cuts off, and never bulges between two equal slices;
    - of each piece by itself, pieces of neighbouring given slices being one structure where they overlap, so that
      branches join and part; and with the pieces moved onto each other before and back after, where that makes them
      overlap better, so that oblique structures keep their width;
    - towards a given slice without the structure it shrinks away, about half-way in between. Nothing is added beyond
      the first and the last given slice;
    - several classes: what belongs to any of them is interpolated as one shape and shared out to the class with the
      largest signed distance, so that neighbours stay without a gap.

    Parameters
    ----------
    labels : integer array of three axes
        Only its given slices count.
    slice_axis : int
    given : sequence of int
        Slices that are right as a whole (accepted, or painted by hand), the empty ones too.
    spacing : sequence of float or None
        In mm per axis; None: voxels count as 1 mm wide.
    classes : collection of int or None
        Which to interpolate; others of the given slices are taken to be background. None: all.
    silent : mapping of int to collection of int, optional
        By class, given slices that say nothing of it: it goes through them, over their background.

    Returns
    -------
    slices : (n,) int64 array
        Those between the first and the last given slice that are not given, or silent about a class; in order.
    planes : (n, ...) array of the labels' dtype
        Their labels, the slice axis in front; 0 where nothing goes through.

    Raises
    ------
    SettingsError
        The labels have no slices, or a given slice is none of theirs.
    """
    if labels.ndim != 3:
        raise SettingsError("A picture has no slices to fill between: open a volume.")
    known = np.unique(np.asarray(given, np.int64))
    planes = np.moveaxis(labels, slice_axis, 0)
    if len(known) and (known[0] < 0 or known[-1] >= len(planes)):
        raise SettingsError(f"The scan has slices 0 to {len(planes) - 1}: choose the given ones among them.")
    widths = tuple(np.delete(voxel_widths(spacing, 3), slice_axis))
    unsaid = {value: np.intersect1d(known, list(where)) for value, where in (silent or {}).items()}
    whole = np.setdiff1d(known, np.concatenate([known[:0], *unsaid.values()]))
    slices = np.setdiff1d(np.arange(known[0], known[-1] + 1), whole) if len(known) else known
    filled = np.zeros((len(slices), *planes.shape[1:]), labels.dtype)
    values = [int(v) for v in np.unique(planes[known]) if v and (classes is None or v in classes)]
    if not values or not len(slices):
        return slices, filled
    box = box_around(np.asarray(np.isin(planes[known], values).any(axis=0)), 1)
    assert box is not None
    inner = (slice(None), *box)
    best = filled[inner]
    top = np.full(best.shape, _NOWHERE, np.float32)
    # One class after the other: all of their distances would not fit into memory.
    for value in values:
        saying = np.setdiff1d(known, unsaid.get(value, known[:0]))
        field = _field(planes[saying][inner] == value, saying, slices, widths)
        best[field > top] = value
        np.maximum(top, field, out=top)
    inside = top > 0
    # Beside a slice that is silent about a class the shape of all of them together is not known.
    sure = np.isin(known[np.searchsorted(known, slices) - 1], whole) & np.isin(
        known[np.searchsorted(known, slices)], whole
    )
    if len(values) > 1 and sure.any():
        inside[sure] |= _field(np.isin(planes[whole][inner], values), whole, slices[sure], widths) > 0
    # Where no class has a shape, though all of them together do, there is no saying which: it was never set.
    best[~inside] = 0
    for place in np.flatnonzero(np.isin(slices, known)):
        here = planes[slices[place]]
        filled[place] = np.where(here > 0, here, filled[place])
    return slices, filled


def _field(
    shown: NDArray[np.bool_], known: NDArray[np.int64], slices: NDArray[np.int64], widths: Sequence[float]
) -> NDArray[np.float32]:
    """Return the signed distance on the slices asked for: that of the structure which reaches farthest.

    Parameters
    ----------
    shown : (k, h, w) bool array
        One class on the given slices.
    known : (k,) array
        Their indices.
    slices : (n,) array
        Indices between the first and the last of them.
    """
    field = np.full((len(slices), *shown.shape[1:]), _NOWHERE, np.float32)
    for first, pieces in _structures(shown):
        low = known[max(0, first - 1)]
        high = known[min(len(known) - 1, first + len(pieces))]
        some = (slices > low) & (slices < high)
        if some.any():
            steps = known[max(0, first - 1) : first + len(pieces) + 1]
            carried = _carried(pieces, steps, first > 0, slices[some], widths)
            field[some] = np.maximum(field[some], carried)
    return field


def _structures(shown: NDArray[np.bool_]) -> list[tuple[int, list[_Plane]]]:
    """Return structures: where each begins, and its part of each given slice from there on.

    Pieces of neighbouring given slices belong to one structure where they overlap.
    """
    from scipy.ndimage import find_objects, label

    # In a slice corners connect; from slice to slice only what lies at the same place.
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = touching[:, 1, 1] = True
    connected, _ = label(shown, touching)
    return [
        (box[0].start, list(connected[box[0]] == number)) for number, box in enumerate(find_objects(connected), start=1)
    ]


def _carried(
    pieces: list[_Plane],
    steps: NDArray[np.int64],
    begins: bool,
    slices: NDArray[np.int64],
    widths: Sequence[float],
) -> NDArray[np.float32]:
    """Return the signed distance to one structure on some slices.

    Parameters
    ----------
    pieces : list of (h, w) bool arrays
        The structure on consecutive given slices, none of them empty.
    steps : array of int
        The indices of these, with those of the given slices without it before and after where there are any.
    begins : bool
        Whether there is one before.
    slices : array of int
        Where to interpolate, inside ``steps``.
    """
    from scipy.interpolate import PchipInterpolator

    own = steps[int(begins) :][: len(pieces)]
    places = _places(pieces)
    # All are moved to where the first one lies; room around them, so that none is moved out of the plane.
    room = [(int(most), int(most)) for most in np.ceil(np.abs(places).max(axis=0))]
    padded = [np.pad(piece, room) for piece in pieces]
    fields = [_moved(_signed(piece, widths), -place) for piece, place in zip(padded, places, strict=True)]
    if begins:
        fields.insert(0, _gone(fields[0]))
    if len(steps) > len(fields):
        fields.append(_gone(fields[-1]))
    if len(steps) == 1:
        return np.full((len(slices), *pieces[0].shape), _NOWHERE, np.float32)
    found = PchipInterpolator(steps, np.stack(fields), axis=0)(slices)
    if not places.any():
        return found
    where = PchipInterpolator(own, places, axis=0)(np.clip(slices, own[0], own[-1]))
    back = tuple(slice(before, -before or None) for before, _ in room)
    return np.stack([_moved(field, place)[back] for field, place in zip(found, where, strict=True)])


def _signed(piece: _Plane, widths: Sequence[float]) -> NDArray[np.float32]:
    """Return the distance to the border of a piece in mm, positive inside; the border runs between the voxels."""
    inside, outside = distance_inside(piece, widths), distance_inside(~piece, widths)
    # A structure that fills the plane has no border there: any distance does that is the same for all slices.
    far = float(np.hypot(*(n * width for n, width in zip(piece.shape, widths, strict=True))))
    half = min(widths) / 2
    signed = np.where(piece, np.minimum(inside, far) - half, half - np.minimum(outside, far))
    return signed.astype(np.float32)


def _gone(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what stands for a slice that the structure has not reached: half-way there, nothing is left."""
    return field - 2 * field.max()


def _places(pieces: list[_Plane]) -> NDArray[np.float64]:
    """Return how far each piece lies from the first one, by their centroids, in voxels along both axes.

    Neighbours count as moved only where moving them onto each other makes them overlap better.
    """
    middles = [np.argwhere(piece).mean(axis=0) for piece in pieces]
    places = np.zeros((len(pieces), 2))
    for i in range(1, len(pieces)):
        step = middles[i] - middles[i - 1]
        before, after = (
            _overlap(pieces[i - 1], pieces[i]),
            _overlap(pieces[i - 1], pieces[i], np.rint(step).astype(int)),
        )
        places[i] = places[i - 1] + (step if after > before else 0)
    return places


def _overlap(one: _Plane, other: _Plane, step: Sequence[int] | NDArray[np.int64] = (0, 0)) -> int:
    """Return how many voxels two pieces share once the first one has been moved."""
    to = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(step, one.shape, strict=True))
    origin = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, one.shape, strict=True))
    return int(np.count_nonzero(one[origin] & other[to]))


def _moved(field: NDArray[np.float32], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a field moved by so many voxels along both axes; it goes on at its edge."""
    from scipy.ndimage import shift

    return shift(field, step, order=1, mode="nearest") if step.any() else field
