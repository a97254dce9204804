"""Two readers of one scan: where they differ, how much, and what was decided."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from napari_unet.domain.errors import MaskError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.session.comparing import CONSENSUS
from napari_unet.session.exporting import export_mask
from napari_unet.storage.verify import verify
from tests.session.conftest import painted, snapshot
from tests.session.test_autosave import scan_of


@pytest.fixture
def two(open_session, monkeypatch):
    """The session of one reader, and the project of another one, who painted two rows more."""
    monkeypatch.setenv("NAPARI_UNET_READER", "BB")
    other = open_session("second")
    state = other.add_scan(scan_of((8, 10, 10)))
    other.record_edit(state, painted(state, np.s_[2:5, :6], 1), slice(None))
    other.close()
    monkeypatch.setenv("NAPARI_UNET_READER", "AA")
    session = open_session("first")
    state = session.add_scan(scan_of((8, 10, 10)))
    session.record_edit(state, painted(state, np.s_[2:5, :4], 1), slice(None))
    return session, state, other.project.path


def test_agreement_and_differences(two):
    session, _, other = two
    session.comparison.with_project(other)
    assert session.comparison.name == "BB"
    (found,) = session.comparison.agreement()
    assert found.dice == pytest.approx(2 * 120 / (120 + 180))
    assert 0 < found.nsd < 1
    assert found.differing == 60
    expected = np.zeros((8, 10, 10), bool)
    expected[2:5, 4:6] = True
    np.testing.assert_array_equal(session.comparison.differences(), expected)
    session.show_slice(3)
    assert session.comparison.next_slice() == 4
    session.show_slice(4)
    assert session.comparison.next_slice() == 2


def test_a_consensus_is_a_step_of_its_own_and_can_be_undone(two):
    session, state, other = two
    before = snapshot(state)
    session.comparison.with_project(other)
    assert session.comparison.take_theirs(slice(2, 3)) == 20
    assert session.comparison.keep_mine(slice(3, 4)) == 20
    assert state.annotation.labels[2, 4:6].all()
    assert state.annotation.painted[2:4, 4:6].all()
    assert not state.annotation.labels[3, 4:6].any()
    # What was decided is no difference any more, whichever way.
    assert session.comparison.differences().sum() == 20
    assert session.audits.of(state).actions[CONSENSUS] == 2
    session.undo(state)  # keep mine
    assert session.comparison.differences().sum() == 40
    session.redo(state)
    assert session.comparison.differences().sum() == 20
    session.undo(state)
    session.undo(state)
    assert session.comparison.differences().sum() == 60
    for one, two_ in zip(snapshot(state), before, strict=True):
        np.testing.assert_array_equal(one, two_)
    session.close()
    assert list(verify(session.project.path)) == []


def test_classes_are_known_by_their_names(two, open_session):
    session, state, _ = two
    other = open_session("third")
    other.set_schema(LabelSchema.of("tumour", "structure"))
    theirs = other.add_scan(scan_of((8, 10, 10)))
    other.record_edit(theirs, painted(theirs, np.s_[2:5, :4], 2), slice(None))
    other.close()
    session.comparison.with_project(other.project.path)
    assert not session.comparison.differences().any()
    other = open_session("third")
    other.set_schema(LabelSchema.of("tumour", "structure"))
    theirs = other.add_scan(scan_of((8, 10, 10)))
    other.record_edit(theirs, painted(theirs, np.s_[7], 1), slice(None))
    other.close()
    session.comparison.end()
    with pytest.raises(MaskError, match="holds tumour, and there is no class of that name"):
        session.comparison.with_project(other.project.path)
    assert session.comparison.state is None
    assert state.annotation.labels.max() == 1


def test_locked_classes_stay_and_changed_accepted_slices_are_said(two):
    session, state, other = two
    session.accept_slices(state, [2])
    session.comparison.with_project(other)
    session.tools.lock(1, True)
    assert session.comparison.take_theirs() == 0
    assert "60 voxels stay as they are" in session.heard.notices[-1]
    session.tools.lock(1, False)
    assert session.comparison.take_theirs() == 60
    assert "1 accepted slice changed" in session.heard.notices[-1]


def test_the_other_project_is_left_as_it_is(two):
    session, _, other = two

    def content():
        # Beside a database that is read SQLite keeps a file for its readers.
        files = [path for path in other.rglob("*") if path.is_file() and path.suffix not in (".db-shm", ".db-wal")]
        return {path: path.read_bytes() for path in files}

    before = content()
    session.comparison.with_project(other)
    session.comparison.take_theirs()
    assert content() == before


def test_with_a_mask_in_a_file(two, tmp_path):
    session, state, _ = two
    export_mask(session, state, tmp_path / "mine.nii.gz")
    session.record_edit(state, painted(state, np.s_[5], 1), slice(None))
    session.comparison.with_mask(tmp_path / "mine.nii.gz")
    assert session.comparison.agreement()[0].differing == 100
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "foreign.nii.gz")
    with pytest.raises(MaskError):
        session.comparison.with_mask(tmp_path / "foreign.nii.gz")


def test_what_cannot_be_compared_is_refused(two, tmp_path):
    session, _, _ = two
    with pytest.raises(SessionError, match="you work in"):
        session.comparison.with_project(session.project.path)
    with pytest.raises(SessionError, match="knows nothing"):
        session.comparison.with_project(tmp_path / "nowhere")
    with pytest.raises(SessionError, match="Nothing is compared"):
        session.comparison.agreement()


def test_it_ends_when_another_scan_is_shown(two):
    session, _, other = two
    session.comparison.with_project(other)
    session.add_scan(scan_of(seed=9))
    assert session.comparison.state is None
