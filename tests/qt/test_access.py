"""Everybody can use the window: names for screen readers, tips, the Tab key, contrast, larger letters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from napari.settings import get_settings
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QRadioButton,
    QTabBar,
    QTableWidget,
    QWidget,
)

from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

_CONTROLS = (QAbstractButton, QComboBox, QAbstractSpinBox, QLineEdit, QAbstractItemView)
#: WCAG 2.2, success criterion 1.4.3.
_CONTRAST = 4.5
_SCREEN = (1366, 768)


def controls(top: QWidget) -> Iterator[QWidget]:
    """What can be used in a window, without the parts that Qt puts into its own controls."""
    for each in top.findChildren(QWidget):
        inner = isinstance(each.parent(), (QAbstractSpinBox, QComboBox, QTabBar)) or each.objectName().startswith("qt_")
        in_list = any(isinstance(up, QAbstractItemView) for up in ancestors(each))
        if isinstance(each, _CONTROLS) and each.window() is top.window() and not inner and not in_list:
            yield each


def ancestors(widget: QWidget) -> Iterator[QWidget]:
    """Yield what a widget is in."""
    while (widget := widget.parent()) is not None:
        yield widget


def called(widget: QWidget) -> str:
    """How a complaint names a widget."""
    text = widget.text() if isinstance(widget, (QAbstractButton, QLabel)) else ""
    return f"{widget.window().windowTitle()}: {type(widget).__name__} {widget.accessibleName() or text!r}"


def nameless(top: QWidget) -> list[str]:
    """What has no name, or no tip."""
    found = []
    for each in controls(top):
        if not (each.accessibleName() or (isinstance(each, QAbstractButton) and each.text())):
            found.append(f"no name: {called(each)}")
        if not each.toolTip():
            found.append(f"no tip: {called(each)}")
    return found


def out_of_reach(top: QWidget, start: QWidget) -> list[str]:
    """What the Tab key does not come to; of radio buttons one is enough, since arrows go on to the others."""
    # Without a window manager nothing else makes a window the active one.
    QApplication.setActiveWindow(top.window())
    start.setFocus(Qt.FocusReason.TabFocusReason)
    met: set[QWidget] = {start}
    for _ in range(200):
        QTest.keyClick(QApplication.focusWidget() or top, Qt.Key.Key_Tab)
        QApplication.processEvents()
        met.add(QApplication.focusWidget())
        if QApplication.focusWidget() is start:
            break
    return [
        f"out of reach: {called(each)}"
        for each in controls(top)
        if each.isVisible() and each.isEnabled() and each not in met and not isinstance(each, QRadioButton)
    ]


def needed(widget: QWidget) -> int:
    """How wide a text is, on its widest line."""
    metrics = widget.fontMetrics()
    if isinstance(widget, QAbstractSpinBox):
        return metrics.horizontalAdvance(widget.text())
    if isinstance(widget, QComboBox):
        return metrics.horizontalAdvance(widget.currentText())
    return max(metrics.horizontalAdvance(text) for text in widget.text().replace("&", "").split("\n"))


def room(widget: QWidget) -> int:
    """How much room there is for it."""
    if isinstance(widget, QAbstractSpinBox):
        return widget.lineEdit().width()
    taken = 18 if isinstance(widget, (QCheckBox, QRadioButton)) else 30 if isinstance(widget, QComboBox) else -2
    if isinstance(widget, QAbstractButton) and not widget.icon().isNull():
        taken += widget.iconSize().width()
    return widget.width() - taken


def cut_off(top: QWidget) -> list[str]:
    """Texts that are wider, or higher, than where they stand; what is outside of the window."""
    found = []
    kinds = (QAbstractButton, QAbstractSpinBox, QComboBox, QLabel)
    for each in itertools.chain.from_iterable(top.findChildren(kind) for kind in kinds):
        if not each.isVisible() or each.window() is not top.window() or each.objectName().startswith("qt_"):
            continue
        if isinstance(each, QLabel):
            if type(each) is not QLabel or not each.text():
                continue  # that one cuts its text on purpose, and has it in its tip
            high = each.heightForWidth(each.width()) if each.wordWrap() else each.fontMetrics().height()
            wide = 0 if each.wordWrap() else needed(each)
            if high > each.height() + 1 or wide > each.width():
                found.append(f"cut off: {called(each)} needs {wide} x {high}, has {each.width()} x {each.height()}")
        elif needed(each) and (needed(each) > room(each) or each.fontMetrics().height() > each.height() + 1):
            found.append(f"cut off: {called(each)} needs {needed(each)}, has {room(each)} x {each.height()}")
        frame = each.mapTo(top.window(), each.rect().bottomRight()).x()
        if frame > top.window().width():
            found.append(f"outside: {called(each)}")
    for table in top.findChildren(QTableWidget):
        header, counts = table.horizontalHeader(), table.isVisible() and table.window() is top.window()
        for column in range(table.columnCount() if counts else 0):
            text = table.horizontalHeaderItem(column).text()
            if header.fontMetrics().horizontalAdvance(text) > header.sectionSize(column):
                found.append(f"cut off: {called(table)}: {text}")
    return found


def faint(top: QWidget) -> list[str]:
    """Texts whose contrast, as drawn, is too little; what cannot be used now may be pale."""
    picture = top.window().grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    ratio = picture.devicePixelRatio()
    bits = picture.constBits()
    bits.setsize(picture.sizeInBytes())
    drawn = np.frombuffer(bits, np.uint8).reshape(picture.height(), picture.width(), 4)[..., 2::-1].astype(float)
    found = []
    for each in itertools.chain(top.findChildren(QLabel), top.findChildren(QAbstractButton)):
        shown = each.visibleRegion().boundingRect()
        if (
            not each.isVisible()
            or not each.isEnabled()
            or not each.text()
            or each.window() is not top.window()
            or shown.height() < each.fontMetrics().height()
        ):
            continue
        corner = each.mapTo(top.window(), shown.topLeft())
        left, up = round(corner.x() * ratio), round(corner.y() * ratio)
        part = drawn[up : up + round(shown.height() * ratio), left : left + round(shown.width() * ratio)]
        light = luminance(part[2:-2, 2:-2])
        if not light.size:
            continue
        values, counts = np.unique(light.round(4), return_counts=True)
        ground = values[counts.argmax()]
        contrast = max((light.max() + 0.05) / (ground + 0.05), (ground + 0.05) / (light.min() + 0.05))
        if contrast < _CONTRAST:
            found.append(f"faint, {contrast:.1f}: {called(each)}")
    return found


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance, WCAG 2.2."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.fixture
def looks() -> Iterator[None]:
    """Leave theme and letters as they were."""
    appearance = get_settings().appearance
    theme, size = appearance.theme, appearance.font_size
    yield
    appearance.theme, appearance.font_size = theme, size


def test_everything_has_a_name_can_be_reached_and_read(desk: Desk, looks: None) -> None:
    window, dock = desk.viewer.window._qt_window, desk.widget
    window.resize(_SCREEN[0], _SCREEN[1] - 28)
    desk.open(make_scan())
    dock.correct.rename_classes(["left hippocampus", "right hippocampus, of the other side", "vein"])
    dock.say("The model in use knows other classes: choose a new one in the Model list to start with these classes.")
    dock.project.open_models()
    dock.project.open_compare()
    dock.project.open_scans()
    dock.propose._choose_where()
    dock.improve.open_settings()
    for show in (
        dock.correct.open_clean_up,
        dock.correct.open_tools,
        dock.correct.open_earlier,
        dock.correct.open_classes,
    ):
        show()
    dock.open_keys()
    desk.settle()
    dialogs = [
        each
        for each in QApplication.topLevelWidgets()
        if each.isVisible() and each is not window and each.windowTitle()
    ]
    assert len(dialogs) >= 9
    tops = [dock, *dialogs]
    wrong = [complaint for top in tops for complaint in nameless(top)]
    wrong += out_of_reach(dock, dock.project.name)
    for dialog in dialogs:
        first = next(each for each in controls(dialog) if each.isVisible() and each.isEnabled())
        wrong += out_of_reach(dialog, first)
    appearance = get_settings().appearance
    usual = appearance.font_size
    for theme, size in (("dark", usual), ("light", usual), ("light", round(1.5 * usual))):
        appearance.theme, appearance.font_size = theme, size
        desk.qtbot.wait(150)
        for top in tops:
            wrong += [f"{theme} {size} pt: {complaint}" for complaint in (*cut_off(top), *faint(top))]
            # On a larger screen it may be larger; it must be possible to make it fit.
            least = top.window().minimumSizeHint()
            if least.width() > _SCREEN[0] or least.height() > _SCREEN[1]:
                wrong.append(f"{theme} {size} pt: larger than the screen: {called(top)} {least}")
    for dialog in dialogs:
        dialog.close()
    assert not wrong, "\n" + "\n".join(dict.fromkeys(wrong))
