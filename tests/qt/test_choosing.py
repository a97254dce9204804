"""What a source leaves open is asked in the window, and a scan's intensities are shown as they should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialog, QInputDialog

from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui


def test_each_scan_is_shown_in_its_own_acquired_plane(desk: Desk) -> None:
    desk.open(make_scan((20, 24, 6), slice_axis=2))
    desk.spin()
    dims, first = desk.viewer.dims, desk.session.active
    assert dims.order[0] == 2
    desk.open(make_scan((8, 20, 24), slice_axis=0))
    desk.spin()
    assert dims.order[0] == 0
    desk.key(Qt.Key.Key_Return)
    assert np.flatnonzero(desk.session.active.annotation.accepted).tolist() == [desk.session.visible_slice]
    desk.session.activate(first)
    desk.spin()
    assert dims.order[0] == 2


@pytest.mark.parametrize("turn", ["rolled", "volume"])
def test_a_slice_that_is_not_on_screen_is_not_accepted(desk: Desk, turn: str) -> None:
    desk.open(make_scan((8, 20, 24)))
    desk.spin()
    if turn == "rolled":
        desk.viewer.dims.roll()
    else:
        desk.viewer.dims.ndisplay = 3
    desk.push(desk.widget.correct.accept_slice)
    assert "not on screen" in desk.said
    assert not desk.session.active.annotation.accepted.any()


@pytest.fixture
def beating(tmp_path: Path) -> Path:
    """Three volumes in one file, each of one value."""
    array = np.ones((8, 8, 5, 3), np.int16) * np.array([10, 20, 30], np.int16)
    path = tmp_path / "beating.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def when_asked(answer: Callable[[Any], None]) -> list[str]:
    """Answer the next dialog; returns a list that will hold what was asked."""
    asked: list[str] = []
    tries = iter(range(200))

    def look() -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, QDialog):
            asked.append(dialog.windowTitle())
            answer(dialog)
        elif next(tries, None) is not None:
            QTimer.singleShot(20, look)

    QTimer.singleShot(20, look)
    return asked


def choose_number(number: int) -> Callable[[Any], None]:
    def answer(dialog: Any) -> None:
        assert isinstance(dialog, QInputDialog)
        dialog.setIntValue(number)
        QTest.keyClick(dialog, Qt.Key.Key_Return)

    return answer


def test_the_person_says_which_volume(desk: Desk, beating: Path) -> None:
    asked = when_asked(choose_number(1))
    desk.widget.open_path(beating)
    desk.settle()
    assert asked == ["Choose a volume"]
    assert np.unique(desk.session.active.scan.data).tolist() == [20]
    assert desk.said == ""


def test_who_cancels_gets_nothing_and_no_error(desk: Desk, beating: Path) -> None:
    asked = when_asked(lambda dialog: dialog.reject())
    desk.widget.open_path(beating)
    desk.settle()
    assert asked == ["Choose a volume"]
    assert desk.session.scans == []
    assert len(desk.viewer.layers) == 0
    assert desk.said == ""


def test_ct_has_windows(desk: Desk) -> None:
    scan = replace(make_scan(), modality="CT", window=(-100.0, 200.0))
    desk.open(scan)
    choice, image = desk.widget.scan.window_choice, desk.widget.layers.image(desk.session.active)
    assert choice.isVisible()
    assert choice.currentText() == "as stored"
    assert image.contrast_limits == [-100, 200]
    place = next(i for i in range(choice.count()) if choice.itemText(i).startswith("lung"))
    choice.setCurrentIndex(place)
    choice.activated.emit(place)
    assert image.contrast_limits == [-1350, 150]
    desk.open(make_scan())
    assert not choice.isVisible(), "its intensities are no Hounsfield units"


def test_an_inverted_picture_is_shown_inverted_with_its_values_kept(desk: Desk) -> None:
    scan = replace(make_scan(), inverted=True)
    desk.open(scan)
    image = desk.widget.layers.image(desk.session.active)
    assert image.colormap.name == "gray_r"
    assert image.data is scan.data
