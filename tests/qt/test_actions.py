"""Keys that can be changed, commands in napari's palette and menus, and the list of classes."""

from __future__ import annotations

import numpy as np
import pytest
from app_model.types import KeyBinding
from napari._app_model import get_app_model
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QLineEdit

from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import PALETTE, LabelSchema
from napari_unet.qt.actions import normal_key
from napari_unet.session.class_presets import CLASS_PRESETS
from napari_unet.session.preferences import Preferences
from tests.qt.conftest import Desk, make_scan
from tests.session.conftest import painted

_CONTROL, _SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def own_keys():
    """No keys of another test's, nor for another test."""
    before = Preferences.read()
    yield
    before.keep()


@pytest.mark.parametrize(
    ("typed", "normal"),
    [("g", "G"), ("Ctrl+Shift+z", "Control-Shift-Z"), ("Shift-Control-Z", "Control-Shift-Z"), ("enter", "Enter")],
)
def test_a_key_is_kept_in_one_notation(typed: str, normal: str) -> None:
    assert normal_key(typed) == normal
    assert KeyBinding.from_str(normal) == KeyBinding.from_str(typed)


@pytest.mark.parametrize("key", ["unknown", "Control-", "Shift", "Shift-2", "K Control-L"])
def test_a_key_that_differs_between_keyboards_is_refused(key: str) -> None:
    with pytest.raises(SessionError, match="cannot be used"):
        normal_key(key)


@pytest.mark.gui
def test_keys_are_changed_in_the_dialog_and_hold_at_the_next_start(desk: Desk, own_keys: None) -> None:
    dock, first = desk.widget, make_scan()
    desk.open(first)
    accept, accepted = dock.correct.accept_slice, desk.session.active.annotation.accepted
    assert accept.text().endswith("Enter")
    dock.open_keys()
    dialog, field = dock.keys, dock.keys.fields["accept_slice"]

    def press(key, modifier=Qt.KeyboardModifier.NoModifier):
        QTest.keyClick(field, key, modifier)
        desk.spin()

    for key, modifier, said in (
        (Qt.Key.Key_P, Qt.KeyboardModifier.NoModifier, "P is the key of Propose"),
        (Qt.Key.Key_V, Qt.KeyboardModifier.NoModifier, "V is napari's key to"),
        (Qt.Key.Key_O, _CONTROL, "Ctrl+O is napari's key to"),
        (Qt.Key.Key_2, _SHIFT, "cannot be used"),
    ):
        press(key, modifier)
        assert said in dialog.said.text()
        assert field.text() == "Enter"
    press(Qt.Key.Key_G, _CONTROL | _SHIFT)
    assert field.text() == "Ctrl+Shift+G"
    assert accept.text().endswith("Ctrl+Shift+G")
    assert Preferences.read().keys == {"accept_slice": "Control-Shift-G"}
    QTest.keyClick(dialog.fields["propose"], Qt.Key.Key_Backspace)
    assert dock.propose.button.text() == "Propose"
    # On the layer that was there, and on one that comes later.
    desk.key(Qt.Key.Key_Return)
    assert not accepted.any()
    desk.key(Qt.Key.Key_G, _CONTROL | _SHIFT)
    assert accepted.sum() == 1
    desk.open(make_scan())
    desk.key(Qt.Key.Key_G, _CONTROL | _SHIFT)
    assert desk.session.active.annotation.accepted.sum() == 1
    # The next start.
    dock.shut_down()
    assert KeyBinding.from_str("Ctrl+Shift+G") not in desk.viewer.keymap
    assert KeyBinding.from_str("Ctrl+Shift+G") not in desk.viewer.layers[-1].keymap
    desk.viewer.window.remove_dock_widget(dock)
    _, again = desk.viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    desk.settle()
    assert again.correct.accept_slice.text().endswith("Ctrl+Shift+G")
    again.open_keys()
    desk.push(again.keys.reset)
    assert Preferences.read().keys == {}
    assert again.correct.accept_slice.text().endswith("Enter")
    again.shut_down()


@pytest.mark.gui
def test_commands_are_found_by_name_and_work(desk: Desk) -> None:
    window, app = desk.viewer.window._qt_window, get_app_model()
    menu = {item.command.id for item in app.menus.get_menu("napari-unet/menu")}
    submenus = [getattr(item, "submenu", None) for item in app.menus.get_menu("napari/layers/segment")]
    assert "napari-unet/menu" in submenus
    assert {"napari-unet.propose", "napari-unet.export_mask", "napari-unet.whole_folder"} <= menu
    actions = {action.id for action in desk.widget.actions}
    assert {each.partition(".")[2] for each in menu} <= actions
    desk.open(make_scan())
    accepted = desk.session.active.annotation.accepted

    def command(typed):  # without parentheses, which napari's palette takes for a pattern
        desk.viewer.window._toggle_command_palette()
        line = window._command_palette.findChild(QLineEdit)
        QTest.keyClicks(line, typed)
        QTest.keyClick(line, Qt.Key.Key_Return)
        desk.spin()

    command("Accept slice U-Net")
    assert accepted.sum() == 1
    command("Undo U-Net")
    assert not accepted.any()
    command("Propose U-Net")
    assert "There is no model yet" in desk.said
    # With the dock closed, a command opens it.
    desk.widget.shut_down()
    desk.viewer.window.remove_dock_widget(desk.widget)
    app.commands.execute_command("napari-unet.keys").result()
    _, again = desk.viewer.window.add_plugin_dock_widget("napari-unet", "Annotate")
    assert again is not desk.widget
    assert again.isVisible()
    assert again.keys.isVisible()
    again.shut_down()


@pytest.mark.gui
def test_classes_are_named_coloured_ordered_and_removed(desk: Desk) -> None:
    desk.open(make_scan())
    session, state = desk.session, desk.session.active
    desk.push(desk.widget.correct._before_classes)
    dialog = desk.widget.correct.classes

    def names():
        return [each.name for each in session.schema.classes]

    def write(text):
        editor = dialog.table.findChild(QLineEdit)
        editor.selectAll()
        QTest.keyClicks(editor, text)
        QTest.keyClick(editor, Qt.Key.Key_Return)
        desk.spin()

    dialog.preset.setCurrentText("Liver")
    dialog.preset.activated.emit(dialog.preset.currentIndex())
    assert session.schema == LabelSchema.of("liver", "tumour"), "nothing was painted"
    desk.push(dialog.add)
    write("vein")
    assert names() == ["liver", "tumour", "vein"]
    assert session.schema.classes[2].colour == PALETTE[2]
    desk.push(dialog.up)
    assert names() == ["liver", "vein", "tumour"]
    assert session.schema.ids == (1, 3, 2), "labels keep their numbers"
    assert dialog.chosen() == 3
    desk.push(dialog.colour)
    desk.until(lambda: dialog.colours.isVisible())
    dialog.colours.setCurrentColor(QColor(255, 0, 51))
    dialog.colours.accept()
    desk.spin()
    assert session.schema.classes[1].colour == pytest.approx((1, 0, 0.2), abs=0.01)
    np.testing.assert_allclose(desk.layer.colormap.color_dict[3][:3], (1, 0, 0.2), atol=0.01)
    # A class that is on the scan stays, and so do names of their own.
    session.record_edit(state, painted(state, np.s_[2, :10], 3), slice(None))
    desk.push(dialog.remove)
    assert "Some voxels are labelled vein" in dialog.said.text()
    dialog.table.editItem(dialog.table.item(1, 0))
    write("liver")
    assert "name of its own" in dialog.said.text()
    assert names() == ["liver", "vein", "tumour"]
    assert dialog.table.item(1, 0).text() == "vein"
    dialog.preset.setCurrentText("Hippocampus")
    dialog.preset.activated.emit(dialog.preset.currentIndex())
    assert "There are labels already" in dialog.said.text()
    dialog.preset.setCurrentText("Heart (cine MR)")
    dialog.preset.activated.emit(dialog.preset.currentIndex())
    assert tuple(names()) == CLASS_PRESETS["Heart (cine MR)"]
    assert session.schema.ids == (1, 3, 2)
    dialog.table.selectRow(2)
    desk.push(dialog.remove)
    assert session.schema.ids == (1, 3)
    assert [choice.text() for choice in desk.widget.correct.choices.values()] == ["left ventricle", "myocardium"]
    dialog.close()
    QApplication.processEvents()
