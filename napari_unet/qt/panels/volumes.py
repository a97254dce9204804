"""The volume of each class, in millilitres, and the body in three dimensions."""

from __future__ import annotations

from napari.components import ViewerModel
from napari.layers import Image
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QAbstractItemView, QDialog, QHeaderView, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from napari_unet.evaluation.volumes import ClassVolume, class_volumes
from napari_unet.qt.panels.parts import button, colour_icon, line
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import Session

# Counting the pieces of a large volume takes a second or more: not while the hand paints.
_REST_MS = 600
# Where the camera looks, and what is up: from the front, a little from the patient's left and from above.
_FROM_THE_FRONT = (-0.3, 1.0, -0.4), (1.0, 0.0, 0.0)
_NO_SCAN = "No scan is open."


class VolumesDialog(QDialog):
    """One row per class of the active scan, and their sum; follows the labels once the hand rests.

    Parameters
    ----------
    session : Session
    viewer : ViewerModel
    layers : ScanLayers
    parent : QWidget
    """

    def __init__(self, session: Session, viewer: ViewerModel, layers: ScanLayers, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Volumes")
        self._session, self._viewer, self._layers = session, viewer, layers
        self._put_aside: Image | None = None
        self._seen: tuple[tuple[float, float, float], float] | None = None  # of the slices: middle and zoom
        self.said = line("", "What is measured")
        self.table = QTableWidget(0, 3)
        self.table.setAccessibleName("Volumes of the classes")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.solid = button("Show in 3D", "Show the labels as surfaces, and back.", self._turn)
        layout = QVBoxLayout(self)
        for widget in (self.said, self.table, self.solid):
            layout.addWidget(widget)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_REST_MS)
        self._timer.timeout.connect(self._measure_if_seen)
        for signal in (session.labels_changed, session.active_changed, session.schema_changed, session.scan_removed):
            signal.connect(self._ask)
        viewer.dims.events.ndisplay.connect(self._show_dimensions)
        self._show_dimensions()
        self.resize(380, 260)

    def let_go(self) -> None:
        """Let go of the session and the viewer, for good."""
        self._timer.stop()
        session = self._session
        for signal in (session.labels_changed, session.active_changed, session.schema_changed, session.scan_removed):
            signal.disconnect(self._ask)
        self._viewer.dims.events.ndisplay.disconnect(self._show_dimensions)
        self._bring_back()
        self.close()

    def refresh(self) -> None:
        """Measure the labels of the active scan."""
        state = self._session.active
        if state is None:
            self.said.setText(_NO_SCAN)
            self.table.setRowCount(0)
            return
        voxel = state.scan.geometry.voxel_volume
        found = class_volumes(state.annotation.labels, self._session.schema, voxel)
        in_ml = all(each.ml is not None for each in found)
        why = "" if in_ml else ", in voxels, as their size in mm is not known" if voxel is None else ", in pixels"
        self.said.setText(f"{state.name}, as its labels stand{why}.")
        self.table.setHorizontalHeaderLabels(("Class", "mL" if in_ml else "Voxels", "Pieces"))
        self.table.setRowCount(len(found) + 1)
        for row, each in enumerate([*found, _total(found)]):
            amount = f"{each.ml:,.2f}" if in_ml else f"{each.voxels:,}"
            for column, text in enumerate((each.name, amount, f"{each.pieces:,}")):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter))
                elif row < len(found):
                    item.setIcon(colour_icon(each.colour))
                self.table.setItem(row, column, item)

    def showEvent(self, event: QShowEvent) -> None:
        """Measure what is there now."""
        super().showEvent(event)
        self.refresh()

    def _ask(self, *_: object) -> None:
        self._show_dimensions()
        if self.isVisible():
            self._timer.start()

    def _measure_if_seen(self) -> None:
        if self.isVisible():
            self.refresh()

    def _turn(self) -> None:
        dims, camera, state = self._viewer.dims, self._viewer.camera, self._session.active
        if dims.ndisplay == 3:
            dims.ndisplay = 2
            if self._seen is not None:
                camera.center, camera.zoom = self._seen
            return
        self._seen = camera.center, camera.zoom
        image = self._layers.image(state) if state is not None else None
        dims.ndisplay = 3
        if image is not None and image.visible:
            # All of the scan at once would be a fog around the surfaces.
            self._put_aside = image
            image.visible = False
        labels = self._layers.active_labels
        if labels is not None:
            labels.iso_gradient_mode = "smooth"
        camera.set_view_direction(*_FROM_THE_FRONT)
        self._viewer.reset_view(reset_camera_angle=False)

    def _show_dimensions(self, event: object = None) -> None:
        if self._viewer.dims.ndisplay == 2:
            self._bring_back()
        self.solid.setText("Back to slices" if self._viewer.dims.ndisplay == 3 else "Show in 3D")
        state = self._session.active
        self.solid.setEnabled(state is None or len(state.scan.spatial_shape) == 3)

    def _bring_back(self) -> None:
        image, self._put_aside = self._put_aside, None
        state = self._session.active
        if image is not None:
            image.visible = state is not None and self._layers.image(state) is image


def _total(found: list[ClassVolume]) -> ClassVolume:
    measured = [each.ml for each in found if each.ml is not None]
    ml = sum(measured) if len(measured) == len(found) else None
    voxels, pieces = (sum(getattr(each, name) for each in found) for name in ("voxels", "pieces"))
    return ClassVolume("total", (0.0, 0.0, 0.0), voxels, ml, pieces)
