"""The correcting hand: class, tool, undo, accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QGridLayout, QInputDialog, QRadioButton, QWidget

from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import PALETTE, LabelClass, LabelSchema
from napari_unet.qt.layers import LayerBinder
from napari_unet.qt.panels.clean_up import CleanUpDialog
from napari_unet.qt.panels.earlier import EarlierDialog
from napari_unet.qt.panels.parts import Panel, button, colour_icon, line, tool
from napari_unet.qt.panels.ribbon import SliceRibbon
from napari_unet.session.session import Session

# napari's name of the tool, what stands on the button, what it does.
_TOOLS = (
    ("paint", "Brush", "Paint with the chosen class (2). [ and ] change the size."),
    ("erase", "Erase", "Erase (1). [ and ] change the size."),
    ("fill", "Fill", "Fill the region that is clicked (4)."),
    ("polygon", "Polygon", "Click corners around a region, then press Enter (3)."),
    ("pan_zoom", "Move", "Move and zoom (6), or hold the space bar."),
)

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class CorrectPanel(Panel):
    """Class picker, napari's brush tools, undo, Live, the slice ribbon, and Accept."""

    def __init__(self, session: Session, binder: LayerBinder, guard: Guard, go_to: Callable[[int], None]) -> None:
        super().__init__("Correct")
        self._session, self._binder, self._guard = session, binder, guard
        self.clean_up: CleanUpDialog | None = None
        self.earlier: EarlierDialog | None = None
        self._classes = QWidget()
        self._grid = QGridLayout(self._classes)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._group: QButtonGroup | None = None
        self.body.addWidget(self._classes)
        self.tools = {
            mode: tool(text, tip, guard(lambda mode=mode: self._take(mode)), checkable=True)
            for mode, text, tip in _TOOLS
        }
        self.row(*self.tools.values())
        self.row(
            tool("Undo", "Take back the last step: a stroke, a proposal, an acceptance (Ctrl+Z).", guard(binder.undo)),
            tool("Redo", "Do it again (Ctrl+Shift+Z).", guard(binder.redo)),
            tool("Classes...", "Name the classes, or add one.", guard(self._edit_classes)),
            tool("Clean up...", "Remove islands, fill holes, smooth; with a preview.", guard(self.open_clean_up)),
            self._live_box(),
        )
        self.ribbon = SliceRibbon(session, go_to)
        self.body.addWidget(self.ribbon)
        self.accept_slice = button(
            "Accept slice", "This slice is right as it stands: learn from it.", guard(self.accept_visible), "Enter"
        )
        self.accept_scan = button("Accept scan", "All slices are right as they stand.", guard(self._accept_all))
        self.row(self.accept_slice, self.accept_scan)
        self._said = line("", "Accepted slices")
        earlier = tool("Earlier...", "What was done to this scan, and back to any of it.", guard(self.open_earlier))
        self.row(self._said, earlier).setStretch(0, 1)
        session.schema_changed.connect(self._list_classes)
        binder.tool_changed.connect(self._show_tool)
        for signal in (session.active_changed, session.acceptance_changed, session.labels_changed):
            signal.connect(lambda *_: self.refresh())
        self._list_classes()
        self.refresh()

    def open_clean_up(self) -> None:
        """Open the dialog that cleans the active scan's labels up."""
        if self.clean_up is None:
            self.clean_up = CleanUpDialog(self._session, self._guard, self)
        self.clean_up.refresh()
        self.clean_up.show()
        self.clean_up.raise_()

    def close_dialogs(self) -> None:
        """Close the dialogs that are open."""
        for dialog in (self.clean_up, self.earlier):
            if dialog is not None:
                dialog.close()

    def open_earlier(self) -> None:
        """Open the list of what was done to the active scan."""
        if self.earlier is None:
            self.earlier = EarlierDialog(self._session, self._guard, self)
        self.earlier.refresh()
        self.earlier.show()
        self.earlier.raise_()

    def _live_box(self) -> QCheckBox:
        self.live = QCheckBox("Live")
        self.live.setAccessibleName("Live")
        self.live.setToolTip(
            "After each stroke the slice on screen is proposed anew and follows it. The model learns by Fine-tune only."
        )
        self.live.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.live.toggled.connect(self._guard(self._session.set_live))
        return self.live

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
            if not self._binder.shows_slices(state):
                raise SessionError("The slice to accept is not on screen: turn the view to the acquired plane first.")
            index = self._binder.slice_on_screen(state)
            self._session.accept_slices(state, [index], accepted=not state.annotation.accepted[index])

    def _accept_all(self) -> None:
        if self._session.active is not None:
            self._session.accept_slices(self._session.active)

    def _take(self, mode: str) -> None:
        layer = self._binder.active_labels
        if layer is not None:
            layer.visible = True
            layer.mode = mode
        self._show_tool()

    def _pick(self, value: int) -> None:
        layer = self._binder.active_labels
        if layer is not None:
            layer.selected_label = value
            if str(layer.mode) not in ("paint", "fill", "polygon"):
                layer.mode = "paint"

    def _show_tool(self) -> None:
        """Show which tool and which class the active layer has in hand, whoever chose them."""
        layer = self._binder.active_labels
        for mode, each in self.tools.items():
            each.setEnabled(layer is not None)
            each.setChecked(mode == self._binder.mode)
        for value, choice in self.choices.items():
            if layer is not None and layer.selected_label == value:
                choice.setChecked(True)

    def _list_classes(self) -> None:
        while self._grid.count():
            old = self._grid.takeAt(0).widget()
            # It would be drawn under the new ones until it is deleted.
            old.hide()
            old.deleteLater()
        self._group = QButtonGroup(self)
        self.choices: dict[int, QRadioButton] = {}
        for position, each in enumerate(self._session.schema.classes):
            choice = QRadioButton(each.name)
            choice.setIcon(colour_icon(each.colour))
            choice.setAccessibleName(f"Class {each.name}")
            choice.setChecked(position == 0)
            choice.clicked.connect(lambda _=False, value=each.id: self._guard(self._pick)(value))
            choice.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            self._group.addButton(choice)
            self.choices[each.id] = choice
            self._grid.addWidget(choice, position // 3, position % 3)
        self._show_tool()

    def _edit_classes(self) -> None:
        names = ", ".join(c.name for c in self._session.schema.classes)
        text, accepted = QInputDialog.getText(self, "Classes", "Names, separated by commas:", text=names)
        if accepted:
            self.rename_classes([name.strip() for name in text.split(",") if name.strip()])

    def rename_classes(self, names: Sequence[str]) -> None:
        """Rename, add or remove classes; what is painted keeps its meaning.

        Raises
        ------
        SessionError
            See :func:`edited_schema`; a class to be removed is still on a scan.
        """
        schema = edited_schema(self._session.schema, names)
        gone = [c for c in self._session.schema.classes if c.id not in schema.ids]
        for each in gone:
            if any(np.any(state.annotation.labels == each.id) for state in self._session.scans):
                raise SessionError(f"Some voxels are labelled {each.name}: erase them before you remove the class.")
        self._session.set_schema(schema)


def edited_schema(schema: LabelSchema, names: Sequence[str]) -> LabelSchema:
    """Return a schema with new names: as many or more rename in place and add, fewer remove those not named.

    Raises
    ------
    SessionError
        No name, one name twice, or names missing and others changed at once.
    """
    if not names or len(set(names)) != len(names):
        raise SessionError("Give each class a name of its own, such as: liver, tumour.")
    if len(names) < len(schema.classes):
        kept = [c for c in schema.classes if c.name in names]
        if len(kept) != len(names):
            raise SessionError("To remove a class take its name away and leave the other names as they are.")
        return LabelSchema(classes=tuple(kept))
    ids = [*schema.ids, *range(max(schema.ids) + 1, max(schema.ids) + 1 + len(names) - len(schema.ids))]
    fresh = iter([colour for colour in PALETTE if colour not in {c.colour for c in schema.classes}])
    colours = [c.colour for c in schema.classes]
    colours += [next(fresh, PALETTE[(value - 1) % len(PALETTE)]) for value in ids[len(colours) :]]
    return LabelSchema(
        classes=tuple(LabelClass(id=i, name=n, colour=c) for i, n, c in zip(ids, names, colours, strict=True))
    )
