"""Going back to an earlier state of the labels, and forth again."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui


def test_any_earlier_state_comes_back_and_goes_again(desk: Desk) -> None:
    desk.open(make_scan((6, 40, 48)))
    middle = desk.session.visible_slice
    desk.layer.brush_size = 3
    desk.drag((middle, 10, 10), (middle, 10, 20))
    first = desk.layer.data.copy()
    desk.session.accept_slices(desk.session.active, [0])
    desk.drag((middle, 30, 10), (middle, 30, 30))
    second = desk.layer.data.copy()
    assert (first != second).any()
    desk.widget.correct.open_earlier()
    dialog = desk.widget.correct.earlier
    lines = [dialog.moments.item(row).text() for row in range(dialog.moments.count())]
    assert ["stroke" in line for line in lines] == [True, False, True, False]
    assert "accept" in lines[1]
    assert not dialog.restore.isEnabled()
    dialog.moments.setCurrentRow(2)
    desk.push(dialog.restore)
    np.testing.assert_array_equal(desk.layer.data, first)
    assert not desk.session.active.annotation.accepted.any()
    assert "gone back" in dialog.moments.item(0).text()
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(desk.layer.data, second)
    assert desk.session.active.annotation.accepted[0]


def test_without_a_scan_it_is_said(desk: Desk) -> None:
    buttons = desk.widget.correct.findChildren(type(desk.widget.correct.accept_scan))
    desk.push(next(button for button in buttons if "Earlier" in button.text()))
    assert desk.said == "No scan is open."
