"""Small parts that several panels use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtGui import QColor, QIcon, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_unet.qt.actions import SMALL


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


def button(text: str, tip: str, action: Callable[[], None]) -> QPushButton:
    """Return a push button whose accessible name is its text; where it is an action's title the key comes onto it."""
    made = QPushButton(text)
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
    made.setProperty(SMALL, True)
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


class Column(QScrollArea):
    """Scrolls up and down only: it is as wide as what it holds needs, whatever the font.

    Parameters
    ----------
    content : QWidget
    """

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        # Tab goes to what it holds.
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:
        """Return a size that cuts nothing off at the side."""
        hint, content = super().minimumSizeHint(), self.widget()
        width = max(content.minimumSizeHint().width(), content.minimumWidth())
        hint.setWidth(width + self.verticalScrollBar().sizeHint().width())
        return hint

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        """Ask for more room once the content needs it."""
        if watched is self.widget() and event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))


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


class Calm(QObject):
    """Keeps an editor from what was not meant for it.

    Scrolling over it changes nothing unless the person is at it, and Enter in it ends the editing instead of reaching
    the window, where it accepts a slice.
    """

    def __init__(self, editor: QWidget) -> None:
        super().__init__(editor)
        # A list that was clicked would keep the keys, and change with the first letter.
        by_tab = isinstance(editor, QComboBox)
        editor.setFocusPolicy(Qt.FocusPolicy.TabFocus if by_tab else Qt.FocusPolicy.StrongFocus)
        editor.installEventFilter(self)

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        """Look at the wheel and at Enter only."""
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()
            return True
        if event.type() == QEvent.Type.KeyPress and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            # First what was typed is taken over, then the keys go back to the canvas.
            QTimer.singleShot(0, watched.clearFocus)
            watched.event(event)
            event.accept()
            return True
        return False
