"""The keys of the window's actions, to be read and changed."""

from __future__ import annotations

from app_model.backends.qt import qkey2modelkey, qmods2modelmods
from app_model.types import KeyBinding, KeyCode
from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QVBoxLayout,
    QWidget,
)

from napari_unet.qt.actions import Action, Actions, in_words
from napari_unet.qt.bridge import guarded
from napari_unet.qt.panels.parts import Column, button, line

_FIRST = "Click into a field and press the new key; Backspace takes the key away."
_HELD = (Qt.Key.Key_Control, Qt.Key.Key_Shift, Qt.Key.Key_Alt, Qt.Key.Key_Meta, Qt.Key.Key_AltGr)


class KeyField(QLineEdit):
    """Shows a key, and takes the next one that is pressed; Tab, Shift+Tab and Escape stay what they are."""

    pressed = Signal(str)  # the key as napari calls it; empty: none

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.setReadOnly(True)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.NoContextMenu)
        self.setAccessibleName(f"Key of {action.title}")
        self.setToolTip(f"{action.does} {_FIRST}")
        self.setPlaceholderText("none")

    def event(self, event: QEvent) -> bool:
        """Keep keys from the menus while the field has the focus."""
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
            return True
        return bool(super().event(event))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Take the key."""
        if event.key() == Qt.Key.Key_Escape:
            event.ignore()
        elif event.key() in (Qt.Key.Key_Backspace, Qt.Key.Key_Delete):
            self.pressed.emit("")
        elif event.key() not in _HELD:
            self.pressed.emit(_pressed(event))


class KeysDialog(QDialog):
    """One row per action: what it is called, and its key."""

    def __init__(self, actions: Actions, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keys")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._actions = actions
        self.fields: dict[str, KeyField] = {}
        content = QWidget()
        grid = QGridLayout(content)
        for row, action in enumerate(actions):
            self._add_row(grid, row, action)
        self.said = line(_FIRST, "What was refused, and why")
        self.said.setMinimumHeight(2 * self.said.fontMetrics().lineSpacing() + 4)
        self.reset = button("Reset", "All keys as they are by themselves.", actions.reset)
        self.reset.setAutoDefault(False)
        last = QHBoxLayout()
        last.addWidget(self.said, 1)
        last.addWidget(self.reset)
        layout = QVBoxLayout(self)
        layout.addWidget(Column(content))
        layout.addLayout(last)
        actions.changed.connect(self.refresh)
        self.resize(440, 520)
        self.refresh()

    def refresh(self) -> None:
        """Show the keys."""
        self.said.setText(_FIRST)
        for name, field in self.fields.items():
            field.setText(in_words(self._actions.key(name)))

    def _add_row(self, grid: QGridLayout, row: int, action: Action) -> None:
        field = KeyField(action)
        take = guarded(self._say, lambda key: self._actions.rebind(action.id, key))
        field.pressed.connect(lambda key: take(key))
        title = QLabel(action.title.rstrip("."))
        title.setToolTip(action.does)
        title.setBuddy(field)
        grid.addWidget(title, row, 0)
        grid.addWidget(field, row, 1)
        self.fields[action.id] = field

    def _say(self, sentence: str) -> None:
        self.said.setText(sentence)


def _pressed(event: QKeyEvent) -> str:
    """Return the key of an event as napari calls it; one that napari does not know is ``UNKNOWN``."""
    try:
        key = qkey2modelkey(Qt.Key(event.key()))
    except ValueError:
        key = KeyCode.UNKNOWN
    if key == KeyCode.UNKNOWN:
        return "unknown"
    modifiers = event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
    return str(KeyBinding.from_int(int(qmods2modelmods(modifiers) | key)))
