"""The project's scans: how far each is, how good its proposal was, how long it took, and which are marked."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.errors import SessionError
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.session import Session
from napari_unet.session.state import Flag
from napari_unet.storage.audit import AuditCard
from napari_unet.storage.desk import Place

_COLUMNS = ("Scan", "Accepted", "Dice of proposal", "By hand", "Minutes", "Mark")
_DIFFICULTIES = ("easy", "middling", "hard")

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class ScansDialog(QDialog):
    """One row per scan of the project; a double click shows it. Below, a mark for the active scan."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Scans of the project")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        self._places: list[Place] = []
        self.said = line("", "How far the project is")
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(_COLUMNS)
        self.table.setAccessibleName("Scans of the project")
        self.table.setToolTip("Double click, or Show, opens a scan.")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.cellDoubleClicked.connect(lambda *_: guard(self._show)())
        self.show_scan = button("Show", "Show this scan; it is opened where it is not.", guard(self._show))
        self.again = button("Refresh", "Look again at what was done.", guard(self.refresh))
        self.difficulty = QComboBox()
        self.difficulty.addItems(["not marked", *_DIFFICULTIES])
        self.difficulty.setAccessibleName("How hard the active scan is")
        self.difficulty.setToolTip("A mark on the scan that is shown.")
        self.comment = QLineEdit()
        self.comment.setPlaceholderText("a comment on the scan that is shown")
        self.comment.setAccessibleName("Comment on the active scan")
        self.comment.setToolTip("Kept in the project; write no name of a patient here.")
        self.mark = button("Mark", "Keep this mark of the active scan.", guard(self._mark))
        for each in (self.show_scan, self.again, self.mark):
            each.setAutoDefault(False)
        self.comment.returnPressed.connect(guard(self._mark))
        layout = QVBoxLayout(self)
        layout.addWidget(self.said)
        layout.addWidget(self.table)
        for widgets in ((self.show_scan, self.again), (self.difficulty, self.comment, self.mark)):
            row = QHBoxLayout()
            for widget in widgets:
                row.addWidget(widget)
            layout.addLayout(row)
        session.active_changed.connect(self._show_mark)
        session.project_changed.connect(self.close)
        self.setMinimumSize(620, 360)

    def refresh(self) -> None:
        """Look at what was done to each scan."""
        found = self._session.audits.all()
        self._places = [place for place, _ in found]
        self.table.setRowCount(len(found))
        for row, (place, card) in enumerate(found):
            for column, text in enumerate(_texts(place, card)):
                self.table.setItem(row, column, QTableWidgetItem(text))
        cards = [card for _, card in found if card is not None]
        done = sum(card.accepted_slices == card.slices for card in cards)
        minutes = sum(card.active_minutes for card in cards)
        self.said.setText(f"{len(found)} scans, {done} accepted as a whole, {minutes:.0f} minutes of work.")
        self._show_mark()

    def _show(self) -> None:
        row = self.table.currentRow()
        if row < 0:
            raise SessionError("Choose a scan in the list first.")
        self._session.desk.open_again(self._places[row])

    def _show_mark(self) -> None:
        state = self._session.active
        flag = None if state is None else state.flag
        for widget in (self.difficulty, self.comment, self.mark):
            widget.setEnabled(state is not None)
        self.difficulty.setCurrentIndex(0 if flag is None else flag.difficulty)
        self.comment.setText("" if flag is None else flag.comment)

    def _mark(self) -> None:
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open.")
        difficulty, comment = self.difficulty.currentIndex(), self.comment.text().strip()
        if comment and not difficulty:
            raise SessionError("Choose how hard the scan is, then the comment is kept with it.")
        flag = Flag(difficulty, comment) if difficulty else None
        self._session.set_flag(state, flag)
        for row, place in enumerate(self._places):
            if place.scan == state.scan.fingerprint:
                self.table.setItem(row, len(_COLUMNS) - 1, QTableWidgetItem(_mark_in_words(flag)))


def _texts(place: Place, card: AuditCard | None) -> tuple[str, ...]:
    if card is None:
        return (f"scan {place.number}", "-", "-", "-", "-", "")
    return (
        f"scan {place.number}",
        f"{card.accepted_slices} of {card.slices}",
        "-" if card.dice_of_proposal is None else f"{card.dice_of_proposal:.3f}",
        "-" if card.percent_by_hand is None else f"{card.percent_by_hand:.0f} %",
        f"{card.active_minutes:.1f}",
        _mark_in_words(None if card.flag is None else Flag(**card.flag)),
    )


def _mark_in_words(flag: Flag | None) -> str:
    if flag is None:
        return ""
    mark = _DIFFICULTIES[flag.difficulty - 1]
    return f"{mark}: {flag.comment}" if flag.comment else mark
