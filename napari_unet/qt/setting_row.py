"""One setting as a row of the form: its name, something to fill it in with, and why what was filled in is not taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QGridLayout, QLabel, QLineEdit, QPushButton, QSpinBox, QWidget

from napari_unet.qt.looks import look_like
from napari_unet.qt.panels.parts import Calm, tool
from napari_unet.session.setting_fields import SettingField

_LARGEST = 2**31 - 1
_LINES = 4
_GAP = 8


class SettingRow:
    """A setting that can be read, changed and taken back.

    Parameters
    ----------
    field : SettingField
    grid : QGridLayout
        The row goes to its end.
    fill_in : callable
        Called with the key when the person has filled something in; :meth:`read` says what.
    take_back : callable
        Called with the key when the person goes back to the plan.
    """

    def __init__(
        self,
        field: SettingField,
        grid: QGridLayout,
        fill_in: Callable[[str], None],
        take_back: Callable[[str], None],
    ) -> None:
        self.field = field
        self.is_wrong = False
        #: Back to the plan; there once there has been something to take back.
        self.reset: QPushButton | None = None
        #: Why the value is not taken; there once one was not.
        self.message: QLabel | None = None
        self._grid, self._line = grid, grid.rowCount()
        self._fill_in, self._take_back = fill_in, take_back
        self.name = QLabel(field.title)
        self.editor = self._make_editor()
        self.name.setBuddy(self.editor)
        self.editor.setAccessibleName(field.title)
        for widget in (self.name, self.editor):
            widget.setToolTip(" ".join(part for part in (field.key, field.limits) if part))
        self.help = _wrapped("help")
        self._calm = Calm(self.editor)
        grid.addWidget(self.name, self._line, 0)
        grid.addWidget(self.editor, self._line, 1)
        grid.addWidget(self.help, self._line + 1, 0, 1, 3)
        grid.setRowMinimumHeight(self._line + _LINES - 1, _GAP)

    def show_value(self, value: Any, by_hand: bool, changeable: bool, note: str) -> None:
        """Show a value, bold where it was set by hand, and a note beside the help."""
        self._mark(None)
        self._put(value)
        font = self.name.font()
        if font.bold() != by_hand:
            font.setBold(by_hand)
            self.name.setFont(font)
        self._offer_reset(by_hand)
        self.editor.setEnabled(changeable)
        text = " ".join(part for part in (_help(self.field), note) if part)
        self.help.setText(text)
        self.help.setVisible(bool(text))

    def refuse(self, sentence: str) -> None:
        """Say beside the editor why what it holds is not taken; it stays there to be mended."""
        self._mark(sentence)
        self._offer_reset(True)

    def forget(self) -> None:
        """Drop what is wrong, and what is still being written."""
        self._mark(None)
        if isinstance(self.editor, QLineEdit):
            self.editor.setModified(False)

    def read(self) -> Any:
        """Return what is filled in.

        Raises
        ------
        SettingsError
            It cannot be understood.
        """
        editor = self.editor
        if isinstance(editor, QCheckBox):
            return editor.isChecked()
        if isinstance(editor, QComboBox):
            return self.field.choices[editor.currentIndex()]
        if isinstance(editor, QSpinBox):
            return editor.value()
        assert isinstance(editor, QLineEdit)
        return self.field.from_text(editor.text())

    def _make_editor(self) -> QWidget:
        field = self.field
        if field.kind == "flag":
            check = QCheckBox()
            check.clicked.connect(lambda _: self._fill_in(field.key))
            return check
        if field.kind == "choice":
            combo = QComboBox()
            combo.addItems([str(choice) for choice in field.choices])
            combo.activated.connect(lambda _: self._fill_in(field.key))
            return combo
        if field.kind == "whole" and not field.optional:
            spin = QSpinBox()
            spin.setRange(int(field.least or 0), int(field.most or _LARGEST))
            # Half a number that is being typed is not meant yet.
            spin.setKeyboardTracking(False)
            spin.valueChanged.connect(lambda _: self._fill_in(field.key))
            return spin
        text = QLineEdit()
        text.setPlaceholderText(field.none_means if field.optional else "")
        text.editingFinished.connect(self._text_edited)
        return text

    def _text_edited(self) -> None:
        # Leaving a field that nobody has touched sets nothing.
        if isinstance(self.editor, QLineEdit) and self.editor.isModified():
            self.editor.setModified(False)
            self._fill_in(self.field.key)

    def _put(self, value: Any) -> None:
        editor = self.editor
        editor.blockSignals(True)
        if isinstance(editor, QCheckBox):
            editor.setChecked(bool(value))
        elif isinstance(editor, QComboBox):
            editor.setCurrentText(str(value))
        elif isinstance(editor, QSpinBox):
            editor.setValue(value)
        elif isinstance(editor, QLineEdit) and not editor.isModified():
            editor.setText(self.field.to_text(value))
        editor.blockSignals(False)

    def _mark(self, sentence: str | None) -> None:
        if sentence is None and not self.is_wrong:
            return
        self.is_wrong = sentence is not None
        if self.message is None:
            self.message = _wrapped("wrong")
            look_like(self.message, "wrong")
            self.message.setAccessibleName(f"What is wrong with {self.field.title.lower()}")
            self._grid.addWidget(self.message, self._line + 2, 0, 1, 3)
        self.message.setText(sentence or "")
        self.message.setVisible(self.is_wrong)
        self.editor.setProperty("wrong", self.is_wrong)
        # Style sheets look at properties only when they are told to.
        self.editor.style().unpolish(self.editor)
        self.editor.style().polish(self.editor)

    def _offer_reset(self, offered: bool) -> None:
        if self.reset is None:
            if not offered:
                return
            name = self.field.title.lower()
            self.reset = tool("Reset", f"Go back to the plan for {name}.", lambda: self._take_back(self.field.key))
            self.reset.setAccessibleName(f"Reset {name}")
            # Enter in a field presses no button.
            self.reset.setAutoDefault(False)
            self._grid.addWidget(self.reset, self._line, 2)
        self.reset.setVisible(offered)


def _wrapped(name: str) -> QLabel:
    label = QLabel()
    label.setObjectName(name)
    label.setWordWrap(True)
    return label


def _help(field: SettingField) -> str:
    """Return what a setting is, and its limits where the editor does not show them."""
    parts = [field.description.replace("None:", "empty:")]
    if field.limits and field.kind in ("whole", "number"):
        parts.append(field.limits[0].upper() + field.limits[1:])
    return " ".join(f"{part}." for part in parts if part)
