"""The Live box, a brush, and the mask that follows it."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui


def test_with_live_on_the_mask_follows_the_brush(desk: Desk) -> None:
    scan = make_scan()
    desk.open(scan)
    annotation, box = desk.session.active.annotation, desk.widget.correct.live
    assert not box.isChecked()
    assert box.accessibleName() == "Live"
    assert box.toolTip()
    desk.push(box)
    assert desk.session.live.is_on
    desk.layer.brush_size = 3
    index = desk.session.visible_slice
    desk.drag((index, 18, 20), (index, 18, 26))
    # Painted, then rubbed out: only what changes is recorded as painted.
    desk.drag((index, 3, 4), (index, 3, 30))
    desk.layer.mode = "erase"
    desk.drag((index, 3, 4), (index, 3, 30))
    painted, by_hand = annotation.painted.copy(), annotation.labels.copy()
    desk.until(lambda: desk.session.active.history.next_undo.kind == "live", 90)
    np.testing.assert_array_equal(annotation.labels[painted], by_hand[painted])
    np.testing.assert_array_equal(annotation.painted, painted)
    bright = scan.data[index] > 50
    found = annotation.labels[index] == 1
    assert 2 * (found & bright).sum() > 0.8 * (found.sum() + bright.sum())
    assert not np.delete(annotation.labels, index, axis=0).any()
    np.testing.assert_array_equal(desk.layer.data, annotation.labels)
    desk.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(annotation.labels, by_hand)
    np.testing.assert_array_equal(desk.layer.data, annotation.labels)
