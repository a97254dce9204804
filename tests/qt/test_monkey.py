"""Somebody who does anything in any order: nothing breaks, nothing is left over, and every voxel is accounted for."""

from __future__ import annotations

import logging
import os
from contextlib import closing

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_unet.domain.annotation import Annotation
from napari_unet.domain.labels import LabelSchema
from napari_unet.editing.tools import TOOLS
from napari_unet.session.recalling import replayed
from napari_unet.session.state import Flag
from napari_unet.storage.verify import verify
from tests.qt.conftest import make_scan

pytestmark = pytest.mark.gui

SHAPE = (6, 30, 36)


class Monkey:
    """Picks what to do next, reproducibly."""

    def __init__(self, desk, seed):
        self.desk, self.random = desk, np.random.default_rng(seed)
        self.done: list[str] = []

    def voxel(self):
        return tuple(float(self.random.integers(n)) for n in SHAPE)

    def on_screen(self):
        """A voxel of the slice on screen."""
        here = self.desk.widget.on_screen.slice_of(self.desk.session.active)
        return (float(here), *self.voxel()[1:])

    def one_of(self, things):
        things = list(things)
        return things[int(self.random.integers(len(things)))]

    def act(self):
        names = [name for name in dir(self) if name.startswith("do_")]
        name = self.one_of(names)
        self.done.append(name)
        getattr(self, name)()

    def do_stroke(self):
        self.desk.drag(*(self.on_screen() for _ in range(int(self.random.integers(1, 4)))))
        popup = QApplication.activePopupWidget()
        if popup is not None:
            popup.close()

    do_another_stroke = do_third_stroke = do_stroke

    def do_key(self):
        plain = [Qt.Key.Key_1, Qt.Key.Key_2, Qt.Key.Key_4, Qt.Key.Key_6, Qt.Key.Key_BracketLeft]
        plain += [Qt.Key.Key_BracketRight, Qt.Key.Key_N, Qt.Key.Key_B, Qt.Key.Key_Return, Qt.Key.Key_P]
        self.desk.key(self.one_of(plain))

    def do_undo_or_redo(self):
        modifiers = Qt.KeyboardModifier.ControlModifier
        if self.random.random() < 0.4:
            modifiers |= Qt.KeyboardModifier.ShiftModifier
        self.desk.key(Qt.Key.Key_Z, modifiers)

    def do_take_a_tool(self):
        self.desk.push(self.one_of(self.desk.widget.correct.tools.values()))

    def do_choose_a_class(self):
        self.desk.push(self.one_of(self.desk.widget.correct.choices.values()))

    def do_lock(self):
        self.desk.push(self.one_of(self.desk.widget.correct.locks.values()))

    def do_rule(self):
        self.desk.session.tools.set_rule(self.one_of(("all", "unlocked", "empty")))

    def do_ball(self):
        self.desk.push(self.desk.widget.correct.ball)

    def do_size(self):
        self.desk.widget.correct.size.setValue(float(self.random.uniform(2, 30)))

    def do_scroll(self):
        self.desk.widget.on_screen.go_to(int(self.random.integers(SHAPE[0])))

    def do_turn(self):
        order = self.one_of(((0, 1, 2), (0, 1, 2), (1, 0, 2), (2, 0, 1)))
        self.desk.viewer.dims.order = order
        self.desk.spin()

    def do_tool(self):
        tools = self.desk.session.tools
        settings = TOOLS[self.one_of(TOOLS)]()
        value = self.one_of(self.desk.session.schema.ids)
        self.desk.widget._guard(lambda: tools.look(settings, value, "slice"))()
        if self.random.random() < 0.7 and tools.preview is not None:
            self.desk.widget._guard(tools.apply)()

    def do_piece(self):
        state, tools = self.desk.session.active, self.desk.session.tools
        point = tuple(int(at) for at in self.voxel())
        action = self.one_of((tools.accept_piece, tools.remove_piece))
        self.desk.widget._guard(lambda: action(state, point))()

    def do_accept(self):
        self.desk.push(self.desk.widget.correct.accept_slice)

    def do_another_scan(self):
        self.desk.session.activate(self.one_of(self.desk.session.scans))
        self.desk.spin()

    def do_compare(self):
        session = self.desk.session
        if session.comparison.state is None:
            others = self.random.integers(0, 3, SHAPE).astype(np.uint8)
            session.comparison.begin(session.active, others, "somebody")
        else:
            here = session.visible_slice
            self.one_of((session.comparison.take_theirs, session.comparison.keep_mine))(slice(here, here + 1))
            session.comparison.end()
        self.desk.spin()

    def do_mark(self):
        self.desk.session.set_flag(self.desk.session.active, Flag(int(self.random.integers(1, 4))))

    def do_dialog(self):
        correct, project = self.desk.widget.correct, self.desk.widget.project
        self.one_of((correct.open_tools, correct.open_earlier, correct.open_clean_up, project.open_scans))()
        self.desk.spin()
        for widget in QApplication.topLevelWidgets():
            if widget.isVisible() and widget is not self.desk.viewer.window._qt_window and widget.isWindow():
                widget.close()


def disagreements(desk):
    """Where what is shown, what the session says and what the journal makes are not the same labels."""
    found = []
    with closing(desk.session.ledger.journal()) as journal:
        for number, state in enumerate(desk.session.scans):
            mine, layer = state.annotation, desk.widget.layers.labels(state)
            known = journal.scan(state.scan.fingerprint)
            kept = replayed(journal, known, None)[0].annotation if known else Annotation.empty(SHAPE, 0)
            sides = {
                "shown": (layer.data, mine.labels),
                "counted": (state.labelled, (mine.labels > 0).sum(axis=(1, 2))),
                **{name: (getattr(kept, name), getattr(mine, name)) for name in ("labels", "painted", "accepted")},
            }
            found += [f"scan {number}: {name}" for name, (one, two) in sides.items() if not np.array_equal(one, two)]
    return found


@pytest.fixture
def errors():
    """What the program has logged as errors."""
    told = []

    class Listener(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())

    listener = Listener(logging.ERROR)
    logging.getLogger("napari_unet").addHandler(listener)
    yield told
    logging.getLogger("napari_unet").removeHandler(listener)


_LONG = int(os.environ.get("SEED", "1")), int(os.environ.get("ACTIONS", "5000"))


@pytest.mark.parametrize(("seed", "n"), [(0, 70), pytest.param(*_LONG, marks=pytest.mark.slow)])
def test_anything_in_any_order(desk, errors, seed, n):
    desk.session.set_schema(LabelSchema.of("a", "b", "c"))
    desk.session.engine.close()  # nothing here needs to be computed elsewhere
    for _ in range(2):
        desk.open(make_scan(SHAPE))
    monkey = Monkey(desk, seed)
    n_objects = []
    for number in range(1, n + 1):
        monkey.act()
        if number % 35 == 0:
            assert disagreements(desk) == [], monkey.done[-35:]
            n_objects.append(len(desk.widget.findChildren(object)))
    assert errors == [], monkey.done[-5:]
    assert n_objects[-1] - n_objects[0] < 200, "widgets are left behind"
    desk.session.comparison.end()
    assert disagreements(desk) == []
    path = desk.session.project.path
    desk.widget.shut_down()
    assert list(verify(path)) == []
