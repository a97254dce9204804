"""The tools that change more than a stroke: what each asks for, and what it makes of a scan's labels.

One class of settings for each, which feeds the dialog and the job that carries it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from napari_unet.domain.annotation import SparseChange
from napari_unet.domain.errors import SettingsError
from napari_unet.editing import borders, logic, pieces
from napari_unet.editing.between import fill_between
from napari_unet.editing.grow import grow_from_seeds
from napari_unet.editing.intensities import in_range
from napari_unet.editing.regions import OverwriteRule, Region, erased, merge, painted, replaced

_MM: dict[str, Any] = {"unit": "mm"}


class ToolSettings(BaseModel):
    """What a tool can be told; the docstring's first line says what the tool does."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FillBetween(ToolSettings):
    """Fill the slices between those that you have painted, for all classes."""


class GrowFromSeeds(ToolSettings):
    """Grow what you have painted, each class and the erased background, to where the grey values change."""

    margin_mm: float = Field(10, ge=0, le=200, title="As far as", json_schema_extra=_MM)


class Threshold(ToolSettings):
    """Give the class all voxels within a range of grey values."""

    low: float = Field(0, ge=-1e9, le=1e9, title="From")
    high: float = Field(100, ge=-1e9, le=1e9, title="To")


class Margin(ToolSettings):
    """Grow the class by a margin, or shrink it by a negative one."""

    by_mm: float = Field(1, ge=-100, le=100, title="By", json_schema_extra=_MM)


class Smooth(ToolSettings):
    """Smooth the border of the class."""

    by_mm: float = Field(1, ge=0, le=50, title="By", json_schema_extra=_MM)
    method: Literal["gaussian", "median"] = Field("gaussian", title="Method")


class FillHoles(ToolSettings):
    """Fill what the class encloses."""


class KeepLargest(ToolSettings):
    """Keep only the largest pieces of the class."""

    n: int = Field(1, ge=1, le=100, title="Pieces to keep")


class RemoveSmall(ToolSettings):
    """Remove the pieces of the class below a size."""

    smallest: float = Field(10, ge=0, le=1e9, title="Below", json_schema_extra={"unit": "mm\u00b3"})


class Split(ToolSettings):
    """Cut the class at its narrowest place, and give the smaller parts to another class."""

    parts: int = Field(2, ge=2, le=20, title="Parts")
    other: int = Field(2, ge=1, le=65535, title="Smaller parts become", json_schema_extra={"is_class": True})


class Combine(ToolSettings):
    """Combine the class with another one, or with what was there before the last proposal."""

    operation: Literal["union", "intersect", "subtract", "copy"] = Field("union", title="How")
    other: int = Field(2, ge=1, le=65535, title="With", json_schema_extra={"is_class": True})
    when: Literal["as it is", "before the proposal"] = Field("as it is", title="That class")


class CopySlice(ToolSettings):
    """Copy all labels of the neighbouring slice onto this one."""

    source: Literal["previous", "next"] = Field("previous", title="From the slice")


@dataclass(frozen=True, eq=False)
class Work:
    """What a tool works on.

    Parameters
    ----------
    image : array over the spatial axes
        Grey values.
    labels : integer array of the same shape
    painted : bool array of the same shape
        Voxels set by hand: the seeds of growing.
    accepted : (n,) int array
        Slices that are right as they stand.
    slice_axis : int or None
    spacing : tuple of float or None
        In mm per axis.
    value : int
        The class to work on.
    region : Region
        Nothing changes outside.
    earlier : integer array of the same shape, optional
        The labels before the last proposal.
    """

    image: NDArray
    labels: NDArray
    painted: NDArray[np.bool_]
    accepted: NDArray[np.int64]
    slice_axis: int | None
    spacing: tuple[float, ...] | None
    value: int
    region: Region
    earlier: NDArray | None = None

    @property
    def part(self) -> NDArray:
        """The region's labels."""
        return self.region.cut(self.labels)

    @property
    def own(self) -> NDArray[np.bool_]:
        """Where in the region the class is."""
        return self.part == self.value

    @property
    def thickness(self) -> float:
        """Of a region that is one slice: how thick that is in mm; 1 otherwise."""
        return self.region.thickness(self.spacing)

    @property
    def widths(self) -> tuple[float, ...] | None:
        """Spacing along the axes of :attr:`part`."""
        return self.region.spacing(self.spacing)


def carry_out(settings: ToolSettings, work: Work, rule: OverwriteRule, locked: tuple[int, ...]) -> SparseChange:
    """Return what a tool changes, as far as the overwrite rule and the locked classes allow.

    Raises
    ------
    SettingsError
        The tool cannot do what is asked: no slices to fill between, too few parts, ...
    """
    wanted, edited = _RUN[type(settings)](settings, work)
    return SparseChange.between(work.labels, merge(work.labels, wanted, work.region, rule, locked, edited))


_Made = tuple[NDArray, tuple[int, ...]]


def _as_class(work: Work, mask: NDArray[np.bool_]) -> _Made:
    return replaced(work.part, mask, work.value), (work.value,)


def _fill_between(settings: FillBetween, work: Work) -> _Made:
    if work.slice_axis is None:
        raise SettingsError("This scan is one slice: there is nothing between.")
    given, silent = _said(work, work.slice_axis)
    slices, planes = fill_between(work.labels, work.slice_axis, given, work.spacing, silent=silent)
    if not len(slices):
        raise SettingsError("Paint on two slices that do not touch, or accept them: then what is between is filled.")
    filled = work.labels.copy()
    target, hand = np.moveaxis(filled, work.slice_axis, 0), np.moveaxis(work.painted, work.slice_axis, 0)
    # What was drawn or erased by hand stays, on slices that are silent about a class too.
    target[slices] = np.where(hand[slices], target[slices], planes)
    return work.region.cut(filled), tuple(np.unique(planes[planes > 0]).tolist())


def _said(work: Work, axis: int) -> tuple[list[int], dict[int, list[int]]]:
    """Return the slices that are accepted or painted on, and by class those among them that say nothing of it.

    A stroke of one class says of another one that it is not there only where most of that one would be.
    """
    planes, painted_planes = np.moveaxis(work.labels, axis, 0), np.moveaxis(work.painted, axis, 0)
    on = np.flatnonzero(painted_planes.any(axis=(1, 2)))
    unsure = np.setdiff1d(on, work.accepted).tolist()
    silent: dict[int, list[int]] = {}
    for value in np.unique(planes[np.union1d(on, work.accepted)]):
        drawn = [at for at in unsure if np.any(painted_planes[at] & (planes[at] == value))]
        with_it = [at for at in work.accepted.tolist() if np.any(planes[at] == value)] + drawn
        for at in unsure if value and with_it else ():
            nearest = planes[min(with_it, key=lambda other: abs(other - at))] == value
            if at not in drawn and 2 * np.count_nonzero(painted_planes[at] & nearest) < np.count_nonzero(nearest):
                silent.setdefault(int(value), []).append(at)
    return np.union1d(on, work.accepted).tolist(), silent


def _grow(settings: GrowFromSeeds, work: Work) -> _Made:
    known = work.region.cut(work.painted)
    seeds = np.where(known, work.part, 0)
    if not seeds.any():
        raise SettingsError("Nothing is painted there: paint a little of each class, and erase a little outside.")
    grown = grow_from_seeds(
        work.region.cut(work.image), seeds, known & (work.part == 0), work.widths, settings.margin_mm
    )
    return np.where(grown > 0, grown, work.part), tuple(np.unique(seeds[seeds > 0]).tolist())


def _threshold(settings: Threshold, work: Work) -> _Made:
    if settings.low > settings.high:
        raise SettingsError("The range is empty: its lower end is above its upper one.")
    return painted(work.part, in_range(work.region.cut(work.image), settings.low, settings.high), work.value), ()


def _margin(settings: Margin, work: Work) -> _Made:
    moved = borders.margin(work.own, settings.by_mm, work.widths)
    if settings.by_mm >= 0:
        return painted(work.part, moved, work.value), ()
    return erased(work.part, ~moved, work.value), (work.value,)


def _smooth(settings: Smooth, work: Work) -> _Made:
    return _as_class(work, borders.smooth(work.own, settings.by_mm, work.widths, settings.method))


def _fill_holes(settings: FillHoles, work: Work) -> _Made:
    return painted(work.part, pieces.fill_holes(work.own), work.value), ()


def _keep_largest(settings: KeepLargest, work: Work) -> _Made:
    return _as_class(work, pieces.keep_largest(work.own, settings.n))


def _remove_small(settings: RemoveSmall, work: Work) -> _Made:
    # A piece of a plane is as thick as the plane.
    return _as_class(work, pieces.remove_small(work.own, settings.smallest / work.thickness, work.widths))


def _split(settings: Split, work: Work) -> _Made:
    if not work.own.any():
        raise SettingsError("There is nothing of that class there: choose another class, or a larger part of the scan.")
    parts = pieces.split_in(work.own, settings.parts, work.widths)
    return painted(work.part, parts > 1, settings.other), (work.value, settings.other)


def _combine(settings: Combine, work: Work) -> _Made:
    if settings.when == "before the proposal":
        if work.earlier is None:
            raise SettingsError("Nothing was proposed for this scan yet: there are no labels before it.")
        other = work.region.cut(work.earlier) == settings.other
        return logic.combine(work.part, work.value, other, settings.operation), (work.value, settings.other)
    if settings.other == work.value:
        raise SettingsError("A class is combined with another one: choose which.")
    if settings.operation in ("intersect", "subtract"):
        raise SettingsError(
            "Two classes share no voxel, so there is nothing to intersect or subtract: choose union or copy, or the "
            "class as it was before the proposal."
        )
    other = work.part == settings.other
    return logic.combine(work.part, work.value, other, settings.operation), (work.value, settings.other)


def _copy_slice(settings: CopySlice, work: Work) -> _Made:
    if work.slice_axis is None:
        raise SettingsError("This scan is one slice: it has no neighbour.")
    found = work.labels.copy()
    planes = np.moveaxis(found, work.slice_axis, 0)
    side = work.region.box[work.slice_axis]
    for target in range(side.start, side.stop):
        source = target + (-1 if settings.source == "previous" else 1)
        planes[target] = logic.copy_slice(work.labels, work.slice_axis, source, target)
    return work.region.cut(found), tuple(np.unique(work.labels[work.labels > 0]).tolist())


_RUN: dict[type[ToolSettings], Callable[[Any, Work], _Made]] = {
    FillBetween: _fill_between,
    GrowFromSeeds: _grow,
    Threshold: _threshold,
    Margin: _margin,
    Smooth: _smooth,
    FillHoles: _fill_holes,
    KeepLargest: _keep_largest,
    RemoveSmall: _remove_small,
    Split: _split,
    Combine: _combine,
    CopySlice: _copy_slice,
}
#: All tools by the names that people see.
TOOLS: dict[str, type[ToolSettings]] = {
    "Fill between slices": FillBetween,
    "Grow from seeds": GrowFromSeeds,
    "Threshold": Threshold,
    "Margin": Margin,
    "Smooth": Smooth,
    "Fill holes": FillHoles,
    "Keep largest": KeepLargest,
    "Remove small pieces": RemoveSmall,
    "Split": Split,
    "Combine classes": Combine,
    "Copy from neighbour": CopySlice,
}
