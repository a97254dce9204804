"""The slice ribbon: one cell per slice, green where accepted; a click goes there."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QColor, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_unet.session.session import Session

_ACCEPTED, _LOCKED, _PAINTED, _EMPTY = QColor("#009e73"), QColor("#56b4e9"), QColor("#e69f00"), QColor("#555a63")


class SliceRibbon(QWidget):
    """Which slices are accepted (green; blue: held out to judge models), painted on (orange) or untouched (grey).

    Parameters
    ----------
    session : Session
    go_to : callable
        Shows a slice.
    """

    def __init__(self, session: Session, go_to: Callable[[int], None]) -> None:
        super().__init__()
        self._session, self._go_to = session, go_to
        self.setAccessibleName("Slices")
        self.setToolTip(
            "One cell per slice. Green: accepted. Blue: accepted, held out to judge models. Orange: painted on. "
            "Click to go there."
        )
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Return a strip."""
        return QSize(200, 20)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the cells."""
        state = self._session.active
        if state is None:
            return
        painter = QPainter(self)
        n, width, height = state.scan.n_slices, self.width(), self.height()
        started = set(state.annotation.reviewed_slices().tolist())
        for index in range(n):
            left, right = index * width // n, (index + 1) * width // n
            if state.annotation.accepted[index]:
                colour = _LOCKED if state.locked[index] else _ACCEPTED
            else:
                colour = _PAINTED if index in started else _EMPTY
            painter.fillRect(left, 3, max(1, right - left - (width > 3 * n)), height - 6, colour)
        here = self._session.visible_slice
        painter.setPen(QPen(QColor("white"), 2))
        painter.drawRect(here * width // n, 1, max(3, width // n), height - 3)
        painter.end()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Go to the slice under the mouse."""
        state = self._session.active
        if state is not None and event.button() == Qt.MouseButton.LeftButton:
            self._go_to(
                min(state.scan.n_slices - 1, max(0, event.pos().x() * state.scan.n_slices // max(1, self.width())))
            )
