"""The project's checkpoints: what each reached, what it takes on the disk, and which can go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QHBoxLayout,
    QHeaderView,
    QMessageBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.errors import SessionError
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.session import Session

_COLUMNS = ("Model", "Dice, held out", "Scans learnt from", "Made", "MB")

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class ModelsDialog(QDialog):
    """One row per kept checkpoint, the newest first: go back to it, or delete its weights."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Models on disk")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        self.said = line("", "What the project takes on the disk")
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(_COLUMNS)
        self.table.setAccessibleName("Models of the project")
        self.table.setToolTip("One line per checkpoint, the newest first.")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.use = button("Use", "Propose with this model from now on; Undo takes the one before.", guard(self._use))
        self.remove = button("Delete weights...", "Free the disk; its card and figures stay.", guard(self._ask))
        row = QHBoxLayout()
        row.addWidget(self.use)
        row.addStretch(1)
        row.addWidget(self.remove)
        layout = QVBoxLayout(self)
        layout.addWidget(self.said)
        layout.addWidget(self.table)
        layout.addLayout(row)
        self.table.itemSelectionChanged.connect(self._selected)
        session.models.changed.connect(self._changed)
        self.setMinimumSize(560, 320)

    def refresh(self) -> None:
        """List the checkpoints."""
        sizes, cards = self._session.project.model_sizes(), self._session.project.cards()
        total = self._session.project.size()
        self.said.setText(f"{len(sizes)} models, {_mb(sum(sizes.values()))} MB; the whole project {_mb(total)} MB.")
        self.table.setRowCount(len(sizes))
        in_use = None if self._session.models.in_use is None else self._session.models.in_use.card.name
        for row, name in enumerate(reversed(sizes)):
            card = cards.get(name)
            scores = [] if card is None else [score for score in card.scores.values() if score is not None]
            texts = (
                f"{name}, in use" if name == in_use else name,
                f"{np.mean(scores):.3f}" if scores else "-",
                "damaged" if card is None else str(len(card.seen)),
                "" if card is None else card.created[:16].replace("T", " "),
                _mb(sizes[name]),
            )
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setData(Qt.ItemDataRole.UserRole, name)
                self.table.setItem(row, column, item)
        self._selected()

    def chosen(self) -> list[str]:
        """Return the names of the selected checkpoints."""
        rows = sorted({index.row() for index in self.table.selectedIndexes()})
        items = [self.table.item(row, 0) for row in rows]
        return [str(item.data(Qt.ItemDataRole.UserRole)) for item in items if item is not None]

    def remove_chosen(self) -> None:
        """Delete the weights of the selected checkpoints."""
        self._session.models.remove(self.chosen())
        self.refresh()

    def _selected(self) -> None:
        self.use.setEnabled(len(self.chosen()) == 1)
        self.remove.setEnabled(bool(self.chosen()))

    def _changed(self) -> None:
        if self.isVisible():
            self.refresh()

    def _use(self) -> None:
        (name,) = self.chosen()
        self._session.models.use_kept(name)

    def _ask(self) -> None:
        names = self.chosen()
        if not names:
            raise SessionError("Choose the models to delete first.")
        text = f"Delete the weights of {', '.join(names)}? They cannot be used again."
        if QMessageBox.question(self, "Delete weights", text) == QMessageBox.StandardButton.Yes:
            self.remove_chosen()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
