"""Planes of a volume are drawn as radiologists read them, and lead back to the voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.planes import Plane

#: Volumes stand in LPS: z to the head, y to the back, x to the left.
_LPS = np.array([[0.0, 0, 2, 0], [0, 3, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("axis", "name", "left", "right", "top", "bottom"),
    [(0, "Axial", *"RLAP"), (1, "Coronal", *"RLHF"), (2, "Sagittal", *"APHF")],
)
def test_the_letters_at_the_borders(axis: int, name: str, left: str, right: str, top: str, bottom: str) -> None:
    geometry = Geometry((5.0, 3.0, 2.0), _LPS)
    plane = Plane(axis)
    assert plane.name(geometry) == name
    assert plane.borders(geometry) == {"left": left, "right": right, "top": top, "bottom": bottom}
    # A little oblique, as scans are.
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(axis).normal(size=(3, 3)))[0]
    turned[:3, :3] *= np.sign(np.diag(turned))[:3]
    assert plane.borders(Geometry((5.0, 3.0, 2.0), turned @ _LPS)) == plane.borders(geometry)


def test_no_letters_where_it_is_not_known_how_the_patient_lay() -> None:
    assert Plane(1).borders(Geometry(None)) == {}
    assert Plane(1).name(Geometry((1.0, 1.0, 1.0))) == "Across y"


@given(
    axis=st.integers(0, 2),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    at=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
)
def test_what_is_drawn_at_a_place_is_the_voxel_there(axis: int, shape: tuple, at: tuple) -> None:
    volume = np.arange(np.prod(shape)).reshape(shape)
    point = tuple(int(share * n) for share, n in zip(at, shape, strict=True))
    plane = Plane(axis)
    drawn = plane.cut(volume, point[axis])
    row, column = plane.place(point, shape)
    assert drawn[int(row), int(column)] == volume[point]
    assert plane.indices(row + 0.3, column - 0.3, shape) == {i: point[i] for i in range(3) if i != axis}
    # The head is up: z falls from the top row on.
    if axis:
        assert (np.diff(drawn, axis=0) < 0).all()
