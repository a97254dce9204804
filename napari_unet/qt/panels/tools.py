"""The tools that change more than a stroke: what to do, where, and what would change, seen before it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic.fields import FieldInfo
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QDialog, QDoubleSpinBox, QFormLayout, QHBoxLayout, QSpinBox, QVBoxLayout, QWidget

from napari_unet.domain.errors import SessionError
from napari_unet.editing.tools import TOOLS, FillBetween, Threshold, ToolSettings
from napari_unet.qt.panels.parts import button, line
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]

_SCOPES = (("this slice", "slice"), ("five slices around", "slab"), ("the whole scan", "scan"))
_FIRST = "Paint on the scan, then press Preview: nothing is changed before Apply."


class ToolsDialog(QDialog):
    """One tool at a time, made from its settings class, on the class in the hand."""

    def __init__(self, session: Session, layers: ScanLayers, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Tools")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session, self._layers = session, layers
        self._editors: dict[str, QWidget] = {}
        self.choice = QComboBox()
        self.choice.setAccessibleName("Tool")
        self.choice.setToolTip("What to do.")
        self.choice.addItems(list(TOOLS))
        self.choice.currentTextChanged.connect(lambda _: self._choose())
        self.help = line("", "What the tool does")
        self.form = QFormLayout()
        self.scope = QComboBox()
        self.scope.setAccessibleName("Where")
        self.scope.setToolTip("Nothing changes outside.")
        for text, value in _SCOPES:
            self.scope.addItem(text, value)
        self.scope.activated.connect(lambda _: session.tools.dismiss())
        self.preview = button("Preview", "Show what would change; nothing is changed yet.", guard(self._look))
        self.apply = button("Apply", "Carry it out as one step; Undo takes it back.", guard(session.tools.apply))
        self.said = line(_FIRST, "What would change")
        for label in (self.help, self.said):
            label.setMinimumHeight(2 * label.fontMetrics().lineSpacing() + 4)
        where = QFormLayout()
        where.addRow("Where", self.scope)
        buttons = QHBoxLayout()
        buttons.addWidget(self.preview)
        buttons.addWidget(self.apply)
        layout = QVBoxLayout(self)
        layout.addWidget(self.choice)
        layout.addWidget(self.help)
        layout.addLayout(self.form)
        layout.addLayout(where)
        layout.addWidget(self.said)
        layout.addLayout(buttons)
        self.setMinimumWidth(360)
        session.tools.changed.connect(self.refresh)
        session.schema_changed.connect(self._choose)
        self._choose()

    def refresh(self) -> None:
        """Say what the preview found."""
        tools = self._session.tools
        self.preview.setEnabled(not tools.is_looking)
        self.apply.setEnabled(tools.preview is not None and len(tools.preview[1]) > 0)
        if tools.is_looking:
            self.said.setText("Looking...")
        elif tools.preview is None:
            self.said.setText(_FIRST)
        elif not len(tools.preview[1]):
            self.said.setText("Nothing would change.")
        else:
            change = tools.preview[1]
            added, removed = int((change.before == 0).sum()), int((change.after == 0).sum())
            other = len(change) - added - removed
            parts = [f"{added:,} voxels would be added" if added else "", f"{removed:,} removed" if removed else ""]
            parts.append(f"{other:,} change their class" if other else "")
            self.said.setText(f"{', '.join(filter(None, parts))}: blue is added or changed, orange is removed.")

    def settings(self) -> ToolSettings:
        """Return what is chosen."""
        kind = TOOLS[self.choice.currentText()]
        return kind(**{name: _value(editor) for name, editor in self._editors.items()})

    def done(self, result: int) -> None:
        """Forget the preview with the dialog."""
        self._session.tools.dismiss()
        super().done(result)

    def _choose(self) -> None:
        """Show the settings of the chosen tool."""
        kind = TOOLS[self.choice.currentText()]
        while self.form.rowCount():
            self.form.removeRow(0)
        self.help.setText((kind.__doc__ or "").partition("\n")[0])
        self._editors = {name: self._editor(field) for name, field in kind.model_fields.items()}
        for name, editor in self._editors.items():
            title = kind.model_fields[name].title or name
            editor.setAccessibleName(title)
            editor.setToolTip(title)
            self.form.addRow(title, editor)
        if kind is Threshold:
            self._suggest_range()
        # Between slices means between all that are painted.
        self.scope.setEnabled(kind is not FillBetween)
        self._session.tools.dismiss()
        self.refresh()
        self.adjustSize()

    def _suggest_range(self) -> None:
        """Begin with the grey values of what is painted already, or with the window that is shown."""
        state, layer = self._session.active, self._layers.active_labels
        if state is None or layer is None:
            return
        found = self._session.tools.typical(state, int(layer.selected_label))
        image = self._layers.image(state)
        if found is None and image is not None:
            found = tuple(image.contrast_limits)
        if found is not None:
            for name, value in zip(("low", "high"), found, strict=True):
                self._editors[name].setValue(value)

    def _look(self) -> None:
        layer = self._layers.active_labels
        if layer is None:
            raise SessionError("No scan is open: there is nothing to work on.")
        self._session.tools.look(self.settings(), int(layer.selected_label), self.scope.currentData())

    def _editor(self, field: FieldInfo) -> QWidget:
        extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("is_class"):
            return self._class_choice(field.default)
        if field.annotation in (int, float):
            spin = QSpinBox() if field.annotation is int else QDoubleSpinBox()
            bounds = {type(limit).__name__: limit for limit in field.metadata}
            spin.setRange(bounds["Ge"].ge, bounds["Le"].le)
            spin.setValue(field.default)
            spin.setSuffix(f" {extra['unit']}" if "unit" in extra else "")
            spin.valueChanged.connect(lambda _: self._session.tools.dismiss())
            return spin
        combo = QComboBox()
        combo.addItems([str(choice) for choice in get_args(field.annotation)])
        combo.activated.connect(lambda _: self._session.tools.dismiss())
        return combo

    def _class_choice(self, default: int) -> QComboBox:
        combo = QComboBox()
        for each in self._session.schema.classes:
            combo.addItem(each.name, each.id)
        combo.setCurrentIndex(max(0, combo.findData(default)))
        combo.activated.connect(lambda _: self._session.tools.dismiss())
        return combo


def _value(editor: QWidget) -> Any:
    if isinstance(editor, QComboBox):
        return editor.currentData() if editor.currentData() is not None else editor.currentText()
    assert isinstance(editor, QSpinBox | QDoubleSpinBox)
    return editor.value()
