"""What the mouse paints is what the session holds, and every step can be taken back."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

CTRL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


def test_a_stroke_lands_where_the_mouse_was(desk: Desk) -> None:
    desk.open(make_scan())
    annotation = desk.session.active.annotation
    desk.layer.brush_size = 1
    desk.drag((3, 10, 12), (3, 10, 20))
    expected = np.zeros(annotation.labels.shape, bool)
    expected[3, 10, 12:21] = True
    np.testing.assert_array_equal(annotation.labels == 1, expected)
    np.testing.assert_array_equal(annotation.painted, expected)
    np.testing.assert_array_equal(desk.layer.data, annotation.labels)
    desk.key(Qt.Key.Key_Z, CTRL)
    assert not annotation.labels.any()
    assert not annotation.painted.any()
    assert not desk.layer.data.any()
    desk.key(Qt.Key.Key_Z, CTRL | SHIFT)
    np.testing.assert_array_equal(annotation.labels == 1, expected)
    np.testing.assert_array_equal(desk.layer.data, annotation.labels)
