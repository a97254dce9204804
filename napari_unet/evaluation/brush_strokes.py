"""A simulated hand with a round brush: what it paints on one plane, stroke by stroke, and what that costs.

It paints one plane until only slivers are wrong. Which planes, in which order, and whether to clear a proposal first
is the annotator's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# To find the next place to work at, or to press a button.
_SEARCH_SECONDS = 0.2
_PAINTING_SPEED = 400.0  # pixels per second
_TRAVELLING_SPEED = 800.0
# Brushes are napari's: all pixels within ``radius + 0.5`` of a pixel. Its slider ends at 40 pixels across.
_LARGEST_RADIUS = 20
# Up to here painting the way costs no more time than lifting the brush, travelling and putting it down.
_LONGEST_WAY = _SEARCH_SECONDS / (1 / _PAINTING_SPEED - 1 / _TRAVELLING_SPEED)
# Room around the plane, so that no brush ends outside the arrays.
_PAD = _LARGEST_RADIUS + _LARGEST_RADIUS // 2 + 1
# So far from what is to be painted the allowed region is looked at: twice a brush's width and a step.
_MARGIN = 2 * _PAD + 2
# How far from a changed pixel slivers may come and go.
_SLIVER_REACH = 4

_Place = tuple[int, int]


def find_slivers(labels: NDArray, truth: NDArray) -> NDArray[np.bool_]:
    """Find the wrong pixels that nobody would bother to correct.

    A sliver is one or two wrong pixels in a row or a column, or one in a diagonal, where the border between two labels
    lies a little beside the true one: on one side pixels rightly of the true label, on the other pixels rightly of the
    label that stands there, more of either than the sliver is wide. So gaps in thin structures, holes, specks and half
    the width of a vessel are no slivers.

    Parameters
    ----------
    labels, truth : (h, w) integer arrays

    Returns
    -------
    (h, w) bool array
        Pixels too near the edge to have such neighbours on both sides are never slivers.
    """
    found = np.zeros(labels.shape, bool)
    for thickness in (1, 2):
        _mark_slivers(labels, truth, found, thickness)
        _mark_slivers(labels.T, truth.T, found.T, thickness)
    _mark_slivers(labels, truth, found, 1, down=1)
    _mark_slivers(labels[:, ::-1], truth[:, ::-1], found[:, ::-1], 1, down=1)
    return found


def _mark_slivers(labels: NDArray, truth: NDArray, found: NDArray[np.bool_], thickness: int, down: int = 0) -> None:
    """Mark slivers along lines that go one pixel to the right and ``down`` pixels down."""
    height, width = labels.shape
    side = thickness + 1
    length = side + thickness + side
    h, w = height - down * (length - 1), width - length + 1
    if h < 1 or w < 1:
        return
    steps = [np.s_[down * k : down * k + h, k : k + w] for k in range(length)]
    right = labels == truth
    fits = np.ones((h, w), bool)
    for k, step in enumerate(steps):
        fits &= right[step] != (side <= k < side + thickness)
    if not fits.any():
        return
    # Whether a pixel has the label, or the truth, of the next on its line.
    here, onward = np.s_[: height - down, : width - 1], np.s_[down:, 1:]
    same_label, same_truth = labels[here] == labels[onward], truth[here] == truth[onward]
    # The true label first and the wrong one last, or the other way round.
    mirrored = fits.copy()
    for step, later in zip(steps, steps[side:-1], strict=False):
        fits &= same_truth[step] & same_label[later]
        mirrored &= same_label[step] & same_truth[later]
    fits |= mirrored
    for step in steps[side : side + thickness]:
        found[step] |= fits


@dataclass(frozen=True, eq=False)
class _Brush:
    """A brush and the short moves it can make.

    ``disc`` (d, d) bool; ``moves`` (m, 2) offsets of ``lengths`` (m,); ``ways`` (m, s, 2) the pixels passed;
    ``covers`` (m, e * e) float32, what each move is after within ``reach`` pixels of where it begins: less than it
    paints, so that neighbouring sweeps overlap and leave no gaps.
    """

    radius: int
    disc: NDArray[np.bool_]
    moves: NDArray[np.int64]
    lengths: NDArray[np.float64]
    ways: NDArray[np.int64]
    covers: NDArray[np.float32]
    reach: int


@cache
def _brush(radius: int) -> _Brush:
    span = np.arange(-radius, radius + 1)
    disc, inner = (span[:, None] ** 2 + span**2 <= (part * radius + 0.5) ** 2 for part in (1, 0.9))
    stride = max(1, radius // 2)
    angles = np.arange(16) * (np.pi / 8)
    moves = np.unique(np.rint(stride * np.stack([np.sin(angles), np.cos(angles)], axis=1)).astype(np.int64), axis=0)
    ways = np.stack([np.rint(moves * (i / stride)).astype(np.int64) for i in range(1, stride + 1)], axis=1)
    reach = radius + stride
    covers = np.zeros((len(moves), 2 * reach + 1, 2 * reach + 1), np.float32)
    for cover, way in zip(covers, ways, strict=True):
        for y, x in way + stride:
            cover[y : y + len(span), x : x + len(span)][inner] = 1
    return _Brush(radius, disc, moves, np.hypot(*moves.T), ways, covers.reshape(len(moves), -1), reach)


@dataclass(frozen=True, eq=False)
class Painted:
    """What a hand leaves on a plane and what it took; ``done`` if time sufficed until only slivers were wrong."""

    labels: NDArray
    strokes: int
    path: float
    seconds: float
    done: bool


class _TimeOver(Exception):
    """The next movement would take longer than there is time."""


def paint_plane(labels: NDArray, truth: NDArray, limit: float = math.inf, actions: int = 0) -> Painted:
    """Paint a plane, class by class, until only slivers are wrong.

    Each class, the background included, is painted with the largest brush that reaches something wrong and stays
    inside the true region of the class, then with one of half the radius for what is left, down to single pixels.
    A stroke goes on where most is painted per pixel of the way, and on to the nearest wrong place if the straight way
    there is free and not longer than lifting the brush is worth.

    Parameters
    ----------
    labels, truth : (h, w) integer arrays
        What stands there (not changed) and what should.
    limit : float
        Seconds after which the hand stops, in the middle of a stroke if need be.
    actions : int
        Buttons pressed before, each as long as a search.

    Returns
    -------
    Painted
        Painting at 400 pixels per second, and between two strokes 0.2 seconds and the way at 800; judging is not in it.
    """
    hand = _Hand(labels, truth, limit)
    try:
        hand.press_buttons(actions)
        hand.work()
        done = True
    except _TimeOver:
        done = False
    return Painted(hand.plane(), hand.strokes, hand.path, hand.seconds, done)


class _Hand:
    """The hand at work on one plane; counts strokes, path and seconds."""

    def __init__(self, labels: NDArray, truth: NDArray, limit: float) -> None:
        # The image is taken to go on as at its edge.
        self._labels = np.pad(labels, _PAD, mode="edge")
        self._truth = np.pad(truth, _PAD, mode="edge")
        self._inside = np.pad(np.ones(labels.shape, bool), _PAD)
        self._limit = limit
        self._pen: NDArray[np.int64] | None = None
        self.strokes, self.path, self.seconds = 0, 0.0, 0.0

    def plane(self) -> NDArray:
        """Return the labels as they stand."""
        return self._labels[_PAD:-_PAD, _PAD:-_PAD].copy()

    def press_buttons(self, n: int) -> None:
        """Do what counts as a stroke each, and takes as long as a search; raises _TimeOver."""
        self._spend(n * _SEARCH_SECONDS)
        self.strokes += n

    def work(self) -> None:
        """Paint until only slivers are wrong; raises _TimeOver."""
        while len(values := np.unique(self._truth[self._to_fix()])):
            for value in values:
                self._paint_class(value)

    def _to_fix(self) -> NDArray[np.bool_]:
        if not (self._labels != self._truth).any():
            return np.zeros(self._labels.shape, bool)
        self._labels = np.pad(self.plane(), _PAD, mode="edge")
        return self._inside & (self._labels != self._truth) & ~find_slivers(self._labels, self._truth)

    def _paint_class(self, value: int) -> None:
        fix = self._to_fix() & (self._truth == value)
        if not fix.any():
            return
        box, core = _box_around(fix, _MARGIN), np.zeros(fix.shape, bool)
        core[_box_around(fix, 0)] = True
        region = _Region(self._labels[box], self._truth[box], self._inside[box], value)
        corner = np.array([side.start for side in box])
        radius = region.largest_radius(fix[box])
        while True:
            # What is a sliver cannot be told at the edges of the box.
            work = _Work(region, _brush(radius), region.to_fix() & core[box])
            while work.is_left():
                self._stroke(work, corner)
            if radius == 0:
                return
            radius //= 2

    def _stroke(self, work: _Work, corner: NDArray[np.int64]) -> None:
        at = work.start(None if self._pen is None else self._pen - corner)
        pause = 0.0
        if self.strokes:
            way = 0.0 if self._pen is None else float(np.hypot(*(at + corner - self._pen)))
            pause = _SEARCH_SECONDS + way / _TRAVELLING_SPEED
        self._spend(pause)
        self.strokes += 1
        self._pen = at + corner
        work.paint(at[None])
        while (way_on := work.way_on(at)) is not None:
            length = float(np.hypot(*(way_on[-1] - at)))
            self._spend(length / _PAINTING_SPEED)
            self.path += length
            work.paint(way_on)
            at = way_on[-1]
            self._pen = at + corner

    def _spend(self, seconds: float) -> None:
        if self.seconds + seconds > self._limit:
            raise _TimeOver
        self.seconds += seconds


class _Region:
    """The surroundings of what one class misses: what stands there, and how large a brush fits where.

    Parameters
    ----------
    labels : (h, w) array
        Painted in place.
    truth : (h, w) array
    inside : (h, w) bool array
        Pixels of the image; the rest is room for the brush to hang over.
    value : int
        The class.
    """

    def __init__(self, labels: NDArray, truth: NDArray, inside: NDArray[np.bool_], value: int) -> None:
        self.labels, self.truth, self.inside, self.value = labels, truth, inside, value
        allowed = truth == value
        # Distance to the nearest pixel of another class; without any it is endless.
        self.room = np.full(truth.shape, np.inf) if allowed.all() else ndimage.distance_transform_edt(allowed)

    def to_fix(self) -> NDArray[np.bool_]:
        """Return where the class is missing, slivers left out."""
        missing = self.inside & (self.truth == self.value) & (self.labels != self.value)
        return missing & ~find_slivers(self.labels, self.truth)

    def largest_radius(self, fix: NDArray[np.bool_]) -> int:
        """Return the radius of the largest brush that reaches something to fix and stays inside the class."""
        radii = np.clip(np.ceil(self.room - 0.5) - 1, -1, _LARGEST_RADIUS)
        reaches = self.inside & (ndimage.distance_transform_edt(~fix) <= radii + 0.5)
        return int(radii[reaches].max())


class _Work:
    """What one brush has still to paint in a region, and where it may go: its centre stays at ``places``.

    That is all that it can reach of what was to fix when it was taken in hand, less what has become a sliver since.
    """

    def __init__(self, region: _Region, brush: _Brush, fix: NDArray[np.bool_]) -> None:
        self._region, self._brush = region, brush
        self._places = region.inside & (region.room > brush.radius + 0.5)
        away, self._nearest_place = ndimage.distance_transform_edt(~self._places, return_indices=True)
        self._todo = fix & (away <= brush.radius + 0.5)
        self._left = np.argwhere(self._todo)
        self._parts, n = ndimage.label(self._todo, np.ones((3, 3)))
        self._begun = np.zeros(n + 1, bool)
        self._last_move = np.zeros(2)
        self._changed: list[NDArray[np.int64]] = []

    def is_left(self) -> bool:
        """Return whether there is anything to do."""
        self._left = self._left[self._todo[self._left[:, 0], self._left[:, 1]]]
        return len(self._left) > 0

    def start(self, pen: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return where the next stroke begins.

        What the brush covers at once is dabbed at its middle; anything larger is begun at its far end, so that one
        stroke may do.
        """
        left = self._left
        first = left[0] if pen is None else left[_nearest(left, pen)]
        part = self._parts[tuple(first)]
        if self._begun[part]:
            return self._place_for(first)
        self._begun[part] = True
        own = left[self._parts[tuple(left.T)] == part]
        middle = own.mean(axis=0)
        place = self._place_for(np.rint(middle).astype(np.int64))
        if (np.hypot(*(own - place).T) <= self._brush.radius + 0.5).all():
            return place
        return self._place_for(own[np.hypot(*(own - middle).T).argmax()])

    def paint(self, way: NDArray[np.int64]) -> None:
        """Paint the discs around the pixels of a way."""
        radius, disc = self._brush.radius, self._brush.disc
        for y, x in way:
            window = slice(y - radius, y + radius + 1), slice(x - radius, x + radius + 1)
            self._region.labels[window][disc] = self._region.value
            self._todo[window][disc] = False
        self._changed.append(way)

    def way_on(self, at: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the pixels that the stroke passes next; None if it ends."""
        move, worth = self._best_move(at)
        # Only a few pixels: perhaps nothing but slivers by now.
        if self._changed and worth < (2 * self._brush.radius + 1) / 4:
            self._forget_slivers()
            move, worth = self._best_move(at)
        if worth > 0:
            self._last_move = self._brush.moves[move] / self._brush.lengths[move]
            return at + self._brush.ways[move]
        if not self.is_left():
            return None
        goal = self._place_for(self._left[_nearest(self._left, at)])
        steps = int(np.abs(goal - at).max())
        way = np.rint(at + np.outer(np.arange(1, steps + 1) / steps, goal - at)).astype(np.int64)
        self._last_move = np.zeros(2)
        free = np.hypot(*(goal - at)) <= _LONGEST_WAY and self._places[tuple(way.T)].all()
        return way if free else None

    def _best_move(self, at: NDArray[np.int64]) -> tuple[int, float]:
        """Return which short move paints most per pixel of its way, straight on if several do, and how much."""
        brush = self._brush
        (y, x), reach = at, brush.reach
        window = self._todo[y - reach : y + reach + 1, x - reach : x + reach + 1]
        if not window.any():
            return 0, 0.0
        worth = brush.covers @ window.ravel().astype(np.float32) / brush.lengths
        rows, columns = np.moveaxis(at + brush.ways, -1, 0)
        worth[~self._places[rows, columns].all(axis=1)] = 0
        straight = 1e-2 * (brush.moves @ self._last_move) / brush.lengths
        best = int(np.argmax(np.where(worth > 0, worth + straight, 0)))
        return best, float(worth[best])

    def _forget_slivers(self) -> None:
        """Take from the work to do what has become a sliver since the last call."""
        passed = np.concatenate(self._changed)
        self._changed = []
        low = np.maximum(passed.min(axis=0) - self._brush.radius - 2 * _SLIVER_REACH, 0)
        high = passed.max(axis=0) + self._brush.radius + 2 * _SLIVER_REACH + 1
        window = slice(low[0], high[0]), slice(low[1], high[1])
        if self._todo[window].any():
            self._todo[window] &= ~find_slivers(self._region.labels[window], self._region.truth[window])

    def _place_for(self, pixel: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._nearest_place[(slice(None), *pixel)].astype(np.int64)


def _nearest(places: NDArray[np.int64], to: NDArray[np.int64]) -> int:
    return int(((places - to) ** 2).sum(axis=1).argmin())


def _box_around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        slice(max(rows[0] - margin, 0), min(rows[-1] + margin + 1, height)),
        slice(max(columns[0] - margin, 0), min(columns[-1] + margin + 1, width)),
    )
