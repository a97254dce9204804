"""Left stays left: on the slice, as radiologists read it, and in napari's view in three dimensions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

_SIDE = 40


def asymmetric() -> Scan:
    """Return a body of grey with a bright ball at the patient's head, back and left, each nearer than the next."""
    shape = (_SIDE, _SIDE, _SIDE)
    grid = np.indices(shape)
    data = np.zeros(shape, np.float32)
    centre = np.array([30, 20, 32]).reshape(3, 1, 1, 1)
    data[((grid - centre) ** 2).sum(axis=0) < 30] = 100
    affine = np.zeros((4, 4))
    affine[[0, 1, 2], [2, 1, 0]] = 2
    affine[3, 3] = 1
    return replace(make_scan(shape), data=data, geometry=Geometry((2.0, 2.0, 2.0), affine))


def bright(desk: Desk) -> tuple[float, float]:
    """Return how far right and how far up the ball is on the canvas, from -1 to 1."""
    desk.settle()
    picture = desk.viewer.screenshot(canvas_only=True, flash=False)[..., 0]
    rows, columns = np.nonzero(picture > 128)
    height, width = picture.shape
    return float(2 * columns.mean() / width - 1), float(1 - 2 * rows.mean() / height)


def test_the_slice_is_read_from_the_feet(desk: Desk) -> None:
    desk.open(asymmetric())
    desk.viewer.dims.set_current_step(0, 30)
    right, _ = bright(desk)
    assert right > 0.1, "the patient's left is on the right of the screen"


@pytest.mark.parametrize("axis", [1, 2], ids=["coronal", "sagittal"])
def test_the_head_is_up_on_upright_slices(desk: Desk, axis: int) -> None:
    desk.open(replace(asymmetric(), slice_axis=axis))
    desk.viewer.dims.set_current_step(axis, (30, 20, 32)[axis])
    right, up = bright(desk)
    assert up > 0.1
    if axis == 1:
        assert right > 0.1, "the patient's left is on the right of the screen"


@pytest.mark.parametrize(
    ("towards", "up", "left_is_right"),
    [((0, 1, 0), (1, 0, 0), True), ((0, -1, 0), (1, 0, 0), False), ((1, 0, 0), (0, -1, 0), True)],
    ids=["from the front", "from the back", "from the feet"],
)
def test_three_dimensions_do_not_mirror(
    desk: Desk, towards: tuple[int, ...], up: tuple[int, ...], left_is_right: bool
) -> None:
    desk.open(asymmetric())
    desk.viewer.dims.ndisplay = 3
    desk.viewer.camera.set_view_direction(towards, up)
    right, above = bright(desk)
    assert (right > 0.05) == left_is_right
    assert abs(right) > 0.05
    if up == (1, 0, 0):
        assert above > 0.05, "the head is up"
