"""Reading a scan with the person at hand: what a source leaves open is asked, in dialogs, until it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QThread
from qtpy.QtWidgets import (
    QApplication,
    QDialog,
    QDialogButtonBox,
    QInputDialog,
    QLabel,
    QListWidget,
    QMessageBox,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.errors import SeriesChoiceError, UntrustedError, VolumeChoiceError
from napari_unet.domain.scan import Scan, SeriesInfo
from napari_unet.io.registry import read_scan


def read_asking(path: Path | str) -> Scan | None:
    """Read a scan; ask which series, which volume, and whether doubtful geometry is taken.

    Parameters
    ----------
    path : Path or str
        As :func:`~napari_unet.io.registry.read_scan` takes it.

    Returns
    -------
    Scan or None
        None where the person cancelled.

    Raises
    ------
    ScanError
        It cannot be read, or there is no window to ask in.
    """
    options: dict[str, Any] = {}
    while True:
        try:
            return read_scan(path, **options)
        except (SeriesChoiceError, VolumeChoiceError, UntrustedError) as error:
            if not _can_ask() or "untrusted" in options:
                raise
            answer = _ask(error)
        if answer is None:
            return None
        options |= answer


def _can_ask() -> bool:
    application = QApplication.instance()
    return (
        isinstance(application, QApplication)
        and QThread.currentThread() is application.thread()
        and any(widget.isVisible() for widget in application.topLevelWidgets())
    )


def _ask(error: SeriesChoiceError | VolumeChoiceError | UntrustedError) -> dict[str, Any] | None:
    """Return what the answer adds to the options of reading."""
    parent = QApplication.activeWindow()
    if isinstance(error, SeriesChoiceError):
        uid = _choose_series(error.series, parent)
        return None if uid is None else {"series": uid}
    if isinstance(error, VolumeChoiceError):
        last = error.n_volumes - 1
        text = f"This file holds {error.n_volumes} volumes (time points or channels).\nWhich one, from 0 to {last}?"
        number, taken = QInputDialog.getInt(parent, "Choose a volume", text, 0, 0, last)
        return {"volume": number} if taken else None
    return _choose_trust(error, parent)


def _choose_series(series: Sequence[SeriesInfo], parent: QWidget | None) -> str | None:
    dialog = QDialog(parent)
    dialog.setWindowTitle("Choose a series")
    layout = QVBoxLayout(dialog)
    layout.addWidget(QLabel("There are several series here. Which one?"))
    names = QListWidget()
    names.setAccessibleName("Series")
    for each in series:
        shape = " x ".join(str(n) for n in each.shape)
        names.addItem(f"{each.description or 'without a description'}   {shape}   (...{each.uid[-8:]})")
    names.setCurrentRow(0)
    names.itemDoubleClicked.connect(lambda _: dialog.accept())
    layout.addWidget(names)
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Open | QDialogButtonBox.StandardButton.Cancel)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    layout.addWidget(buttons)
    dialog.resize(560, 300)
    taken = dialog.exec() == QDialog.DialogCode.Accepted and names.currentRow() >= 0
    return series[names.currentRow()].uid if taken else None


def _choose_trust(error: UntrustedError, parent: QWidget | None) -> dict[str, Any] | None:
    box = QMessageBox(parent)
    box.setWindowTitle("Doubtful scan")
    box.setIcon(QMessageBox.Icon.Warning)
    box.setText(str(error))
    box.setInformativeText("What is measured on it may be wrong.")
    resample = box.addButton("Resample", QMessageBox.ButtonRole.AcceptRole) if error.can_resample else None
    untrusted = box.addButton("Load as untrusted", QMessageBox.ButtonRole.DestructiveRole)
    box.setDefaultButton(box.addButton(QMessageBox.StandardButton.Cancel))
    box.exec()
    clicked = box.clickedButton()
    if resample is not None and clicked is resample:
        return {"resample": True}
    return {"untrusted": True} if clicked is untrusted else None
