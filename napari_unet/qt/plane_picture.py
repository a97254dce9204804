"""One plane of a scan with its labels as a picture, and the widget that shows it with a crosshair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.planes import Plane

_MARGIN = 16
_NOTCH = 120  # of a mouse wheel, in eighths of a degree
_CROSS = QColor(255, 255, 255, 150)
# Without the fourth byte of a colour, in this machine's order of bytes.
_COLOURS = np.array([255, 255, 255, 0], np.uint8).view(np.uint32)[0]
_TEXT = QColor("#d0d4da")


def grey_picture(plane: NDArray, limits: tuple[float, float], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return intensities as colours.

    Parameters
    ----------
    plane : array ``[row, column]``
    limits : tuple of float
        Intensities that get the first and the last colour.
    colours : (256, 3) uint8 array

    Returns
    -------
    uint8 array ``[row, column, 4]``
        Red, green, blue, 255.
    """
    low, high = limits
    shade = plane.astype(np.float32)
    shade -= low
    shade *= 255 / max(high - low, 1e-12)
    np.clip(shade, 0, 255, out=shade)
    return _unpacked(np.take(_packed(colours), shade.astype(np.uint8)))


def with_labels(picture: NDArray[np.uint8], labels: NDArray, schema: LabelSchema, opacity: float) -> NDArray[np.uint8]:
    """Return a picture with the classes' colours over it; values without a class are grey.

    Parameters
    ----------
    picture : uint8 array ``[row, column, 4]``
    labels : integer array ``[row, column]``
        0 is not drawn.
    schema : LabelSchema
    opacity : float
        In [0, 1].
    """
    painted = labels > 0
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    if not len(rows):
        return picture
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    beyond = max(schema.ids) + 1
    colours = np.full((beyond + 1, 3), 128.0)
    for each in schema.classes:
        colours[each.id] = 255 * np.array(each.colour)
    # In steps of 1/256: whole numbers are several times quicker, and nobody sees the difference.
    share = round(256 * opacity)
    over = _packed((colours * share / 256).astype(np.uint8)) & _COLOURS
    faded = ((picture[box].astype(np.uint16) * (256 - share)) >> 8).astype(np.uint8)
    faded[..., 3] = 255
    drawn = picture.copy()
    _as_words(drawn)[box] = np.where(
        painted[box], _as_words(faded) + np.take(over, np.minimum(labels[box], beyond)), _as_words(picture)[box]
    )
    return drawn


def blended(picture: NDArray[np.uint8], other: NDArray[np.uint8], opacity: float) -> NDArray[np.uint8]:
    """Return a picture with the light of another one added, as napari's additive blending does."""
    added = ((other.astype(np.uint16) * round(256 * opacity)) >> 8) + picture
    return np.minimum(added, 255).astype(np.uint8)


def rgb_picture(plane: NDArray) -> NDArray[np.uint8]:
    """Return colours ``[row, column, 3 or 4]``, whole numbers to 255 or fractions, as a picture."""
    whole = plane[..., :3] if plane.dtype == np.uint8 else (255 * np.clip(plane[..., :3], 0, 1)).astype(np.uint8)
    return np.concatenate([whole, np.full((*whole.shape[:2], 1), 255, np.uint8)], axis=-1)


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return colours as words of four bytes, which are looked up at once."""
    return np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], axis=1).view(np.uint32)[:, 0]


def _as_words(picture: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return picture.view(np.uint32)[..., 0]


def _unpacked(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return words.view(np.uint8).reshape(*words.shape, 4)


@dataclass(frozen=True, eq=False)
class PlanePicture:
    """What a pane shows.

    Parameters
    ----------
    title : str
        Of the plane, with the slice.
    pixels : uint8 array ``[row, column, 4]``
        Red, green, blue, 255.
    spacing : tuple of float
        Height and width of a pixel, in one unit.
    cross : tuple of float
        Row and column of the point, in pixels.
    borders : dict
        A letter for ``left``, ``right``, ``top``, ``bottom``, or nothing.
    """

    title: str
    pixels: NDArray[np.uint8]
    spacing: tuple[float, float]
    cross: tuple[float, float]
    borders: dict[str, str]


class PlanePane(QWidget):
    """Draws the planes across one axis; the mouse and the arrow keys say where to go.

    Parameters
    ----------
    axis : int
        Across the plane.
    point_at : callable
        Takes a row and a column of the plane, as drawn.
    scroll : callable
        Takes by how many slices to go on.
    """

    def __init__(
        self, axis: int, point_at: Callable[[Plane, float, float], None], scroll: Callable[[int, int], None]
    ) -> None:
        super().__init__()
        self.plane = Plane(axis)
        self._point_at, self._scroll = point_at, scroll
        self.shown: PlanePicture | None = None
        self._turned = 0
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self.setMinimumSize(120, 90)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setToolTip("Click or drag: go there in all views. Wheel or arrow keys: through the slices.")

    def sizeHint(self) -> QSize:
        """Return a square."""
        return QSize(260, 240)

    def show_picture(self, picture: PlanePicture | None) -> None:
        """Draw a plane from now on."""
        self.shown = picture
        self.setAccessibleName(picture.title if picture is not None else "Plane")
        self.update()

    def place_on_screen(self, row: float, column: float) -> QPointF:
        """Return where the centre of a pixel of the plane lies in the widget."""
        assert self.shown is not None
        rect, (n_rows, n_columns) = self._rect(), self.shown.pixels.shape[:2]
        return QPointF(
            rect.left() + (column + 0.5) / n_columns * rect.width(),
            rect.top() + (row + 0.5) / n_rows * rect.height(),
        )

    def _rect(self) -> QRectF:
        """Return where the plane is drawn: as large as there is room for, with the proportions of the body."""
        assert self.shown is not None
        rows, columns = self.shown.pixels.shape[:2]
        height, width = rows * self.shown.spacing[0], columns * self.shown.spacing[1]
        room = QRectF(self.rect()).adjusted(_MARGIN, _MARGIN + 2, -_MARGIN, -_MARGIN)
        factor = max(1e-9, min(room.width() / width, room.height() / height))
        drawn = QRectF(0, 0, width * factor, height * factor)
        drawn.moveCenter(room.center())
        return drawn

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the plane, the letters and the crosshair."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("black"))
        if self.shown is not None:
            rect = self._rect()
            pixels = np.ascontiguousarray(self.shown.pixels)
            rows, columns = pixels.shape[:2]
            image = QImage(pixels.data, columns, rows, 4 * columns, QImage.Format.Format_RGBX8888)
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(rect, image)
            self._draw_cross(painter, rect)
            self._draw_words(painter, rect)
        if self.hasFocus():
            painter.setPen(QPen(QColor("#56b4e9"), 2))
            painter.drawRect(self.rect().adjusted(1, 1, -1, -1))
        painter.end()

    def _draw_cross(self, painter: QPainter, rect: QRectF) -> None:
        assert self.shown is not None
        at = self.place_on_screen(*self.shown.cross)
        painter.setPen(QPen(_CROSS, 1))
        gap = 6.0  # what is looked at stays free
        for start, stop in (
            (QPointF(rect.left(), at.y()), QPointF(at.x() - gap, at.y())),
            (QPointF(at.x() + gap, at.y()), QPointF(rect.right(), at.y())),
            (QPointF(at.x(), rect.top()), QPointF(at.x(), at.y() - gap)),
            (QPointF(at.x(), at.y() + gap), QPointF(at.x(), rect.bottom())),
        ):
            painter.drawLine(start, stop)

    def _draw_words(self, painter: QPainter, rect: QRectF) -> None:
        assert self.shown is not None
        area = QRectF(self.rect())
        painter.setPen(_TEXT)
        painter.drawText(area.adjusted(4, 1, 0, 0), int(Qt.AlignmentFlag.AlignLeft), self.shown.title)
        middle = Qt.AlignmentFlag.AlignCenter
        side = float(_MARGIN)
        squares = {
            "left": QRectF(rect.left() - side, rect.center().y() - 8, side, 16),
            "right": QRectF(rect.right(), rect.center().y() - 8, side, 16),
            "top": QRectF(rect.center().x() - 8, rect.top() - side, 16, side),
            "bottom": QRectF(rect.center().x() - 8, rect.bottom(), 16, side),
        }
        font = painter.font()
        font.setBold(True)
        painter.setFont(font)
        for border, letter in self.shown.borders.items():
            painter.drawText(squares[border], int(middle), letter)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Go to what is under the mouse."""
        self.mouseMoveEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Follow the mouse while its left button is down."""
        if self.shown is None or not event.buttons() & Qt.MouseButton.LeftButton:
            return
        rect, (n_rows, n_columns) = self._rect(), self.shown.pixels.shape[:2]
        row = (event.pos().y() + 0.5 - rect.top()) / rect.height() * n_rows - 0.5
        column = (event.pos().x() + 0.5 - rect.left()) / rect.width() * n_columns - 0.5
        self._point_at(self.plane, row, column)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Go through the slices; touchpads send parts of a notch."""
        self._turned += event.angleDelta().y()
        notches = int(self._turned / _NOTCH)
        self._turned -= notches * _NOTCH
        if notches:
            self._scroll(self.plane.axis, notches)
        event.accept()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Go through the slices with the arrow keys."""
        step = {
            Qt.Key.Key_Up: 1,
            Qt.Key.Key_Right: 1,
            Qt.Key.Key_Down: -1,
            Qt.Key.Key_Left: -1,
            Qt.Key.Key_PageUp: 10,
            Qt.Key.Key_PageDown: -10,
        }.get(event.key())
        if step is None:
            super().keyPressEvent(event)
        else:
            self._scroll(self.plane.axis, step)
