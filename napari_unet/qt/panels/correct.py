"""The correcting hand: class, tool, undo, accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qtpy.QtCore import Qt
from qtpy.QtGui import QCursor
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QLabel,
    QMenu,
    QPushButton,
    QRadioButton,
    QSizePolicy,
    QWidget,
)

from napari_unet.domain.errors import SessionError
from napari_unet.qt.hand import Hand
from napari_unet.qt.on_screen import OnScreen
from napari_unet.qt.panels.classes import ClassesDialog
from napari_unet.qt.panels.clean_up import CleanUpDialog
from napari_unet.qt.panels.earlier import EarlierDialog
from napari_unet.qt.panels.parts import Calm, Panel, button, colour_icon, line, tool
from napari_unet.qt.panels.ribbon import SliceRibbon
from napari_unet.qt.panels.tools import ToolsDialog
from napari_unet.qt.scan_layers import ScanLayers
from napari_unet.session.classes import change_classes, edited_schema
from napari_unet.session.session import Session
from napari_unet.session.state import ScanState

# napari's name of the tool, what stands on the button, what it does.
TOOLS = (
    ("paint", "Brush", "Paint with the chosen class. [ and ] change the size."),
    ("smart", "Smart", "A brush that stops at edges: go along the middle of the structure; it is cut as you let go."),
    ("erase", "Erase", "Erase. [ and ] change the size."),
    ("fill", "Fill", "Fill the region that is clicked."),
    ("polygon", "Polygon", "Click corners around a region, then press Enter."),
    ("piece", "Piece", "Click on a connected piece to accept it, remove it, or give it to another class."),
    ("pan_zoom", "Move", "Move and zoom, or hold the space bar."),
)
_RULES = (
    ("unlocked", "all but locked"),
    ("empty", "only empty"),
    ("all", "everything"),
)
_SUGGESTIONS = (("spacing", "evenly spaced"), ("unsure", "least sure first"), ("random", "at random"))
_LARGEST_BRUSH = 500
# Letters of a class's name that there is room for, in a line of its own and beside another one.
_LONGEST_NAME, _LONGEST_OF_TWO = 32, 12

Guard = Callable[[Callable[..., object]], Callable[..., None]]


class CorrectPanel(Panel):
    """Class picker, brushes and tools, undo, Live, the slice ribbon, and Accept."""

    def __init__(self, session: Session, layers: ScanLayers, on_screen: OnScreen, hand: Hand, guard: Guard) -> None:
        super().__init__("Correct")
        self._session, self._guard = session, guard
        self._layers, self._on_screen, self._hand = layers, on_screen, hand
        self.clean_up: CleanUpDialog | None = None
        self.earlier: EarlierDialog | None = None
        self.dialog: ToolsDialog | None = None
        self.classes: ClassesDialog | None = None
        self._classes = QWidget()
        self._grid = QGridLayout(self._classes)
        self._grid.setContentsMargins(0, 0, 0, 0)
        # Where the dock is short it scrolls; what is in it is not pressed together.
        self._classes.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._group: QButtonGroup | None = None
        # First, since the classes are made anew: Tab goes from what was there before them to them.
        edit = tool("Classes...", "Name the classes, add or remove some.", guard(self.open_classes))
        self._before_classes = edit
        self.body.addWidget(edit)
        self.body.addWidget(self._classes)
        self.tools = {
            mode: tool(text, tip, guard(lambda mode=mode: self._take(mode)), checkable=True)
            for mode, text, tip in TOOLS
        }
        self.row(*list(self.tools.values())[:4])
        self.row(*list(self.tools.values())[4:], self._ball_box())
        self._add_brush_row()
        self.row(
            tool("Undo", "Take back the last step: a stroke, a proposal, an acceptance.", guard(hand.undo)),
            tool("Redo", "Do it again.", guard(hand.redo)),
            tool(
                "Tools...", "Between slices, grow, threshold, margin, split...; with a preview.", guard(self.open_tools)
            ),
            tool("Clean up...", "Remove islands, fill holes, smooth; with a preview.", guard(self.open_clean_up)),
            self._live_box(),
        )
        self.ribbon = SliceRibbon(session, on_screen.go_to)
        self.body.addWidget(self.ribbon)
        self.accept_slice = button(
            "Accept slice", "This slice is right as it stands: learn from it.", guard(self.accept_visible)
        )
        self.accept_scan = button("Accept scan", "All slices are right as they stand.", guard(self.accept_all))
        self.row(self.accept_slice, self.accept_scan)
        self.next = button("Next to check", "Go to the slice where a look pays most.", guard(session.next_to_check))
        self.how = QComboBox()
        self.how.setAccessibleName("How Next chooses")
        self.how.setToolTip("Regular spacing; where the model is least sure; or at random.")
        for value, text in _SUGGESTIONS:
            self.how.addItem(text, value)
        self.how.activated.connect(lambda _: setattr(session, "suggestion", self.how.currentData()))
        Calm(self.how)
        self.row(self.next, self.how)
        self._said = line("", "Accepted slices")
        earlier = tool("Earlier...", "What was done to this scan, and back to any of it.", guard(self.open_earlier))
        self.row(self._said, earlier).setStretch(0, 1)
        session.schema_changed.connect(self._list_classes)
        hand.changed.connect(self._show_tool)
        hand.piece_clicked.connect(self._ask_about_piece)
        session.tools.rules_changed.connect(self._show_rules)
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

    def open_tools(self) -> None:
        """Open the dialog of the tools that change more than a stroke."""
        if self.dialog is None:
            self.dialog = ToolsDialog(self._session, self._layers, self._guard, self)
        self.dialog.refresh()
        self.dialog.show()
        self.dialog.raise_()

    def open_classes(self) -> None:
        """Open the list of classes, to change it."""
        if self.classes is None:
            self.classes = ClassesDialog(self._session, self)
        self.classes.show()
        self.classes.raise_()

    def close_dialogs(self) -> None:
        """Close the dialogs that are open."""
        for dialog in (self.clean_up, self.earlier, self.dialog, self.classes):
            if dialog is not None:
                dialog.close()

    def open_earlier(self) -> None:
        """Open the list of what was done to the active scan."""
        if self.earlier is None:
            self.earlier = EarlierDialog(self._session, self._guard, self)
        self.earlier.refresh()
        self.earlier.show()
        self.earlier.raise_()

    def _add_brush_row(self) -> None:
        self.size = QDoubleSpinBox()
        self.size.setRange(0.01, _LARGEST_BRUSH)
        self.size.setDecimals(1)
        self.size.setKeyboardTracking(False)
        self.size.setAccessibleName("Brush size")
        self.size.setToolTip("Diameter of brush and eraser; [ and ] change it too.")
        self.size.valueChanged.connect(self._guard(self._hand.set_brush_mm))
        self.rule = QComboBox()
        # Its own measure forgets napari's margins.
        self.rule.setMinimumContentsLength(max(len(text) for _, text in _RULES))
        self.rule.setAccessibleName("What may be overwritten")
        self.rule.setToolTip("What brushes and tools may paint over.")
        for value, text in _RULES:
            self.rule.addItem(text, value)
        self.rule.activated.connect(lambda _: self._guard(self._session.tools.set_rule)(self.rule.currentData()))
        for editor in (self.size, self.rule):
            Calm(editor)
        self.row(QLabel("Size"), self.size, QLabel("Over"), self.rule).setStretch(3, 1)

    def _ball_box(self) -> QCheckBox:
        self.ball = QCheckBox("3D")
        self.ball.setAccessibleName("Brushes are balls")
        self.ball.setToolTip("Brushes and eraser reach into the slices around: balls instead of discs, in millimetres.")
        self.ball.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.ball.toggled.connect(self._guard(self._hand.set_ball))
        return self.ball

    def _ask_about_piece(self, state: ScanState, index: tuple[int, ...]) -> None:
        """Offer what can be done with the piece that was clicked."""
        value = int(state.annotation.labels[index])
        if not value:
            return
        self.piece_menu(state, index, value).popup(QCursor.pos())

    def piece_menu(self, state: ScanState, index: tuple[int, ...], value: int) -> QMenu:
        """Return the menu for the piece of a class at a voxel."""
        tools, menu = self._session.tools, QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        offered: list[tuple[str, Callable[..., object]]] = [
            ("Accept this piece", partial(tools.accept_piece, state, index)),
            ("Remove this piece", partial(tools.remove_piece, state, index)),
        ]
        for each in self._session.schema.classes:
            if each.id != value:
                offered.append((f"It is {each.name}", partial(tools.recolour_piece, state, index, each.id)))
        for text, action in offered:
            run = self._guard(action)
            made = menu.addAction(text)
            assert made is not None
            made.triggered.connect(lambda _=False, run=run: run())
        return menu

    def _turn_lock(self, value: int) -> None:
        self._session.tools.lock(value, value not in self._session.tools.locked)

    def _show_rules(self) -> None:
        tools = self._session.tools
        self.rule.setCurrentIndex(self.rule.findData(tools.rule))
        for value, lock in self.locks.items():
            lock.setChecked(value in tools.locked)
            lock.setText("locked" if value in tools.locked else "lock")

    def _live_box(self) -> QCheckBox:
        self.live = QCheckBox("Live")
        self.live.setAccessibleName("Live")
        self.live.setToolTip(
            "After each stroke the slice on screen is proposed anew and follows it. The model learns by Fine-tune only."
        )
        self.live.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.live.toggled.connect(self._guard(self._session.live.switch))
        return self.live

    def refresh(self) -> None:
        """Show the active scan's state."""
        state = self._session.active
        for widget in (self.accept_slice, self.accept_scan, self.next):
            widget.setEnabled(state is not None)
        single = state is not None and state.scan.n_slices == 1
        self.ribbon.setVisible(state is not None and not single)
        for widget in (self.accept_scan, self.how):
            widget.setVisible(not single)
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
            if not self._on_screen.shows_slices(state):
                raise SessionError("The slice to accept is not on screen: turn the view to the acquired plane first.")
            index = self._on_screen.slice_of(state)
            self._session.accept_slices(state, [index], accepted=not state.annotation.accepted[index])

    def accept_all(self) -> None:
        """Accept all slices of the active scan."""
        if self._session.active is not None:
            self._session.accept_slices(self._session.active)

    def _take(self, mode: str) -> None:
        self._hand.take(mode)

    def _pick(self, value: int) -> None:
        layer = self._layers.active_labels
        if layer is not None:
            layer.selected_label = value
            if self._hand.tool not in ("paint", "smart", "fill", "polygon"):
                self._hand.take("paint")

    def _show_tool(self) -> None:
        """Show which tool and which class the active layer has in hand, whoever chose them."""
        layer = self._layers.active_labels
        for mode, each in self.tools.items():
            each.setEnabled(layer is not None)
            each.setChecked(mode == self._hand.tool)
        for value, choice in self.choices.items():
            if layer is not None and layer.selected_label == value:
                choice.setChecked(True)
        self.size.setEnabled(layer is not None)
        self.ball.setEnabled(layer is not None and layer.ndim == 3)
        diameter, state = self._hand.brush_mm, self._session.active
        if diameter is not None and state is not None:
            self.size.blockSignals(True)
            self.size.setSuffix(" mm" if state.scan.geometry.spacing is not None else " px")
            self.size.setValue(diameter)
            self.size.blockSignals(False)

    def _list_classes(self) -> None:
        while self._grid.count():
            old = self._grid.takeAt(0).widget()
            # It would be drawn under the new ones until it is deleted.
            old.hide()
            old.deleteLater()
        self._group = QButtonGroup(self)
        self.choices: dict[int, QRadioButton] = {}
        self.locks: dict[int, QPushButton] = {}
        classes = self._session.schema.classes
        columns = 2 if all(len(each.name) <= _LONGEST_OF_TWO for each in classes) else 1
        for position, each in enumerate(classes):
            short = each.name if len(each.name) <= _LONGEST_NAME else f"{each.name[: _LONGEST_NAME - 3]}..."
            choice = QRadioButton(short)
            choice.setToolTip(f"Paint with {each.name}.")
            choice.setIcon(colour_icon(each.colour))
            choice.setAccessibleName(f"Class {each.name}")
            choice.setChecked(position == 0)
            choice.clicked.connect(lambda _=False, value=each.id: self._guard(self._pick)(value))
            choice.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            self._group.addButton(choice)
            self.choices[each.id] = choice
            lock = tool(
                "lock",
                f"Brushes and tools neither add to {each.name} nor take from it; proposals may.",
                partial(self._turn_lock, each.id),
                checkable=True,
            )
            lock.setAccessibleName(f"Lock {each.name}")
            self.locks[each.id] = lock
            row, column = divmod(position, columns)
            self._grid.addWidget(choice, row, 3 * column)
            self._grid.addWidget(lock, row, 3 * column + 1)
        self._grid.setColumnStretch(0, 1)
        self._grid.setColumnStretch(3, columns - 1)
        before: QWidget = self._before_classes
        for after in (*self.choices.values(), *self.locks.values()):
            self.setTabOrder(before, after)
            before = after
        self._show_rules()
        self._show_tool()

    def rename_classes(self, names: Sequence[str]) -> None:
        """Rename, add or remove classes; what is painted keeps its meaning.

        Raises
        ------
        SessionError
            See :func:`~napari_unet.session.classes.edited_schema`; a class to be removed is still on a scan.
        """
        change_classes(self._session, edited_schema(self._session.schema, names, self._session.desk.former))
