"""The three orthogonal planes of a volume: what they are called, which way up they are read, and what lies where.

A body is read from the feet and from the front, as radiologists do: the patient's right on the left of the screen, and
the head up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from napari_unet.domain.geometry import Geometry, orientation_codes

_NAMES = {"S": "Axial", "I": "Axial", "P": "Coronal", "A": "Coronal", "L": "Sagittal", "R": "Sagittal"}
_OPPOSITE = dict(zip("SIPALR", "ISAPRL", strict=True))
# Head and foot, as on the screens of scanners and workstations.
_LETTERS = {"S": "H", "I": "F"}


@dataclass(frozen=True)
class Plane:
    """The planes across one axis of a volume ``[z, y, x]``, as they are drawn.

    Parameters
    ----------
    axis : int
        The axis across the plane: 0, 1 or 2.
    """

    axis: int

    @property
    def rows(self) -> int:
        """Axis of the volume that runs down the screen, or up where the plane is upright."""
        return 1 if self.axis == 0 else 0

    @property
    def columns(self) -> int:
        """Axis of the volume that runs to the right of the screen."""
        return 1 if self.axis == 2 else 2

    @property
    def is_upright(self) -> bool:
        """Whether rows run up the screen: z rises towards the head."""
        return self.rows == 0

    def cut(self, volume: NDArray, index: int) -> NDArray:
        """Return a view of one plane as it is drawn, the top row first; a trailing axis of colours stays.

        Parameters
        ----------
        volume : array ``[z, y, x]`` or ``[z, y, x, c]``
        index : int
            Along :attr:`axis`.
        """
        plane = volume[(slice(None),) * self.axis + (index,)]
        return plane[::-1] if self.is_upright else plane

    def place(self, point: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
        """Return where a voxel lies in the drawn plane, as ``(row, column)`` from the top left, in voxels.

        Parameters
        ----------
        point : sequence of float
            Indices of the volume; whole ones are voxel centres.
        shape : sequence of int
            Of the volume.
        """
        row = point[self.rows]
        return (shape[self.rows] - 1 - row if self.is_upright else row), point[self.columns]

    def indices(self, row: float, column: float, shape: Sequence[int]) -> dict[int, int]:
        """Return the voxel at a place in the drawn plane, as index by axis; outside it is the nearest one."""
        found = {self.rows: shape[self.rows] - 1 - row if self.is_upright else row, self.columns: column}
        return {axis: min(shape[axis] - 1, max(0, round(value))) for axis, value in found.items()}

    def name(self, geometry: Geometry) -> str:
        """Return ``Axial``, ``Coronal`` or ``Sagittal``; the axis, where it is not known how the patient lay."""
        if geometry.affine is None:
            return f"Across {'zyx'[self.axis]}"
        return _NAMES[orientation_codes(geometry.affine)[self.axis]]

    def borders(self, geometry: Geometry) -> dict[str, str]:
        """Return the letter (R, L, A, P, H, F) at each border: ``left``, ``right``, ``top``, ``bottom``.

        Empty where it is not known how the patient lay: a wrong side is worse than none.
        """
        if geometry.affine is None:
            return {}
        codes = orientation_codes(geometry.affine)
        right, down = codes[self.columns], codes[self.rows]
        if self.is_upright:
            down = _OPPOSITE[down]
        ends = {"left": _OPPOSITE[right], "right": right, "top": _OPPOSITE[down], "bottom": down}
        return {border: _LETTERS.get(code, code) for border, code in ends.items()}
