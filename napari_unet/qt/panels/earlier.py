"""Earlier states of the active scan's labels, to go back to."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from napari_unet.domain.errors import SessionError
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState
from napari_unet.session.timeline import Moment, summary

Guard = Callable[[Callable[..., None]], Callable[..., None]]

_WORDS = {"import": "the beginning", "restore": "gone back", "reopen": "opened again"}


class EarlierDialog(QDialog):
    """What was done to the active scan, the latest first; any of it can be gone back to, and that be undone."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Earlier states")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        self._state: ScanState | None = None
        self.moments = QListWidget()
        self.moments.setAccessibleName("What was done")
        self.moments.setToolTip("The latest first. Choose a line, then go back to it.")
        self.restore = button(
            "Go back to this", "Labels and accepted slices as they were then; Undo takes it back.", guard(self._restore)
        )
        self.said = line("", "Whose labels")
        layout = QVBoxLayout(self)
        layout.addWidget(self.said)
        layout.addWidget(self.moments)
        layout.addWidget(self.restore)
        self.moments.itemSelectionChanged.connect(self._selected)
        session.active_changed.connect(self._moved_on)
        self.setMinimumSize(420, 360)

    def refresh(self) -> None:
        """List what was done to the active scan."""
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open.")
        found = summary(self._session.timeline.moments(state))
        self.said.setText(f"{state.name}: the labels after..." if found else f"Nothing was saved of {state.name} yet.")
        self._state = state
        self.moments.clear()
        for moment in reversed(found):
            item = QListWidgetItem(in_words(moment))
            item.setData(Qt.ItemDataRole.UserRole, moment.seq)
            self.moments.addItem(item)
        self._selected()

    def _moved_on(self) -> None:
        """What was listed is another scan's."""
        if self._session.active is not self._state:
            self.close()

    def _selected(self) -> None:
        self.restore.setEnabled(bool(self.moments.selectedItems()))

    def _restore(self) -> None:
        state, chosen = self._state, self.moments.selectedItems()
        if state is not None and state is self._session.active and chosen:
            self._session.timeline.restore(state, int(chosen[0].data(Qt.ItemDataRole.UserRole)))
            self.refresh()


def in_words(moment: Moment) -> str:
    """Return a moment as a line: local time, what, how much, by whom."""
    action = _WORDS.get(moment.action, moment.action)
    at = datetime.datetime.fromisoformat(moment.at).astimezone()
    voxels = f", {moment.voxels:,} voxels" if moment.voxels else ""
    return f"{at:%Y-%m-%d %H:%M:%S}   {action}{voxels}, by {moment.reader}"
