"""A small live curve of the training loss."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QPointF, QSize
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

_POINTS = 200


class LossCurve(QWidget):
    """Draws the loss since the training began; cheap enough to redraw at each step."""

    def __init__(self) -> None:
        super().__init__()
        self._losses: Sequence[float] = ()
        self.setAccessibleName("Loss curve")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Return a low strip."""
        return QSize(200, 44)

    def show_losses(self, losses: Sequence[float]) -> None:
        """Draw these values."""
        self._losses = losses
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the curve and its last value."""
        if len(self._losses) < 2:
            return
        step = max(1, len(self._losses) // _POINTS)
        values = list(self._losses[::step])
        top = max(values) or 1.0
        width, height = self.width() - 60, self.height() - 8
        points = [QPointF(4 + width * i / (len(values) - 1), 4 + height * (1 - v / top)) for i, v in enumerate(values)]
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor("#56b4e9"), 1.6))
        painter.drawPolyline(QPolygonF(points))
        painter.drawText(width + 8, self.height() // 2 + 4, f"loss {self._losses[-1]:.2f}")
        painter.end()
