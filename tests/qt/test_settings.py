"""The form of settings with mouse and keys: read the plan, change it, take it back, and train with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QWidget

from napari_unet.domain.settings import ModelSettings
from napari_unet.qt.setting_row import SettingRow
from napari_unet.qt.settings_form import SettingsForm
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

NOISE, RATE, STEPS, CHANNELS = (
    *("augmentation.noise", "training.learning_rate"),
    *("training.steps", "network.base_channels"),
)


def open_form(desk: Desk) -> SettingsForm:
    """Press the button and wait for the form."""
    desk.push(desk.widget.improve.settings)
    form = desk.widget.improve.form
    assert form is not None
    desk.until(lambda: form.isActiveWindow() and not form._to_come)
    return form


def click(desk: Desk, widget: QWidget, where: QPoint | None = None) -> None:
    """Click into a widget, at a place of it or in the middle."""
    QTest.mouseClick(widget, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, where or widget.rect().center())
    desk.spin()


def go_to(desk: Desk, form: SettingsForm, key: str) -> SettingRow:
    """Click on the tab of a setting, and scroll to it."""
    tabs = [form.tabs.tabText(i).lower() for i in range(form.tabs.count())]
    bar = form.tabs.tabBar()
    click(desk, bar, bar.tabRect(tabs.index(key.partition(".")[0])).center())
    row = form.rows[key]
    form.tabs.currentWidget().ensureWidgetVisible(row.editor)
    desk.settle()
    assert not row.editor.visibleRegion().isEmpty()
    return row


def write(desk: Desk, row: SettingRow, text: str) -> None:
    """Click into a field, write over what it holds, press Enter."""
    click(desk, row.editor)
    QTest.keyClick(row.editor, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    QTest.keyClicks(row.editor, text)
    QTest.keyClick(row.editor, Qt.Key.Key_Return)
    desk.settle()


def shown(form: SettingsForm, planned: ModelSettings) -> dict[str, tuple[Any, Any]]:
    """Return the settings whose rows hold something else than planned."""
    found = {}
    for key, row in form.rows.items():
        group, _, leaf = key.partition(".")
        held, wanted = row.read(), getattr(getattr(planned, group), leaf)
        if planned.with_values({key: held}) != planned:
            found[key] = (held, wanted)
    return found


def test_what_is_changed_by_hand_is_bold_and_trained_with(desk: Desk) -> None:
    scan = make_scan((6, 48, 48))
    desk.open(scan)
    session = desk.session
    session.record_edit(session.active, (scan.data > 50).astype(np.uint8), slice(None))
    session.accept_slices(session.active, range(4))
    planned = session.planning.settings()
    form = open_form(desk)
    desk.until(lambda: form.tabs.isEnabled())
    assert "6 x 48 x 48 voxels" in form.words.text()
    assert shown(form, planned) == {}
    assert not any(row.name.font().bold() for row in form.rows.values())

    row = go_to(desk, form, RATE)
    write(desk, row, "5")
    assert "training.learning_rate cannot be 5" in row.message.text()
    assert row.message.isVisible()
    assert session.planning.settings() == planned, "what is wrong never gets there"
    click(desk, row.reset)
    assert not row.message.isVisible()
    assert float(row.editor.text()) == planned.training.learning_rate

    write(desk, go_to(desk, form, NOISE), "0.3")
    write(desk, go_to(desk, form, STEPS), "3")
    write(desk, go_to(desk, form, CHANNELS), "8")
    assert session.planning.overrides == {NOISE: 0.3, STEPS: 3, CHANNELS: 8}
    assert {key for key, row in form.rows.items() if row.name.font().bold()} == {NOISE, STEPS, CHANNELS}
    assert "3 by hand" in desk.widget.improve.settings.text()
    assert "network.base_channels</a> = 8" in form.words.text()

    desk.push(desk.widget.improve.button)
    desk.until(lambda: session.learning.verdict is not None, 120)
    made = session.learning.verdict.checkpoint.card.settings
    assert (made.augmentation.noise, made.training.steps, made.network.base_channels) == (0.3, 3, 8)
    assert made.training.learning_rate == planned.training.learning_rate

    desk.push(desk.widget.improve.use)
    desk.settle()
    assert not form.rows[CHANNELS].editor.isEnabled()
    assert form.rows[CHANNELS].editor.value() == 8
    go_to(desk, form, CHANNELS)
    assert "choose a new model to change it" in form._notes["network"].text()
    assert form.rows[NOISE].editor.isEnabled()
    click(desk, form.back)
    desk.settle()
    assert session.planning.overrides == {}
    assert shown(form, session.planning.settings()) == {}
    QTest.keyClick(form, Qt.Key.Key_Escape)
    assert not form.isVisible()


def test_the_form_follows_the_window_and_the_window_the_form(desk: Desk) -> None:
    form = open_form(desk)
    desk.until(lambda: form.trouble.isVisible())
    assert "No scan is open" in form.trouble.text()
    assert not form.tabs.isEnabled()
    desk.open(make_scan())
    desk.until(lambda: form.tabs.isEnabled())
    assert not form.trouble.isVisible()

    # A setting that the words name is one click away.
    form.words.linkActivated.emit(RATE)
    desk.settle()
    assert form.rows[RATE].editor.hasFocus()
    assert not form.rows[RATE].editor.visibleRegion().isEmpty()

    # The time stands beside the button, and nowhere else.
    assert not form.rows["training.budget_seconds"].editor.isEnabled()
    desk.widget.improve.seconds.value = 25
    desk.settle()
    assert form.rows["training.budget_seconds"].editor.text() == "25"
    form.preset.setFocus()
    while form.preset.currentText() != "thorough":
        QTest.keyClick(form.preset, Qt.Key.Key_Down)
    desk.settle()
    assert desk.session.planning.settings().preset == "thorough"
    assert desk.widget.improve.seconds.value == desk.session.planning.budget_seconds > 25

    # A wheel over a field scrolls the form and changes nothing.
    row = go_to(desk, form, "training.batch_size")
    form.preset.setFocus()
    wheel(row.editor)
    desk.spin()
    assert desk.session.planning.overrides == {}
    # Half a word is not taken away when the form looks again.
    row = go_to(desk, form, NOISE)
    click(desk, row.editor)
    QTest.keyClick(row.editor, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    QTest.keyClicks(row.editor, "0.")
    desk.session.planning.changed.emit()
    desk.settle()
    assert row.editor.text() == "0."
    desk.widget.shut_down()
    assert not form.isVisible()


def wheel(widget: QWidget) -> None:
    """Turn the wheel a notch over a widget."""
    from qtpy.QtCore import QPointF
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication

    middle = QPointF(widget.rect().center())
    event = QWheelEvent(
        middle,
        QPointF(widget.mapToGlobal(widget.rect().center())),
        QPoint(),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget, event)
