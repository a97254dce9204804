"""The verdict in the window: which button comes first, and the table behind it."""

from __future__ import annotations

import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.session.verdict import Verdict
from napari_unet.training.lesson import CaseVerdict
from tests.qt.conftest import Desk

pytestmark = pytest.mark.gui


def model(name: str) -> Checkpoint:
    """A model of which only the name counts."""
    return Checkpoint({}, ModelCard(name=name, settings=ModelSettings(), label_schema=LabelSchema.of("structure")))


def say(desk: Desk, *cases: tuple[float | None, float | None]) -> list[tuple[str, bool]]:
    """Let a verdict on v8 be spoken; return the buttons from left to right, and whether each is put forward."""
    made = tuple(CaseVerdict(str(i), before, after, i + 1) for i, (before, after) in enumerate(cases))
    names = {str(i): f"scan {i + 1}" for i in range(len(cases))}
    desk.session.learning.verdict = Verdict(model("v8"), made, names, "v7")
    desk.session.learning.verdict_changed.emit()
    desk.spin()
    panel = desk.widget.improve
    buttons = sorted((panel.use, panel.keep), key=lambda each: each.mapToGlobal(each.rect().topLeft()).x())
    for each in buttons:
        assert each.accessibleName() == each.text() + (" (recommended)" if each.font().bold() else "")
    return [(each.text(), each.font().bold()) for each in buttons]


def test_the_window_puts_forward_what_the_evidence_says(desk: Desk) -> None:
    panel = desk.widget.improve
    assert say(desk, (None, 0.5)) == [("Use v8", True), ("Do not use it", False)]
    desk.session.models.use(model("v7"))
    assert say(desk, (0.8, 0.9), (0.7, 0.9)) == [("Use v8", True), ("Keep v7", False)]
    assert say(desk, (0.8, 0.8)) == [("Use v8", False), ("Keep v7", False)]
    assert say(desk) == [("Use v8", False), ("Keep v7", False)]
    assert not panel.cases.isVisible(), "there is nothing to unfold"
    assert say(desk, (0.9, 0.5), (0.9, 0.89)) == [("Keep v7", True), ("Use v8", False)]
    assert "worse" in panel.verdict.text()
    assert "scan 1 (0.90 -> 0.50)" in panel.verdict.text()

    cases = panel.cases
    assert cases.unfold.isVisible()
    assert not cases.table.isVisible()
    cases.unfold.setFocus(Qt.FocusReason.TabFocusReason)
    QTest.keyClick(cases.unfold, Qt.Key.Key_Space)
    assert cases.table.isVisible()
    assert cases.table.accessibleName()
    rows = [[cases.table.item(row, column).text() for column in range(5)] for row in range(cases.table.rowCount())]
    assert rows == [["scan 1: worse", "0.900", "0.500", "-0.400", "1"], ["scan 2", "0.900", "0.890", "-0.010", "2"]]
    # From the button Tab leads into the table, and from there to what is recommended.
    reached = [cases.unfold]
    for _ in range(3):
        reached.append(reached[-1].nextInFocusChain())
        while reached[-1].focusPolicy() == Qt.FocusPolicy.NoFocus or not reached[-1].isVisible():
            reached[-1] = reached[-1].nextInFocusChain()
    assert reached[1:] == [cases.table, panel.keep, panel.use]
    desk.push(panel.keep)
    assert desk.session.learning.verdict is None
    assert not cases.isVisible()
