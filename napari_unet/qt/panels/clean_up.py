"""Cleaning up masks: what to do, seen before it is done."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QDialog, QDoubleSpinBox, QFormLayout, QHBoxLayout, QVBoxLayout, QWidget

from napari_unet.domain.settings import AfterCareSettings
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class CleanUpDialog(QDialog):
    """The after-care settings, with a preview of what they would change in the active scan."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Clean up")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        described = {name: field.description for name, field in AfterCareSettings.model_fields.items()}
        self.smooth_mm, self.smallest_mm3 = QDoubleSpinBox(), QDoubleSpinBox()
        self.smooth_mm.setRange(0, 100)
        self.smooth_mm.setSingleStep(0.5)
        self.smallest_mm3.setRange(0, 1e9)
        self.smooth_mm.setSuffix(" mm")
        self.smallest_mm3.setSuffix(" mm\u00b3")
        self.fill_holes, self.keep_largest = QCheckBox("Fill holes"), QCheckBox("Keep the largest piece of each class")
        form = QFormLayout()
        form.addRow("Smooth borders by", self.smooth_mm)
        form.addRow(self.fill_holes)
        form.addRow("Remove pieces below", self.smallest_mm3)
        form.addRow(self.keep_largest)
        for name, widget in self._widgets().items():
            widget.setToolTip(described[name])
            widget.setAccessibleName(name.replace("_", " "))
        self.preview = button("Preview", "Show what would change; nothing is changed yet.", guard(self._look))
        self.apply = button("Apply", "Carry it out as one step; Undo takes it back.", guard(self._apply))
        self.said = line("Accepted slices and what you painted by hand stay as they are.", "What would change")
        buttons = QHBoxLayout()
        buttons.addWidget(self.preview)
        buttons.addWidget(self.apply)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.said)
        layout.addLayout(buttons)
        session.clean_up.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Say what the preview found."""
        found, under_way = self._session.clean_up.preview, self._session.clean_up.is_looking
        self.preview.setEnabled(not under_way)
        self.apply.setEnabled(found is not None and len(found[1]) > 0)
        if under_way:
            self.said.setText("Looking...")
        elif found is None:
            self.said.setText("Accepted slices and what you painted by hand stay as they are.")
        elif not len(found[1]):
            self.said.setText("Nothing would change.")
        else:
            change = found[1]
            removed, added = int((change.after == 0).sum()), int((change.before == 0).sum())
            other = len(change) - removed - added
            parts = [f"{removed:,} voxels would be removed" if removed else "", f"{added:,} added" if added else ""]
            parts.append(f"{other:,} would change their class" if other else "")
            self.said.setText(f"{', '.join(filter(None, parts))}: shown in the layer of the preview.")

    def settings(self) -> AfterCareSettings:
        """Return what is chosen."""
        return AfterCareSettings(
            smooth_mm=self.smooth_mm.value(),
            smallest_mm3=self.smallest_mm3.value(),
            fill_holes=self.fill_holes.isChecked(),
            keep_largest=self.keep_largest.isChecked(),
        )

    def done(self, result: int) -> None:
        """Forget the preview with the dialog."""
        self._session.clean_up.dismiss()
        super().done(result)

    def _widgets(self) -> dict[str, QWidget]:
        return {
            "smooth_mm": self.smooth_mm,
            "fill_holes": self.fill_holes,
            "smallest_mm3": self.smallest_mm3,
            "keep_largest": self.keep_largest,
        }

    def _look(self) -> None:
        self._session.clean_up.look(self.settings())

    def _apply(self) -> None:
        self._session.clean_up.apply()
