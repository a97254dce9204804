"""What was open is open again, wherever its files are now; another project is another desk."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.errors import ProjectError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.io.registry import read_scan
from napari_unet.session.autosave import reader_name
from napari_unet.session.preferences import Preferences
from napari_unet.storage.journal import Journal
from tests.io.nifti_files import save_nifti
from tests.session.conftest import painted, snapshot
from tests.storage.conftest import full_disk  # noqa: F401 - a fixture


@pytest.fixture
def files(tmp_path):
    """Two volumes of one grid and a third with two volumes in it, as files."""
    folder = tmp_path / "scans"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, shape in (("one", (12, 10, 6)), ("two", (12, 10, 6)), ("beats", (12, 10, 6, 2))):
        save_nifti(folder / f"{name}.nii.gz", random.integers(0, 200, shape).astype(np.uint8))
    return folder


def open_all(session, files):
    for name, choices in (("one", {}), ("two", {}), ("beats", {"volume": 1})):
        state = session.add_scan(read_scan(files / f"{name}.nii.gz", **choices))
        session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    return session.scans


def reopen(session):
    for _ in session.desk.reopen():
        pass


def test_scans_classes_model_and_position_come_back(open_session, files, trained):
    first = open_session(schema=LabelSchema.of("bright", "other"))
    states = open_all(first, files)
    first.models.use(first.project.write_model(trained))
    first.set_schema(LabelSchema.of("renamed", "other"))
    first.activate(states[1])
    first.show_slice(4)
    before = [(state.name, state.scan.fingerprint, *snapshot(state)) for state in states]
    first.close()

    second = open_session()
    wanted = []
    second.slice_wanted.connect(wanted.append)
    assert [place.number for place in second.desk.waiting] == [1, 2, 3]
    reopen(second)
    assert len(second.scans) == len(before)
    for state, (name, fingerprint, *arrays) in zip(second.scans, before, strict=True):
        assert (state.name, state.scan.fingerprint) == (name, fingerprint)
        for one, two in zip(snapshot(state), arrays, strict=True):
            np.testing.assert_array_equal(one, two)
    assert second.active is second.scans[1]
    assert wanted == [4]
    assert second.schema == first.schema
    assert second.models.in_use is not None
    assert second.models.in_use.id == trained.id
    assert second.desk.waiting == []


def test_a_scan_keeps_its_number_and_a_new_one_gets_the_next(open_session, files):
    first = open_session()
    open_all(first, files)
    first.close()
    second = open_session()
    assert second.add_scan(read_scan(files / "two.nii.gz")).name == "scan 2"
    assert second.add_scan(read_scan(files / "beats.nii.gz", volume=0)).name == "scan 4"


def test_scans_that_moved_are_found_by_their_voxels(open_session, files, tmp_path):
    first = open_session()
    open_all(first, files)
    first.close()
    elsewhere = tmp_path / "elsewhere" / "deeper"
    elsewhere.mkdir(parents=True)
    (files / "one.nii.gz").rename(elsewhere / "renamed.nii.gz")
    (files / "beats.nii.gz").rename(elsewhere / "beats.nii.gz")

    second = open_session()
    reopen(second)
    assert [state.name for state in second.scans] == ["scan 2"]
    assert "scan 1, scan 3: not found where it was" in second.heard.notices[-1]
    for _ in second.desk.find_moved(tmp_path / "elsewhere"):
        pass
    assert sorted(state.name for state in second.scans) == ["scan 1", "scan 2", "scan 3"]
    assert second.desk.missing == []
    second.close()
    third = open_session()
    reopen(third)
    assert len(third.scans) == 3


def test_scans_that_are_away_today_may_be_there_tomorrow(open_session, files, tmp_path):
    first = open_session()
    open_all(first, files)
    first.close()
    (files / "one.nii.gz").rename(tmp_path / "away.nii.gz")
    second = open_session()
    reopen(second)
    assert len(second.scans) == 2
    second.record_edit(second.scans[0], painted(second.scans[0], np.s_[3], 1), slice(None))
    second.close()
    (tmp_path / "away.nii.gz").rename(files / "one.nii.gz")
    third = open_session()
    reopen(third)
    assert sorted(state.name for state in third.scans) == ["scan 1", "scan 2", "scan 3"]


def test_one_that_cannot_be_opened_does_not_keep_the_others(open_session, files, monkeypatch):
    first = open_session()
    open_all(first, files)
    first.close()
    (files / "one.nii.gz").write_bytes(b"no image")
    second = open_session()
    reopen(second)
    assert [state.name for state in second.scans] == ["scan 2", "scan 3"]


def test_unsaved_work_is_not_left_behind(open_session, files, tmp_path, full_disk):  # noqa: F811
    session = open_session()
    state = session.add_scan(read_scan(files / "one.nii.gz"))
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    assert session._autosave.flush(state)
    with full_disk():
        session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
        with pytest.raises(SessionError, match="scan 1 could not be saved"):
            session.open_project(tmp_path / "second")
        assert session.scans == [state]
    session.open_project(tmp_path / "second")
    assert session.scans == []


def test_a_folder_of_data_is_no_project(open_session, tmp_path):
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "labels" / "one.nii.gz").write_bytes(b"")
    with pytest.raises(ProjectError, match="holds other things"):
        open_session().open_project(tmp_path / "data")


def test_a_source_that_changed_is_said_and_gets_no_labels(open_session, files):
    first = open_session()
    open_all(first, files)
    first.close()
    save_nifti(files / "one.nii.gz", np.zeros((12, 10, 6), np.uint8))
    second = open_session()
    reopen(second)
    assert [state.name for state in second.scans] == ["scan 2", "scan 3"]
    assert any("scan 1: its file has changed" in notice for notice in second.heard.notices)
    state = second.add_scan(read_scan(files / "one.nii.gz"))
    assert state.name == "scan 4"
    assert not state.annotation.labels.any()


def test_a_model_that_is_gone_is_said(open_session, files, trained):
    first = open_session()
    open_all(first, files)
    kept = first.project.write_model(trained)
    first.models.use(kept)
    first.close()
    first.project.model_path(kept.card.name).unlink()
    second = open_session()
    reopen(second)
    assert second.models.in_use is None
    assert any("not there any more" in notice for notice in second.heard.notices)


def test_nothing_is_written_before_anything_is_said(open_session, files):
    session = open_session()
    session.add_scan(read_scan(files / "one.nii.gz"))
    session.close()
    assert not session.project.path.exists()


def test_another_project_is_another_desk(open_session, files, tmp_path):
    session = open_session(schema=LabelSchema.of("bright"))
    open_all(session, files)
    session.open_project(tmp_path / "second")
    assert session.scans == []
    assert [each.name for each in session.schema.classes] == ["structure"]
    state = session.add_scan(read_scan(files / "two.nii.gz"))
    assert state.name == "scan 1"
    assert not state.annotation.labels.any()
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    session.open_project(tmp_path / "project")
    reopen(session)
    assert [state.name for state in session.scans] == ["scan 1", "scan 2", "scan 3"]
    assert session.scans[1].annotation.labels[1].all()
    assert Preferences.read().projects[:2] == (str(tmp_path / "project"), str(tmp_path / "second"))


def test_a_folder_with_other_things_is_no_project(open_session, files):
    session = open_session()
    with pytest.raises(ProjectError, match="holds other things"):
        session.open_project(files)
    assert session.project.path != files


def test_the_reader_stands_in_the_journal_and_is_remembered(open_session, files):
    session = open_session()
    state = session.add_scan(read_scan(files / "one.nii.gz"))
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    session.set_reader(" AB ")
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    for bad in ("", "  ", "x" * 61, "a\nb"):
        with pytest.raises(SessionError):
            session.set_reader(bad)
    session.close()
    journal = Journal(session.project.path, read_only=True)
    assert [event.reader for event in journal.events() if event.action == "stroke"] == ["reader", "AB"]
    journal.close()
    assert reader_name() == "AB"
    Preferences().keep()
