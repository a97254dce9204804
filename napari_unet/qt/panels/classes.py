"""The list of classes: names, colours, order; what changes is carried out at once, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QComboBox,
    QDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.labels import PALETTE, LabelSchema
from napari_unet.qt.bridge import guarded
from napari_unet.qt.panels.parts import button, colour_icon, line
from napari_unet.session.class_presets import CLASS_PRESETS
from napari_unet.session.classes import change_classes, enlarged, from_preset, moved, recoloured, renamed, without
from napari_unet.session.session import Session

_FIRST = "Double click a name to change it. Labels keep the numbers that they have in files."
_ICON = 16


class ClassesDialog(QDialog):
    """One row per class; what is chosen below is done to the selected one."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Classes")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session = session
        self.colours: QColorDialog | None = None
        self.preset = QComboBox()
        self.preset.setAccessibleName("Classes by anatomy")
        self.preset.setToolTip("Begin with classes that are common. Where there are labels these get the new names.")
        self.preset.addItems(["choose...", *CLASS_PRESETS])
        self.preset.activated.connect(lambda _: self._do(self._take_preset))
        self.table = self._make_table()
        self.colour = self._button("Colour...", "Choose another colour for this class.", self._ask_colour)
        self.up = self._button("Up", "Move this class up in the list.", lambda: self._move(-1))
        self.down = self._button("Down", "Move this class down in the list.", lambda: self._move(1))
        self.add = self._button("Add", "One more class.", self._add)
        self.remove = self._button("Remove", "Take this class off the list; nothing may carry its label.", self._remove)
        self.said = line(_FIRST, "What was refused, and why")
        self.said.setMinimumHeight(2 * self.said.fontMetrics().lineSpacing() + 4)
        first, last = QHBoxLayout(), QHBoxLayout()
        first.addWidget(QLabel("By anatomy"))
        first.addWidget(self.preset, 1)
        for each in (self.colour, self.up, self.down, self.add, self.remove):
            last.addWidget(each)
        layout = QVBoxLayout(self)
        layout.addLayout(first)
        layout.addWidget(self.table)
        layout.addLayout(last)
        layout.addWidget(self.said)
        session.schema_changed.connect(self.refresh)
        self.setMinimumWidth(420)
        self.refresh()
        self.table.selectRow(0)

    def refresh(self) -> None:
        """List the classes."""
        chosen, classes = self.chosen(), self._session.schema.classes
        self.table.blockSignals(True)
        self.table.setRowCount(len(classes))
        for row, each in enumerate(classes):
            # The item that is being written into must stay.
            name, number = (self.table.item(row, column) or QTableWidgetItem() for column in (0, 1))
            name.setText(each.name)
            name.setIcon(colour_icon(each.colour, _ICON))
            name.setData(Qt.ItemDataRole.UserRole, each.id)
            number.setText(str(each.id))
            number.setFlags(number.flags() & ~Qt.ItemFlag.ItemIsEditable)
            for column, item in enumerate((name, number)):
                if item.tableWidget() is None:
                    self.table.setItem(row, column, item)
        self.table.blockSignals(False)
        self._choose(chosen)

    def chosen(self) -> int | None:
        """Return the id of the selected class."""
        item = self.table.item(self.table.currentRow(), 0)
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    def _make_table(self) -> QTableWidget:
        table = QTableWidget(0, 2)
        table.setHorizontalHeaderLabels(["Class", "Label"])
        table.setAccessibleName("Classes")
        table.setToolTip("Double click a name, or press F2, to change it.")
        table.setIconSize(QSize(_ICON, _ICON))
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setTabKeyNavigation(False)
        table.verticalHeader().hide()
        table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        table.itemChanged.connect(lambda item: self._do(lambda: self._rename(item)))
        table.itemSelectionChanged.connect(self._selected)
        return table

    def _button(self, text: str, tip: str, action: Callable[[], None]) -> QWidget:
        made = button(text, tip, lambda: self._do(action))
        # Enter ends the writing of a name and presses nothing.
        made.setAutoDefault(False)
        return made

    def _do(self, action: Callable[[], None]) -> None:
        self.said.setText(_FIRST)
        guarded(self.said.setText, action)()
        # What was refused goes back to what it was.
        self.refresh()

    def _change(self, schema: LabelSchema) -> None:
        change_classes(self._session, schema)

    def _rename(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            self._change(renamed(self._session.schema, int(item.data(Qt.ItemDataRole.UserRole)), item.text()))

    def _add(self) -> None:
        self._change(enlarged(self._session.schema, self._session.desk.former))
        self._choose(self._session.schema.ids[-1])
        self.table.editItem(self.table.item(self.table.currentRow(), 0))

    def _remove(self) -> None:
        value = self.chosen()
        if value is not None:
            self._change(without(self._session.schema, value))

    def _move(self, by: int) -> None:
        value = self.chosen()
        if value is not None:
            self._change(moved(self._session.schema, value, by))

    def _take_preset(self) -> None:
        chosen = self.preset.currentText()
        self.preset.setCurrentIndex(0)
        if chosen in CLASS_PRESETS:
            self._change(from_preset(self._session, CLASS_PRESETS[chosen]))

    def _ask_colour(self) -> None:
        value = self.chosen()
        each = next((each for each in self._session.schema.classes if each.id == value), None)
        if each is None:
            return
        self.colours = QColorDialog(QColor.fromRgbF(*each.colour), self)
        self.colours.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.colours.setWindowTitle(f"Colour of {each.name}")
        for place, colour in enumerate(PALETTE):
            # Those that people of every colour vision tell apart, beside what else there is.
            self.colours.setCustomColor(place, QColor.fromRgbF(*colour))
        self.colours.colorSelected.connect(lambda colour: self._do(lambda: self._recolour(each.id, colour)))
        self.colours.open()

    def _recolour(self, value: int, colour: QColor) -> None:
        self._change(recoloured(self._session.schema, value, (colour.redF(), colour.greenF(), colour.blueF())))

    def _choose(self, value: int | None) -> None:
        ids = self._session.schema.ids
        self.table.selectRow(ids.index(value) if value in ids else min(self.table.currentRow(), len(ids) - 1))
        self._selected()

    def _selected(self) -> None:
        row, n = self.table.currentRow(), self.table.rowCount()
        for each in (self.colour, self.remove):
            each.setEnabled(row >= 0)
        self.remove.setEnabled(row >= 0 and n > 1)
        self.up.setEnabled(row > 0)
        self.down.setEnabled(0 <= row < n - 1)
