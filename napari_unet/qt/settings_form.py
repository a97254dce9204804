"""The form of settings: the plan in words, then every setting with its planned value, to be changed by hand.

It stays open beside the work. What it holds is shown, not kept: values live in the session, wrong ones nowhere.
"""

from __future__ import annotations

import html
import re
import time
from collections import Counter
from typing import Any

from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.errors import NapariUnetError, SettingsError
from napari_unet.domain.settings import ModelSettings
from napari_unet.qt.bridge import guarded
from napari_unet.qt.looks import link_colour, look_like
from napari_unet.qt.panels.parts import Column, button, line
from napari_unet.qt.setting_row import SettingRow
from napari_unet.session.session import Session
from napari_unet.session.setting_fields import setting_fields, value_of
from napari_unet.training.presets import PRESETS, preset_named

_LOOK_AGAIN_MS = 30
_MOMENT_SECONDS = 0.02
_KEY = re.compile(rf"\b({'|'.join(sorted((re.escape(f.key) for f in setting_fields()), key=len, reverse=True))})\b")


class SettingsForm(QDialog):
    """Shows the settings of the next fine-tune and lets them be changed.

    Parameters
    ----------
    session : Session
    parent : QWidget
        Gives it napari's look, and takes it along when the window goes.
    """

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self._session, self._planning = session, session.planning
        self.setWindowTitle("Settings of the next fine-tune")
        self.setModal(False)
        self.trouble = line("", "What is wrong with the plan")
        look_like(self.trouble, "trouble")
        self.words = line("", "The plan in words")
        self.words.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        self.words.linkActivated.connect(self.show_setting)
        self.preset = QComboBox()
        self.preset.setAccessibleName("Preset")
        self.preset.setToolTip("The recipe that the plan starts from.")
        self.preset.activated.connect(guarded(self._complain, lambda _: self._choose_preset()))
        self.purpose = line("", "What the preset is for")
        self.back = button(
            "Back to the plan", "Forget everything that was set by hand.", guarded(self._complain, self._take_all_back)
        )
        #: By dotted key; filled bit by bit, since some hundred widgets take their time to be made.
        self.rows: dict[str, SettingRow] = {}
        self._to_come = list(setting_fields())
        self.tabs = QTabWidget()
        self.tabs.setEnabled(False)
        self._notes: dict[str, QLabel] = {}
        self._grids: dict[str, QGridLayout] = {}
        self._lay_out()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(guarded(self._complain, self._look))
        for signal in (
            *(session.planning.changed, session.models.changed, session.schema_changed),
            *(session.scan_added, session.scan_removed),
        ):
            signal.connect(self._outdated)

    def event(self, event: QEvent) -> bool:
        """Look again whenever the person comes back to the form: what was painted meanwhile may change the plan."""
        if event.type() == QEvent.Type.WindowActivate:
            self._outdated()
        return super().event(event)

    def showEvent(self, event: Any) -> None:
        """Show the plan of now."""
        super().showEvent(event)
        self._outdated()

    def show_setting(self, key: str) -> None:
        """Bring a setting into sight, ready to be changed."""
        row = self.rows[key]
        index = list(self._notes).index(row.field.group)
        self.tabs.setCurrentIndex(index)
        scroll = self.tabs.widget(index)
        assert isinstance(scroll, QScrollArea)
        scroll.ensureWidgetVisible(row.help)
        scroll.ensureWidgetVisible(row.name)
        row.editor.setFocus()

    # -- from the session to the form -----------------------------------------------------------------------------

    def _outdated(self, *_: object) -> None:
        self._timer.start(0)

    def _look(self) -> None:
        if not self.isVisible():
            return
        measured, made = self._planning.prepare(), self._make_rows()
        if measured and made:
            self._show()
            return
        if not measured:
            self.words.setText("Looking at the scans...")
        self._timer.start(_LOOK_AGAIN_MS if made else 0)

    def _make_rows(self) -> bool:
        """Make rows for a moment; return whether all are there."""
        fill_in, take_back = guarded(self._complain, self._fill_in), guarded(self._complain, self._take_back)
        deadline = time.perf_counter() + _MOMENT_SECONDS
        while self._to_come and time.perf_counter() < deadline:
            field = self._to_come.pop(0)
            self.rows[field.key] = SettingRow(field, self._grids[field.group], fill_in, take_back)
        return not self._to_come

    def _show(self) -> None:
        try:
            words, settings = self._planning.in_words(), self._planning.settings()
        except SettingsError as error:
            # What is at odds is taken back in this very form.
            self._complain(str(error))
            words, settings = [], self._planning.planned()
        except NapariUnetError as error:
            self._complain(str(error))
            self.words.setText("")
            self.tabs.setEnabled(False)
            return
        else:
            self.trouble.hide()
        self.tabs.setEnabled(True)
        self.words.setText(_with_links(words, link_colour(self.words)))
        self._show_preset(settings)
        self._show_rows(settings)

    def _show_preset(self, settings: ModelSettings) -> None:
        made = self._session.models.in_use is not None
        name = settings.preset if made else self._planning.preset
        self.preset.clear()
        self.preset.addItems(PRESETS if name in PRESETS else [*PRESETS, name])
        self.preset.setCurrentText(name)
        self.preset.setEnabled(not made)
        self.purpose.setText(f"for {preset_named(name).purpose}" if name in PRESETS else "")

    def _show_rows(self, settings: ModelSettings) -> None:
        overrides, reasons = self._planning.overrides, {key: self._planning.reason_fixed(key) for key in self.rows}
        times = Counter(reason for reason in reasons.values() if reason)
        for key, row in self.rows.items():
            reason = reasons[key]
            if row.is_wrong and reason is None:
                continue  # what the person wrote stays, to be mended
            by_hand = key in overrides and reason is None
            # What many rows share is said once, above them.
            note = f"It {reason}." if reason and times[reason] == 1 else ""
            row.show_value(overrides[key] if by_hand else value_of(settings, key), by_hand, reason is None, note)
        for group, label in self._notes.items():
            shared = {reason for key, reason in reasons.items() if reason and key.startswith(f"{group}.")}
            label.setText(" ".join(f"What is grey {reason}." for reason in shared if times[reason] > 1))
            label.setVisible(bool(label.text()))
        self.back.setEnabled(bool(overrides) or any(row.is_wrong for row in self.rows.values()))

    def _complain(self, sentence: str) -> None:
        self.trouble.setText(sentence)
        self.trouble.show()

    # -- from the form to the session -----------------------------------------------------------------------------

    def _fill_in(self, key: str) -> None:
        row = self.rows[key]
        row.is_wrong = False
        try:
            self._planning.set_value(key, row.read())
        except NapariUnetError as error:
            row.refuse(str(error))
            self.back.setEnabled(True)

    def _take_back(self, key: str) -> None:
        self.rows[key].forget()
        self._planning.clear(key)

    def _take_all_back(self) -> None:
        for row in self.rows.values():
            row.forget()
        self._planning.clear()

    def _choose_preset(self) -> None:
        self._planning.set_preset(self.preset.currentText())

    # -- looks ----------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setSpacing(8)
        self.trouble.hide()
        column.addWidget(self.trouble)
        column.addWidget(Column(self.words), 2)
        chooser = QHBoxLayout()
        for widget, stretch in ((QLabel("Preset"), 0), (self.preset, 0), (self.purpose, 1), (self.back, 0)):
            chooser.addWidget(widget, stretch)
        column.addLayout(chooser)
        for group in dict.fromkeys(field.group for field in setting_fields()):
            self.tabs.addTab(self._make_tab(group), group.capitalize())
        column.addWidget(self.tabs, 5)
        close = button("Close", "Leave the form; what was set by hand stays.", self.close)
        column.addWidget(close, alignment=Qt.AlignmentFlag.AlignRight)
        # Enter in a field presses no button.
        for each in (self.back, close):
            each.setAutoDefault(False)
        screen = self.screen()
        self.resize(660, min(800, screen.availableGeometry().height() - 60) if screen is not None else 600)

    def _make_tab(self, group: str) -> QWidget:
        content = QWidget()
        column = QVBoxLayout(content)
        note = self._notes[group] = line("", f"What is fixed of {group}")
        note.hide()
        column.addWidget(note)
        grid = self._grids[group] = QGridLayout()
        grid.setColumnStretch(1, 1)
        grid.setVerticalSpacing(2)
        column.addLayout(grid)
        column.addStretch(1)
        return Column(content)


def _with_links(lines: list[str], colour: str) -> str:
    """Return sentences as rich text in which each setting that is named leads to its row."""
    link = rf'<a href="\1" style="color: {colour}; text-decoration: none">\1</a>'
    return "".join(f"<p style='margin: 2px 0'>{_KEY.sub(link, html.escape(each))}</p>" for each in lines)
