"""The correcting hand: class, tool, undo, accept."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtWidgets import QButtonGroup, QGridLayout, QInputDialog, QRadioButton, QWidget

from napari_unet.domain.labels import LabelSchema
from napari_unet.qt.layers import LayerBinder
from napari_unet.qt.panels.parts import Panel, button, colour_icon, line, tool
from napari_unet.qt.panels.ribbon import SliceRibbon
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class CorrectPanel(Panel):
    """Class picker, napari's brush tools, undo, the slice ribbon, and Accept."""

    def __init__(self, session: Session, binder: LayerBinder, guard: Guard, go_to: Callable[[int], None]) -> None:
        super().__init__("Correct")
        self._session, self._binder, self._guard = session, binder, guard
        self._classes = QWidget()
        self._grid = QGridLayout(self._classes)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._group: QButtonGroup | None = None
        self.body.addWidget(self._classes)
        self.row(
            tool("brush", "Paint with the chosen class  (2)", lambda: self._mode("paint")),
            tool("erase", "Erase  (1)", lambda: self._mode("erase")),
            tool("fill", "Fill a region  (4)", lambda: self._mode("fill")),
            tool("move", "Move and zoom  (6)", lambda: self._mode("pan_zoom")),
            tool("undo", "Take back the last step  (Ctrl+Z)", guard(binder.undo)),
            tool("redo", "Do it again  (Ctrl+Shift+Z)", guard(binder.redo)),
            tool("classes...", "Name the classes", guard(self._edit_classes)),
        )
        self.ribbon = SliceRibbon(session, go_to)
        self.body.addWidget(self.ribbon)
        self.accept_slice = button(
            "Accept slice", "This slice is right as it stands: learn from it.", guard(self.accept_visible), "Enter"
        )
        self.accept_scan = button("Accept scan", "All slices are right as they stand.", guard(self._accept_all))
        self.row(self.accept_slice, self.accept_scan)
        self._said = line("", "Accepted slices")
        self.body.addWidget(self._said)
        session.schema_changed.connect(self._list_classes)
        for signal in (session.active_changed, session.acceptance_changed, session.labels_changed):
            signal.connect(lambda *_: self.refresh())
        self._list_classes()
        self.refresh()

    def refresh(self) -> None:
        """Show the active scan's state."""
        state = self._session.active
        for widget in (self.accept_slice, self.accept_scan):
            widget.setEnabled(state is not None)
        single = state is not None and state.scan.n_slices == 1
        self.ribbon.setVisible(state is not None and not single)
        self.accept_scan.setVisible(not single)
        if state is None:
            self._said.setText("")
        else:
            n, total = state.n_accepted, state.scan.n_slices
            self._said.setText(f"{n} of {total} slice{'s' if total != 1 else ''} accepted")
        self.ribbon.update()

    def accept_visible(self) -> None:
        """Accept the slice on screen, or open it again."""
        state = self._session.active
        if state is not None:
            index = self._binder.slice_on_screen(state)
            self._session.accept_slices(state, [index], accepted=not state.annotation.accepted[index])

    def _accept_all(self) -> None:
        if self._session.active is not None:
            self._session.accept_slices(self._session.active)

    def _mode(self, mode: str) -> None:
        layer = self._binder.labels_layer(self._session.active) if self._session.active else None
        if layer is not None:
            layer.mode = mode

    def _list_classes(self) -> None:
        while self._grid.count():
            self._grid.takeAt(0).widget().deleteLater()
        self._group = QButtonGroup(self)
        for position, each in enumerate(self._session.schema.classes):
            choice = QRadioButton(each.name)
            choice.setIcon(colour_icon(each.colour))
            choice.setAccessibleName(f"Class {each.name}")
            choice.setChecked(position == 0)
            choice.clicked.connect(lambda _=False, value=each.id: self._pick(value))
            self._group.addButton(choice)
            self._grid.addWidget(choice, position // 3, position % 3)

    def _pick(self, value: int) -> None:
        layer = self._binder.labels_layer(self._session.active) if self._session.active else None
        if layer is not None:
            layer.selected_label = value
            if str(layer.mode) not in ("paint", "fill", "polygon"):
                layer.mode = "paint"

    def _edit_classes(self) -> None:
        names = ", ".join(c.name for c in self._session.schema.classes)
        text, accepted = QInputDialog.getText(self, "Classes", "Names, separated by commas:", text=names)
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if accepted and chosen:
            self._session.set_schema(LabelSchema.of(*chosen))
