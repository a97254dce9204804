"""Where parallel slices stand: a regular grid, or a named fault that says where and how far.

Pure arithmetic on positions and orientations; no file is opened here. Slices are sorted by their position along the
normal of their plane (DICOM PS3.3 C.7.6.2.1.1), never by their number, and the step between them is measured, never
taken from SliceThickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: How far a slice may lie from its place on the regular grid: a share of the step, or what rounding of positions
#: to two decimals does, as long as that is little of the step.
_SHARE_OF_STEP, _ROUNDING_MM, _MOST_ROUNDING = 0.02, 0.02, 0.05
#: Slices closer than this share of the usual step stand at one place.
_ONE_PLACE = 0.01
#: A stack that leans by no more than this is upright; the affine holds its lean all the same.
_UPRIGHT_DEGREES = 0.1
_SIDEWAYS_PIXELS = 0.1


@dataclass(frozen=True)
class Fault:
    """Why slices form no regular grid.

    Parameters
    ----------
    kind : str
        ``missing``, ``uneven`` or ``tilted``.
    what : str
        What and where, in mm, as a clause without a full stop.
    """

    kind: str
    what: str

    @property
    def can_resample(self) -> bool:
        """Whether interpolating mends it; across a missing slice it would invent one."""
        return self.kind != "missing"


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in order.

    Parameters
    ----------
    order : (n,) int array
        Sorts the slices along the normal.
    heights : (n,) array
        Along the normal, in mm, sorted, the first 0.
    offsets : (n, 2) array
        How far, in pixels, the corner of each slice is moved down its rows and along its columns, compared with the
        first.
    affine : (4, 4) array
        From ``[slice, row, column, 1]`` to LPS mm. Exact for a regular grid; with a fault, the slices are taken to
        be the usual step apart, along the normal.
    pixel : (between rows, between columns)
        In mm.
    fault : Fault or None
    """

    order: NDArray[np.int64]
    heights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    affine: NDArray[np.float64]
    pixel: tuple[float, float]
    fault: Fault | None

    @property
    def step(self) -> float:
        """Millimetres between slices, measured across them."""
        return float(self.affine[:3, 0] @ _normal(self.affine))


def _normal(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit vector of row direction x column direction, as the standard has it."""
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    return normal / np.linalg.norm(normal)


def plane_affine(
    position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Return the matrix from ``[slice, row, column, 1]`` of one plane to LPS mm; slices are 1 mm apart in it."""
    affine = np.eye(4)
    affine[:3, 1] = np.array(orientation[3:]) * spacing[0]
    affine[:3, 2] = np.array(orientation[:3]) * spacing[1]
    affine[:3, 0] = _normal(affine)
    affine[:3, 3] = position
    return affine


def places(positions: NDArray[np.float64], orientation: Sequence[float]) -> list[list[int]]:
    """Return which slices stand at one place, sorted along the normal; two different places are further apart than a
    hundredth of the usual distance.

    Parameters
    ----------
    positions : (n, 3) array
        LPS mm.
    orientation : six direction cosines
    """
    normal = plane_affine((0, 0, 0), orientation, (1, 1))[:3, 0]
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    apart = steps[steps > 1e-3]
    limit = max(1e-3, _ONE_PLACE * float(np.median(apart))) if apart.size else 1e-3
    groups: list[list[int]] = []
    for rank, index in enumerate(order):
        if rank == 0 or steps[rank - 1] > limit:
            groups.append([])
        groups[-1].append(int(index))
    return groups


def stack_of(
    positions: NDArray[np.float64], orientation: Sequence[float], spacing: Sequence[float], names: Sequence[str]
) -> Stack:
    """Sort slices and find out whether they form a regular grid.

    Parameters
    ----------
    positions : (n, 3) array
        Of the first voxel of each slice, LPS mm; n is 2 or more, and no two at one place.
    orientation : six direction cosines
        Along a row, then down a column.
    spacing : (between rows, between columns)
        In mm.
    names : sequence of str
        Of the slices, for messages.
    """
    plane = plane_affine((0, 0, 0), orientation, spacing)
    normal = plane[:3, 0]
    order = np.argsort(positions @ normal, kind="stable")
    sorted_positions = positions[order]
    relative = sorted_positions - sorted_positions[0]
    heights = relative @ normal
    offsets = (relative @ np.linalg.inv(plane[:3, :3]).T)[:, 1:]
    n = len(order)
    fault = _find_fault(heights, offsets, np.array(spacing), sorted_positions, [names[i] for i in order])
    affine = plane.copy()
    affine[:3, 3] = sorted_positions[0]
    if fault is None or fault.kind == "tilted":
        affine[:3, 0] = relative[-1] / (n - 1)
    else:
        affine[:3, 0] = normal * np.median(np.diff(heights))
    return Stack(order, heights, offsets, affine, (spacing[0], spacing[1]), fault)


def _find_fault(
    heights: NDArray[np.float64],
    offsets: NDArray[np.float64],
    pixel: NDArray[np.float64],
    positions: NDArray[np.float64],
    names: list[str],
) -> Fault | None:
    n = len(heights)
    steps = np.diff(heights)
    usual = float(np.median(steps))
    tolerance = max(_SHARE_OF_STEP * usual, min(_ROUNDING_MM, _MOST_ROUNDING * usual))
    even = np.linspace(0, heights[-1], n)
    if np.abs(heights - even).max() > tolerance:
        return _missing(steps, positions, names) or _uneven(steps, positions, names)
    # Sideways: the straight line from the first to the last corner, and what lies beside it.
    drift = offsets[-1] * pixel
    beside = np.abs(offsets - np.linspace(0, 1, n)[:, np.newaxis] * offsets[-1]).max(axis=1)
    if beside.max() > max(_SIDEWAYS_PIXELS, tolerance / pixel.min()):
        worst = int(beside.argmax())
        return Fault("uneven", f"slice {names[worst]} at {_place(positions, worst)} is shifted sideways")
    lean = float(np.degrees(np.arctan2(np.linalg.norm(drift), heights[-1])))
    if lean > _UPRIGHT_DEGREES and np.linalg.norm(drift) > tolerance:
        return Fault(
            "tilted",
            f"the stack leans by {lean:.1f} degrees (gantry tilt): its slices are shifted by up to "
            f"{np.linalg.norm(drift):.1f} mm against each other",
        )
    return None


def _missing(steps: NDArray[np.float64], positions: NDArray[np.float64], names: list[str]) -> Fault | None:
    base = float(steps.min())
    multiples = np.rint(steps / base)
    base = float((steps / multiples).mean())
    gaps = np.flatnonzero(multiples > 1)
    # Many steps, or several in a row, of twice the size are how the stack was planned.
    is_planned = len(gaps) * 2 > len(steps) or bool((np.diff(gaps, 2) == 0).any() and (np.diff(gaps) == 1).any())
    if np.abs(steps / base - multiples).max() > _MOST_ROUNDING or is_planned:
        return None
    n_missing = int((multiples[gaps] - 1).sum())
    first = int(gaps[0])
    where = _between(positions, names, first)
    more = f" and {len(gaps) - 1} more gap{'s' if len(gaps) > 2 else ''}" if len(gaps) > 1 else ""
    noun = "slice is" if n_missing == 1 else "slices are"
    return Fault(
        "missing",
        f"{n_missing} {noun} missing: a gap of {steps[first]:.4g} mm {where}{more}, where slices lie "
        f"{base:.4g} mm apart",
    )


def _uneven(steps: NDArray[np.float64], positions: NDArray[np.float64], names: list[str]) -> Fault:
    usual = float(np.median(steps))
    worst = int(np.abs(steps - usual).argmax())
    return Fault(
        "uneven",
        f"the spacing of the slices is uneven: {steps.min():.4g} to {steps.max():.4g} mm, oddest with "
        f"{steps[worst]:.4g} mm {_between(positions, names, worst)}",
    )


def _between(positions: NDArray[np.float64], names: list[str], index: int) -> str:
    places = f"{_place(positions, index)} and {_place(positions, index + 1)}"
    return f"between {places} ({names[index]}, {names[index + 1]})"


def _place(positions: NDArray[np.float64], index: int) -> str:
    """Return where a slice is, by the patient axis that the stack follows."""
    axis = int(np.abs(positions[-1] - positions[0]).argmax())
    return f"{'xyz'[axis]} = {positions[index, axis]:.4g} mm"
