"""The slice ribbon: one cell per slice, green where accepted; a click goes there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPalette, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

_ACCEPTED, _LOCKED, _PAINTED = QColor("#009e73"), QColor("#56b4e9"), QColor("#e69f00")
_PROPOSED, _EMPTY, _UNSURE = QColor("#8a6d9e"), QColor("#555a63"), QColor("#f0e442")
# What is at most so unsure is not marked.
_SURE = 0.1


class SliceRibbon(QWidget):
    """Which slices are accepted (green; blue: held out), painted on (orange), proposed (violet) or empty (grey).

    A yellow bar stands as high as the proposal is unsure of a slice that is not accepted. Colours are not all: accepted
    cells are full height, others lower.

    Parameters
    ----------
    session : Session
    go_to : callable
        Shows a slice.
    """

    def __init__(self, session: Session, go_to: Callable[[int], None]) -> None:
        super().__init__()
        self._session, self._go_to = session, go_to
        self._known: tuple[ScanState, NDArray[np.float64] | None] | None = None
        session.proposals.uncertainty_changed.connect(self._forget)
        self.setAccessibleName("Slices")
        self.setToolTip(
            "One cell per slice. Green: accepted. Blue: accepted, held out to judge models. Orange: painted on. "
            "Violet: labels that nobody has checked. Grey: empty. Yellow bar: the model is unsure. Click, or "
            "use the arrow keys, to go there."
        )
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
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
        unsure, accepted = self._unsure(state), state.annotation.accepted
        for index in range(n):
            left, right = index * width // n, (index + 1) * width // n
            wide = max(1, right - left - (width > 3 * n))
            if accepted[index]:
                painter.fillRect(left, 2, wide, height - 4, _LOCKED if state.locked[index] else _ACCEPTED)
                continue
            colour = _PAINTED if state.painted[index] else _PROPOSED if state.labelled[index] else _EMPTY
            painter.fillRect(left, 5, wide, height - 10, colour)
            if unsure is not None and unsure[index] > _SURE:
                high = max(2, round(unsure[index] * (height - 10)))
                painter.fillRect(left, height - 5 - high, max(1, wide // 2), high, _UNSURE)
        here = self._session.visible_slice
        painter.setPen(QPen(self.palette().color(QPalette.ColorRole.WindowText), 3 if self.hasFocus() else 2))
        painter.drawRect(here * width // n, 1, max(3, width // n), height - 3)
        painter.end()

    def _unsure(self, state: ScanState) -> NDArray[np.float64] | None:
        """Return how unsure the proposal is of each slice; looked at again only when it has gone on."""
        if self._known is None or self._known[0] is not state:
            self._known = state, state.unsure
        return self._known[1]

    def _forget(self, *_: object) -> None:
        self._known = None
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Go to the slice before or behind, to the first, or to the last."""
        state, here = self._session.active, self._session.visible_slice
        last = 0 if state is None else state.scan.n_slices - 1
        key = Qt.Key
        to = {key.Key_Left: here - 1, key.Key_Right: here + 1, key.Key_Home: 0, key.Key_End: last}.get(event.key())
        if state is None or to is None:
            super().keyPressEvent(event)
        else:
            self._go_to(min(last, max(0, to)))

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Go to the slice under the mouse."""
        state = self._session.active
        if state is not None and event.button() == Qt.MouseButton.LeftButton:
            self._go_to(
                min(state.scan.n_slices - 1, max(0, event.pos().x() * state.scan.n_slices // max(1, self.width())))
            )
