"""The way through a scan: next to check, before and after, the ribbon, the list of scans and marks."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_unet.domain.annotation import Correction, SparseChange
from tests.qt.conftest import make_scan
from tests.session.conftest import painted

pytestmark = pytest.mark.gui


def proposed(desk, state, where):
    """What a proposal leaves behind."""
    state.before_proposal = state.annotation.labels.copy()
    after = painted(state, where, 1)
    change = SparseChange.between(state.annotation.labels, after)
    desk.session._take(state, Correction("proposal", change, proposal="a" * 32))


def test_next_accept_next_with_the_keyboard_alone(desk):
    desk.open(make_scan((9, 40, 48)))
    state = desk.session.active
    proposed(desk, state, np.s_[2:7, 10:20, 10:20])
    seen = []
    for _ in range(5):
        desk.key(Qt.Key.Key_N)
        desk.spin()
        seen.append(desk.widget.on_screen.slice_of(state))
        desk.key(Qt.Key.Key_Return)
    assert sorted(seen) == [2, 3, 4, 5, 6]
    assert state.annotation.accepted[2:7].all()
    # The ribbon tells them apart by more than colour: accepted cells are higher.
    ribbon = desk.widget.correct.ribbon
    picture = ribbon.grab().toImage()
    column = lambda index: int((index + 0.4) * ribbon.width() / 9 * picture.devicePixelRatio())  # noqa: E731
    background = picture.pixelColor(1, 0)
    heights = [
        sum(picture.pixelColor(column(index), y) != background for y in range(picture.height())) for index in (3, 8)
    ]
    assert heights[0] > heights[1]


def test_before_and_after_blink(desk):
    desk.open(make_scan((5, 40, 48)))
    state, layer = desk.session.active, desk.layer
    desk.key(Qt.Key.Key_B)
    assert "no before and after" in desk.said
    proposed(desk, state, np.s_[1:4, 10:20, 10:20])
    desk.key(Qt.Key.Key_B)
    others = next(each for each in desk.viewer.layers if "other labels" in each.name)
    assert not layer.visible
    assert not others.data.any(), "as it was before"
    desk.key(Qt.Key.Key_B)
    assert layer.visible
    assert desk.session.comparison.differences().sum() == 300
    desk.session.comparison.end()
    desk.spin()
    assert layer.visible
    assert not [each for each in desk.viewer.layers if "other labels" in each.name]
    assert desk.viewer.layers.selection.active is layer


def test_the_list_of_scans(desk):
    for _ in range(2):
        desk.open(make_scan((5, 40, 48)))
    first, second = desk.session.scans
    proposed(desk, first, np.s_[1:4, 10:20, 10:20])
    desk.session.record_edit(first, painted(first, np.s_[1, 10:20, 10:20], 0), slice(None))
    desk.session.accept_slices(first)
    bar = desk.widget.project
    bar.open_scans()
    dialog = bar.scans
    dialog.difficulty.setCurrentIndex(3)
    dialog.comment.setText("moved")
    desk.push(dialog.mark)
    cell = lambda row, column: dialog.table.item(row, column).text()  # noqa: E731
    assert cell(0, 1) == "5 of 5"
    assert cell(0, 2) == f"{2 * 200 / 500:.3f}"
    assert cell(0, 3) == "33 %"
    assert cell(1, 5) == "hard: moved"
    assert desk.session.active is second
    dialog.table.selectRow(0)
    desk.push(dialog.show_scan)
    assert desk.session.active is first
    assert dialog.difficulty.currentIndex() == 0
    dialog.close()
