"""The evidence behind a verdict: a table of the held-out cases, folded until it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_unet.session.verdict import VerdictRow

_COLUMNS = ("Scan", "Before", "After", "Change", "Slices")
_ROWS_SHOWN = 6


class CaseTable(QWidget):
    """One row per held-out case: Dice before, after, change, and how many slices judged.

    Tab reaches the button that unfolds it, the space bar presses it, and the arrow keys walk through the cells.
    """

    def __init__(self) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.unfold = QToolButton()
        self.unfold.setText("Held-out scans")
        self.unfold.setToolTip("Show the Dice of each held-out scan, with the old model and with the new one.")
        self.unfold.setAccessibleName("Show the held-out scans")
        self.unfold.setCheckable(True)
        self.unfold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.unfold.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(_COLUMNS)
        self.table.setAccessibleName("Held-out scans: Dice before and after")
        self.table.setToolTip("Dice of each held-out scan, with the old model and with the new one.")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        # Tab goes on to the buttons instead of from cell to cell.
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        self.unfold.toggled.connect(self._show_table)
        layout.addWidget(self.unfold)
        layout.addWidget(self.table)
        self._show_table(False)

    def fill(self, rows: Sequence[VerdictRow]) -> None:
        """Show other cases, folded."""
        self.unfold.setChecked(False)
        self.table.setRowCount(len(rows))
        for index, row in enumerate(rows):
            # A word, not only a colour: it is read aloud too.
            name = f"{row.name}: worse" if row.is_worse else row.name
            change = "-" if row.change is None else f"{row.change:+.3f}"
            for column, text in enumerate((name, _dice(row.before), _dice(row.after), change, str(row.slices))):
                item = QTableWidgetItem(text)
                font = item.font()
                font.setBold(row.is_worse)
                item.setFont(font)
                if column:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(index, column, item)
        height = self.table.verticalHeader().defaultSectionSize() * min(len(rows), _ROWS_SHOWN)
        self.table.setFixedHeight(self.table.horizontalHeader().sizeHint().height() + height + 4)

    def _show_table(self, shown: bool) -> None:
        self.table.setVisible(shown)
        self.unfold.setArrowType(Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow)


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
