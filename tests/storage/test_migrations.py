"""A project that an earlier version wrote opens, goes on, and is sound before and after."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from napari_unet.storage.database import VERSION
from napari_unet.storage.journal import Journal
from napari_unet.storage.verify import verify
from tests.session.conftest import open_session, painted  # noqa: F401 - a fixture
from tests.session.test_autosave import scan_of, work_on

#: Written by the version of that number: two scans with strokes, undo and accepted slices, and a checkpoint.
FIRST = Path(__file__).with_name("projects") / "version-1"


def version_of(folder):
    journal = Journal(folder, read_only=True)
    (found,) = journal._read("PRAGMA user_version")[0]
    journal.close()
    return found


def test_a_project_of_the_first_version_is_sound_as_it_stands(tmp_path):
    shutil.copytree(FIRST, tmp_path / "project")
    assert list(verify(tmp_path / "project")) == []
    assert version_of(tmp_path / "project") == 1


def test_a_project_of_the_first_version_goes_on(open_session, tmp_path):  # noqa: F811
    shutil.copytree(FIRST, tmp_path / "project")
    expected = open_session("same work")
    work_on(expected, expected.add_scan(scan_of(seed=1)))
    expected.undo(expected.active)
    expected.redo(expected.active)

    session = open_session()
    state = session.add_scan(scan_of(seed=1))
    np.testing.assert_array_equal(state.annotation.labels, expected.active.annotation.labels)
    np.testing.assert_array_equal(state.annotation.accepted, expected.active.annotation.accepted)
    assert session.models.kept() == ["v1"]
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    session.close()
    assert version_of(session.project.path) == VERSION > 1
    assert list(verify(session.project.path)) == []
    again = open_session()
    assert again.add_scan(scan_of(seed=1)).annotation.labels[2].all()
