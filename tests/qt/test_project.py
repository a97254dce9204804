"""The project in the window: gone on with, changed, compared with another reader's."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.io.registry import read_scan
from napari_unet.session.preferences import Preferences
from napari_unet.session.session import Session
from tests.io.nifti_files import save_nifti
from tests.session.conftest import Borrowed, painted, trained  # noqa: F401 - a fixture

pytestmark = pytest.mark.gui


@pytest.fixture
def volume(tmp_path):
    data = np.random.default_rng(7).integers(0, 200, (40, 32, 8)).astype(np.uint8)
    return save_nifti(tmp_path / "volume.nii.gz", data, np.diag([1.0, 1.0, 3.0, 1.0]))


class Silent:
    """An engine that is never started."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def work_in(folder, volume, where, value=1):
    """What another program did in a project before."""
    session = Session(Borrowed(Silent()), folder)
    state = session.add_scan(read_scan(volume))
    session.record_edit(state, painted(state, where, value), slice(None))
    session.show_slice(5)
    session.close()


def test_what_was_open_last_time_is_a_click_away(desk, volume, tmp_path):
    work_in(tmp_path / "brain study", volume, np.s_[5, :10])
    bar = desk.widget.project
    desk.session.open_project(tmp_path / "brain study")
    assert "brain study" in bar.name.text()
    assert bar.again.isVisible()
    desk.push(bar.again)
    desk.qtbot.waitUntil(lambda: len(desk.session.scans) == 1 and not bar.again.isVisible())
    desk.spin()
    assert desk.layer.data[5, :10].all()
    assert desk.widget.on_screen.slice_of(desk.session.active) == 5
    assert str(tmp_path / "brain study") in Preferences.read().projects


def test_a_scan_that_moved_is_found_in_the_folder_that_is_named(desk, volume, tmp_path):
    work_in(tmp_path / "study", volume, np.s_[5])
    moved = tmp_path / "archive" / "other name.nii.gz"
    moved.parent.mkdir()
    volume.rename(moved)
    bar = desk.widget.project
    bar.open_project(tmp_path / "study")
    desk.qtbot.waitUntil(lambda: bar.find.isVisible())
    assert "not found where it was" in desk.said
    bar.find_in(moved.parent)
    desk.qtbot.waitUntil(lambda: len(desk.session.scans) == 1)
    assert desk.layer.data[5].all()
    desk.qtbot.waitUntil(lambda: not bar.find.isVisible())


def test_two_readers_are_compared_and_one_decides(desk, volume, tmp_path):
    work_in(tmp_path / "reader two", volume, np.s_[2:4, :10])
    desk.open(read_scan(volume))
    state = desk.session.active
    desk.session.record_edit(state, painted(state, np.s_[2:4, :8], 1), slice(None))
    desk.widget.project.open_compare()
    dialog = desk.widget.project.compare
    desk.session.comparison.with_project(tmp_path / "reader two")
    desk.push(dialog.again)
    names = [layer.name for layer in desk.viewer.layers]
    assert [name for name in names if "other labels" in name or "differences" in name] == names[-2:]
    assert dialog.table.item(0, 1).text() == f"{2 * 2 * 8 / (2 * 8 + 2 * 10):.3f}"
    desk.push(dialog.following)
    assert desk.widget.on_screen.slice_of(state) == 2
    desk.push(dialog.theirs)
    assert state.annotation.labels[2, 8:10].all()
    assert not state.annotation.labels[3, 8:10].any()
    assert desk.layer.data[2, 8:10].all()
    assert f"{2 * 40:,} voxels differ" in dialog.said.text()
    # The brush is still in hand.
    assert desk.viewer.layers.selection.active is desk.layer
    dialog.done(0)
    desk.spin()
    assert not [layer for layer in desk.viewer.layers if "other labels" in layer.name]


def test_models_on_disk_are_listed_and_deleted(desk, volume, trained):  # noqa: F811
    desk.open(read_scan(volume))
    for _ in range(2):
        desk.session.project.write_model(trained)
    desk.session.models.use_kept("v2")
    desk.widget.project.open_models()
    dialog = desk.widget.project.models
    assert [dialog.table.item(row, 0).text() for row in range(2)] == ["v2, in use", "v1"]
    dialog.table.selectRow(1)
    dialog.remove_chosen()
    assert desk.session.models.kept() == ["v2"]
    dialog.table.selectRow(0)
    desk.widget._guard(dialog.remove_chosen)()
    assert "in use" in desk.said
    assert desk.session.models.kept() == ["v2"]
    dialog.close()


def test_the_menu_offers_all_of_it(desk):
    bar = desk.widget.project
    bar.menu.aboutToShow.emit()
    offered = [action.text() for action in bar.menu.actions() if action.text()]
    assert offered == [
        "Open project...",
        "Recent projects",
        "Scans of the project...",
        "Reader's name...",
        "Models on disk...",
        "Compare with another reader...",
        "Show the guide",
        "Keys...",
    ]
