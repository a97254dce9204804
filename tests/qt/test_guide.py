"""The first steps: there at the first run, ticked off by what is done, put away for good."""

from __future__ import annotations

import pytest
from qtpy.QtCore import Qt

from napari_unet.qt.panels.guide import Guide
from napari_unet.session.preferences import Preferences
from tests.qt.conftest import Desk
from tests.qt.test_verdict import say

pytestmark = pytest.mark.gui


@pytest.fixture(autouse=True)
def first_run():
    """Nothing was put away yet, nor is it afterwards."""
    before = Preferences.read()
    before.model_copy(update={"guide_hidden": False}).keep()
    yield
    Preferences.read().model_copy(update={"guide_hidden": before.guide_hidden}).keep()


def test_the_first_steps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = desk.widget.guide
    assert guide.isVisible()
    assert guide.done == [False] * 5
    desk.push(guide.sample)
    desk.settle()
    state = desk.session.active
    assert state.scan.modality == "CT"
    assert [each.name for each in desk.session.schema.classes] == ["liver", "kidneys", "spleen", "aorta"]
    assert guide.done == [True, False, False, False, False]
    assert not guide.sample.isVisible()
    index = desk.widget.on_screen.slice_of(state)
    desk.drag((index, 50, 40), (index, 50, 60))
    assert guide.done == [True, True, False, False, False]
    desk.drag((index, 60, 40), (index, 60, 60))
    assert guide.done == [True, True, True, False, False]
    desk.key(Qt.Key.Key_Return)
    assert state.annotation.accepted[index]
    assert guide.done == [True, True, True, True, False]
    # What the fifth waits for is the new model.
    say(desk, (None, 0.5))
    assert all(guide.done)
    assert guide._end.isVisible()
    desk.push(guide.put_away)
    assert not guide.isVisible()
    assert Preferences.read().guide_hidden
    other = Guide(desk.session, desk.widget._guard)
    desk.spin()
    assert not other.isVisible()
    other.deleteLater()
    desk.widget.project.menu.aboutToShow.emit()
    (again,) = [each for each in desk.widget.project.menu.actions() if each.text() == "Show the guide"]
    again.trigger()
    assert guide.isVisible()
    assert not Preferences.read().guide_hidden
    assert guide.done == [True, False, False, False, False]
