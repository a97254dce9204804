"""Who judges models: whole scans once there are five, for good, and never what a model has learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.session.improving import FineTuneRun
from napari_unet.session.state import lock_judges
from tests.session.conftest import renumbered


def scan_of(seed, shape=(6, 5, 4), source=None):
    data = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
    return Scan(
        data, "zyx"[-len(shape) :], Geometry((1.0,) * len(shape)), 0 if len(shape) == 3 else None, source=source
    )


def review(session, *seeds, slices=None, **scan):
    """Open scans one after the other and accept slices of each."""
    states = [session.add_scan(scan_of(seed, **scan)) for seed in seeds]
    for state in states:
        session.accept_slices(state, slices)
    return states


def judges(session):
    return [state.name for state in session.scans if state.is_judge]


@pytest.mark.parametrize("shape", [(6, 5, 4), (5, 4)])
def test_every_fifth_scan_judges_as_a_whole_from_its_first_accepted_slice_on(session, shape):
    review(session, *range(4), slices=[0], shape=shape)
    assert judges(session) == []
    (fifth,) = review(session, 4, slices=[0], shape=shape)
    assert judges(session) == ["scan 5"]
    assert "scan 5 is held out" in session.heard.notices[-1]
    assert not fifth.teaches()
    review(session, *range(5, 11), slices=[0], shape=shape)
    assert judges(session) == ["scan 5", "scan 10"]
    lock_judges(session.scans)
    assert judges(session) == ["scan 5", "scan 10"]


def test_it_judges_for_good(session, open_session):
    states = review(session, *range(5))
    session.undo(states[4])
    assert judges(session) == ["scan 5"]
    session.accept_slices(states[4])
    assert judges(session) == ["scan 5"]
    session.close()
    tomorrow = open_session()
    again = [tomorrow.add_scan(scan_of(seed)) for seed in (4, 0, 1, 2, 3)]
    assert [state.is_judge for state in again] == [True] + [False] * 4
    review(tomorrow, 9)
    assert judges(tomorrow) == ["scan 5"], "scans keep their numbers"


def test_what_has_taught_never_judges(session):
    states = review(session, *range(4))
    late = session.add_scan(scan_of(4))
    session.record_edit(late, np.ones((6, 5, 4), np.uint8), slice(0, 1))
    for state in session.scans:
        state.note_taught()
    session.accept_slices(late)
    assert judges(session) == []
    assert not any(state.locked.any() for state in states)
    review(session, 5)
    assert judges(session) == ["scan 6"]


def test_nor_does_what_the_model_in_use_learnt_elsewhere(session, trained):
    seen = scan_of(4).fingerprint
    session.models.use(
        replace(trained, card=trained.card.model_copy(update={"label_schema": session.schema, "seen": (seen,)}))
    )
    states = review(session, *range(5))
    assert judges(session) == []
    assert states[4].taught.all()


def test_volumes_and_series_of_one_source_stand_on_one_side(session, tmp_path):
    def cine(name, *seeds):
        return review(session, *seeds, source=tmp_path / name)

    cine("first.nii.gz", 0, 1, 2)
    for i, name in enumerate(("second", "third", "fourth")):
        cine(name, 10 + i)
    assert judges(session) == []
    cine("fifth", 20)
    assert judges(session) == ["scan 7"]
    cine("fifth", 21, 22)
    cine("first.nii.gz", 3)
    assert judges(session) == ["scan 7", "scan 8", "scan 9"]
    # Files that lie side by side may be of different people.
    assert len({state.kin for state in session.scans}) == 5
    assert Path(session.scans[0].kin).parent == tmp_path


def test_whole_scans_take_the_place_of_blocks_and_blocks_that_were_chosen_stay(session):
    first = review(session, 0)[0]
    lock_judges(session.scans)
    assert np.flatnonzero(first.locked).tolist() == [5]
    first.note_taught()
    review(session, 1, 2, 3, 4)
    lock_judges(session.scans)
    assert [int(state.locked.sum()) for state in session.scans] == [1, 0, 0, 0, 6]


def test_judges_alone_are_nothing_to_learn_from(session):
    states = review(session, *range(5))
    for state in states[:4]:
        session.remove_scan(state)
    with pytest.raises(SessionError, match="held out to judge"):
        session.learning.begin(steps=1)
    assert session.learning.run is None


def test_the_plan_is_not_made_from_judges(session):
    """A class that only the judge shows is not planned for."""
    states = [session.add_scan(scan_of(seed)) for seed in range(5)]
    for state in states:
        labels = np.zeros((6, 5, 4), np.uint8)
        labels[:, 1:3, :2] = 1
        session.record_edit(state, labels, slice(None))
        session.accept_slices(state)
    session.record_edit(states[4], np.full((6, 5, 4), 2, np.uint8), slice(None))
    session.planning.settings()
    assert {found.value for found in session.planning._measured().classes} == {1}


def test_the_run_checks_before_it_touches_anything(session, trained):
    state = review(session, 0)[0]
    other = renumbered(trained, session.schema)
    reordered = session.schema.model_copy(update={"classes": session.schema.classes[::-1]})
    with pytest.raises(SessionError, match="other classes"):
        FineTuneRun(session._worker, [state], reordered, trained.card.settings, other, "v1", lambda *_: None)
    assert not state.taught.any()
