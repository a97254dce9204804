"""Another reader's labels of the active scan: how much both agree, where they differ, what holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_unet.qt.panels.parts import button, line
from napari_unet.session.session import Session

_COLUMNS = ("Class", "Dice", "Surface Dice, 1 mm", "Voxels")

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class CompareDialog(QDialog):
    """Chooses the other labels; shows the agreement; decides about differences, slice by slice or all at once."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Compare with another reader")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        comparison = session.comparison
        self.project = button("Another project...", "What was said of this scan there.", guard(self._ask_project))
        self.mask = button("A mask file...", "A mask on the same grid.", guard(self._ask_mask))
        self.said = line("", "With whom")
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(_COLUMNS)
        self.table.setAccessibleName("Agreement by class")
        self.table.setToolTip("How much both agree on each class; 1 is all.")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.setMinimumHeight(110)
        self.following = button("Next difference", "Show the next slice that differs.", guard(self._go_on))
        self.everywhere = QCheckBox("In the whole scan, not only on this slice")
        self.everywhere.setToolTip("Where Take theirs and Keep mine decide.")
        self.theirs = button("Take theirs", "Where both differ theirs holds.", guard(self._take))
        self.mine = button("Keep mine", "Where both differ mine holds: put that on record.", guard(self._keep))
        self.again = button("Measure", "Dice and surface Dice of each class, as they are now.", guard(self.measure))
        self.done_ = button("Put away", "Show only your own labels again.", guard(comparison.end))
        layout = QVBoxLayout(self)
        for widgets in ((self.project, self.mask), (self.following, self.theirs, self.mine), (self.again, self.done_)):
            row = QHBoxLayout()
            for widget in widgets:
                row.addWidget(widget)
            layout.addLayout(row)
            if widgets[0] is self.project:
                layout.addWidget(self.said)
                layout.addWidget(self.table)
            elif widgets[0] is self.following:
                layout.addWidget(self.everywhere)
        comparison.changed.connect(self.refresh)
        self.setMinimumWidth(480)
        self.refresh()

    def refresh(self) -> None:
        """Show how much both agree."""
        comparison = self._session.comparison
        under_way = comparison.state is not None
        for widget in (self.table, self.following, self.theirs, self.mine, self.everywhere, self.again, self.done_):
            widget.setEnabled(under_way)
        if not under_way:
            self.said.setText("Choose where the other labels of this scan are.")
            self.table.setRowCount(0)
            return
        if not self.isVisible():
            return
        left = int(comparison.differences().sum())
        self.said.setText(f"With {comparison.name}: {left:,} voxels differ and are not decided.")

    def measure(self) -> None:
        """Show how much both agree, class by class: with surfaces, which take seconds on large scans."""
        found = self._session.comparison.agreement()
        self.table.setRowCount(len(found))
        for row, each in enumerate(found):
            for column, text in enumerate((each.name, f"{each.dice:.3f}", f"{each.nsd:.3f}", f"{each.differing:,}")):
                self.table.setItem(row, column, QTableWidgetItem(text))

    def showEvent(self, event: Any) -> None:
        """Compute what was not while nobody looked."""
        super().showEvent(event)
        self.refresh()

    def done(self, result: int) -> None:
        """Put the other labels away with the dialog."""
        self._session.comparison.end()
        super().done(result)

    def _slices(self) -> slice:
        here = self._session.visible_slice
        return slice(None) if self.everywhere.isChecked() else slice(here, here + 1)

    def _take(self) -> None:
        self._session.comparison.take_theirs(self._slices())

    def _keep(self) -> None:
        self._session.comparison.keep_mine(self._slices())

    def _go_on(self) -> None:
        index = self._session.comparison.next_slice()
        if index is not None:
            self._session.go_to(index)

    def _ask_project(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "The other reader's project")
        if chosen:
            self._session.comparison.with_project(Path(chosen))
            self.measure()

    def _ask_mask(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "The other reader's mask")
        if chosen:
            self._session.comparison.with_mask(Path(chosen))
            self.measure()
