"""Small parts that several panels use."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import QGroupBox, QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget


class Panel(QGroupBox):
    """A titled box of the dock."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(8, 6, 8, 8)
        self.body.setSpacing(5)

    def row(self, *widgets: QWidget) -> QHBoxLayout:
        """Add widgets side by side."""
        layout = QHBoxLayout()
        layout.setSpacing(5)
        for widget in widgets:
            layout.addWidget(widget)
        self.body.addLayout(layout)
        return layout


def button(text: str, tip: str, action: Callable[[], None], shortcut: str = "") -> QPushButton:
    """Return a push button whose shortcut stands on it and whose accessible name is its text."""
    made = QPushButton(f"{text}   {shortcut}" if shortcut else text)
    made.setToolTip(tip)
    made.setAccessibleName(text)
    # A click leaves the keys with the canvas; Tab still comes here.
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    made.clicked.connect(lambda _=False: action())
    return made


def tool(text: str, tip: str, action: Callable[[], None], checkable: bool = False) -> QPushButton:
    """Return a small button; a checkable one shows whether its tool is in the hand."""
    made = button(text, tip, action)
    made.setCheckable(checkable)
    made.setMinimumWidth(0)
    return made


def line(text: str = "", accessible: str = "") -> QLabel:
    """Return a label that wraps and can be selected."""
    made = QLabel(text)
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    if accessible:
        made.setAccessibleName(accessible)
    return made


class OneLine(QLabel):
    """A label of one line, cut where there is no room; the whole stands in its tool tip."""

    def __init__(self, accessible: str) -> None:
        super().__init__()
        self.setAccessibleName(accessible)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)

    def setText(self, text: str) -> None:
        """Show a text."""
        super().setText(text)
        self.setToolTip(text)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw as much of the text as there is room for."""
        painter = QPainter(self)
        shown = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(self.rect(), int(Qt.AlignmentFlag.AlignVCenter), shown)
        painter.end()


def colour_icon(colour: tuple[float, float, float], side: int = 14) -> QIcon:
    """Return a square of a colour."""
    pixmap = QPixmap(side, side)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.fillRect(1, 1, side - 2, side - 2, QColor.fromRgbF(*colour))
    painter.end()
    return QIcon(pixmap)


def duration(seconds: float | None) -> str:
    """Return seconds as ``1:05 left``; empty where unknown."""
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} left" if whole >= 60 else f"{whole} s left"


class WorkBar(QWidget):
    """Progress, time left and a cancel; hidden while nothing runs."""

    def __init__(self, what: str, cancel: Callable[[], None]) -> None:
        super().__init__()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._bar = QProgressBar()
        self._bar.setFixedHeight(20)
        self._bar.setRange(0, 1000)
        self._bar.setAccessibleName(f"{what} progress")
        self.cancel = button("Stop", f"Stop {what}", cancel)
        self.cancel.setAccessibleName(f"Stop {what}")
        layout.addWidget(self._bar, 1)
        layout.addWidget(self.cancel)
        self.hide()

    def add(self, widget: QWidget) -> None:
        """Put something beside the stop button."""
        layout = self.layout()
        assert layout is not None
        layout.addWidget(widget)

    def show_progress(self, fraction: float, seconds_left: float | None) -> None:
        """Show how far the work is."""
        self._bar.setValue(round(1000 * fraction))
        left = duration(seconds_left)
        self._bar.setFormat(f"{fraction:.0%}   {left}" if left else f"{fraction:.0%}")
        self.show()
