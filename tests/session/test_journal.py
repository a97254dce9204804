"""No stroke is lost: not by a crash, a full disk, two programs on one project, or a file that was damaged."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from napari_unet.domain.errors import ProjectError
from napari_unet.session.autosave import READER_VARIABLE
from napari_unet.storage.database import DATABASE
from napari_unet.storage.journal import Journal
from napari_unet.storage.lock import LOCK
from napari_unet.storage.verify import verify
from tests.session.conftest import assert_same_state, painted, snapshot
from tests.session.test_autosave import scan_of, until, without_journal, work_on
from tests.storage.conftest import full_disk  # noqa: F401 - a fixture

#: Strokes through the session, each told when it is done; ends by being killed.
PAINT = """
import sys, time
from pathlib import Path
import numpy as np
from napari_unet.compute.engine import Engine
from napari_unet.session.session import Session
from tests.session.test_autosave import scan_of

session = Session(Engine(), Path(sys.argv[1]))
state = session.add_scan(scan_of((40, 30, 30)))
print("begun", flush=True)
for number in range(36000):
    view = state.annotation.labels.copy()
    view.flat[number] = 1
    session.record_edit(state, view, slice(None))
    print(number, time.time(), flush=True)
    time.sleep(0.004)
"""


def killed_while_painting(project, seconds):
    """Paint until killed; return the strokes that were done half a second before, and all that were told of."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))}
    program = subprocess.Popen(
        [sys.executable, "-c", PAINT, project], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    with program:
        assert program.stdout.readline() == "begun\n"
        time.sleep(seconds)
        killed = time.time()
        program.send_signal(signal.SIGKILL)
        told = [line.split() for line in program.stdout.read().splitlines() if line.count(" ") == 1]
    return sum(float(at) < killed - 0.5 for _, at in told), len(told)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize(
    "kills", [2, pytest.param(int(os.environ.get("KILLS", "10")), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_kill_9_loses_no_stroke_older_than_half_a_second(open_session, tmp_path, kills):
    chance, lost_young = random.Random(0), []
    for number in range(kills):
        project = tmp_path / f"project {number}"
        due, told = killed_while_painting(project, chance.uniform(0.6, 3.0))
        assert due > 0
        assert list(verify(project)) == []
        session = open_session(project.name)
        state = session.add_scan(scan_of((40, 30, 30)))
        n = int(state.annotation.labels.sum())
        assert n >= due
        np.testing.assert_array_equal(np.flatnonzero(state.annotation.labels), np.arange(n))
        np.testing.assert_array_equal(state.annotation.labels > 0, state.annotation.painted)
        lost_young.append(max(0, told - n))
        session.close()
    print(f"{kills} kills: of the strokes of the last half second {lost_young} were lost")


def test_a_stroke_is_in_the_journal_at_once(open_session):
    session = open_session()
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    until(lambda: (session.project.path / DATABASE).exists() and session.ledger.settle() == 2, 5)
    with contextlib.closing(Journal(session.project.path, read_only=True)) as journal:
        events = list(journal.events())
    assert [event.action for event in events] == ["import", "stroke"]
    assert events[1].voxels == 30


def test_everything_that_was_done_is_told_in_order_and_by_whom(open_session, monkeypatch):
    monkeypatch.setenv(READER_VARIABLE, "anna")
    session = open_session()
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None), kind="fill")
    session.accept_slices(state, [1])
    session.undo(state)
    session.redo(state)
    session.close()
    with contextlib.closing(Journal(session.project.path, read_only=True)) as journal:
        events = list(journal.events())
    assert [event.action for event in events] == ["import", "fill", "accept", "undo", "redo"]
    assert {event.reader for event in events} == {"anna"}


def test_labels_that_were_there_before_are_where_the_journal_begins(open_session):
    first = open_session()
    start = np.zeros((8, 5, 6), np.uint8)
    start[2] = 1
    state = first.add_scan(scan_of(), start)
    first.record_edit(state, painted(state, np.s_[4], 1), slice(None))
    first.close()
    (file,) = (first.project.path / "labels").glob("*.npz")
    file.unlink()
    again = open_session().add_scan(scan_of())
    assert_same_state(snapshot(again), snapshot(state))


def test_a_project_of_a_version_without_a_journal_gets_one(open_session):
    first = open_session()
    state = first.add_scan(scan_of())
    work_on(first, state)
    first.close()
    without_journal(first)
    second = open_session()
    state = second.add_scan(scan_of())
    second.record_edit(state, painted(state, np.s_[7], 1), slice(None))
    second.close()
    (file,) = (first.project.path / "labels").glob("*.npz")
    file.unlink()
    again = open_session().add_scan(scan_of())
    assert_same_state(snapshot(again), snapshot(state))
    np.testing.assert_array_equal(again.locked, state.locked)


def test_an_older_copy_of_the_journal_takes_nothing_back(open_session):
    first = open_session()
    state = first.add_scan(scan_of())
    first.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    first.close()
    early = (first.project.path / DATABASE).read_bytes()
    second = open_session()
    state = second.add_scan(scan_of())
    second.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    second.record_edit(state, painted(state, np.s_[3], 1), slice(None))
    second.record_edit(state, painted(state, np.s_[1], 0), slice(None))
    second.close()
    (first.project.path / DATABASE).write_bytes(early)
    third = open_session()
    state = third.add_scan(scan_of())
    assert state.annotation.labels[3].all()
    third.record_edit(state, painted(state, np.s_[5], 1), slice(None))
    third.close()
    (file,) = (first.project.path / "labels").glob("*.npz")
    file.unlink()
    again = open_session().add_scan(scan_of())
    assert_same_state(snapshot(again), snapshot(state))


class TestTwoPrograms:
    def test_the_second_says_who_has_it_and_saves_nothing(self, open_session):
        first = open_session()
        state = first.add_scan(scan_of())
        first.record_edit(state, painted(state, np.s_[1], 1), slice(None))
        until(lambda: first.ledger.settle() > 0)
        second = open_session()
        other = second.add_scan(scan_of())
        assert any("in use by another program" in notice for notice in second.heard.notices)
        second.record_edit(other, painted(other, np.s_[5], 1), slice(None))
        assert not second.remove_scan(other)
        second.close()
        first.close()
        again = open_session().add_scan(scan_of())
        assert_same_state(snapshot(again), snapshot(state))
        assert not (first.project.path / LOCK).exists() or again

    def test_one_that_comes_later_to_a_new_project_is_told_at_its_first_stroke(self, open_session):
        first, second = open_session(), open_session()
        one, two = first.add_scan(scan_of()), second.add_scan(scan_of())
        first.record_edit(one, painted(one, np.s_[1], 1), slice(None))
        second.record_edit(two, painted(two, np.s_[5], 1), slice(None))
        second.poll()
        assert any("in use by another program" in notice for notice in second.heard.notices)


class TestDamage:
    def test_a_damaged_journal_is_said_and_left(self, open_session):
        first = open_session()
        state = first.add_scan(scan_of())
        first.record_edit(state, painted(state, np.s_[1], 1), slice(None))
        first.close()
        path = first.project.path / DATABASE
        data = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(data)
        second = open_session()
        state = second.add_scan(scan_of())
        assert "damaged" in second.heard.notices[0]
        assert "export" in second.heard.notices[0]
        second.record_edit(state, painted(state, np.s_[5], 1), slice(None))
        second.close()
        assert path.read_bytes() == data

    def test_what_a_full_disk_refused_is_written_later(self, open_session, full_disk):  # noqa: F811
        session = open_session()
        state = session.add_scan(scan_of())
        session.record_edit(state, painted(state, np.s_[0], 1), slice(None))
        until(lambda: session.ledger.settle() == 2)
        with full_disk():
            for number in range(1, 4):
                session.record_edit(state, painted(state, np.s_[number], 1), slice(None))
            until(lambda: session.poll() or session.heard.notices)
        assert "could not be saved" in session.heard.notices[0]
        session.record_edit(state, painted(state, np.s_[4], 1), slice(None))
        until(lambda: session.ledger.settle() == 6)
        session.close()
        assert list(verify(session.project.path)) == []
        assert_same_state(snapshot(open_session().add_scan(scan_of())), snapshot(state))


class TestEarlierStates:
    def test_each_can_be_gone_back_to_and_that_be_undone(self, open_session):
        session = open_session()
        state = session.add_scan(scan_of())
        states = {}
        for number in range(4):
            session.record_edit(state, painted(state, np.s_[number], 1), slice(None))
            until(lambda n=number: session.ledger.settle() == n + 2)
            states[number + 2] = snapshot(state)
        session.accept_slices(state, [0, 1])
        last = snapshot(state)
        moments = session.timeline.moments(state)
        assert [moment.action for moment in moments] == ["import", "stroke", "stroke", "stroke", "stroke", "accept"]
        for seq, then in states.items():
            session.timeline.restore(state, seq)
            assert_same_state(snapshot(state), then)
            session.undo(state)
            assert_same_state(snapshot(state), last)
        session.timeline.restore(state, 2)
        session.close()
        assert_same_state(snapshot(open_session().add_scan(scan_of())), states[2])

    def test_strokes_of_a_minute_are_one_line(self):
        from napari_unet.session.timeline import Moment, summary

        def moment(seq, second, action="stroke", reader="anna"):
            return Moment(seq, f"2026-11-23T10:{second // 60:02}:{second % 60:02}.000+00:00", reader, action, 10)

        found = summary(
            [moment(1, 0), moment(2, 30), moment(3, 80), moment(4, 300), moment(5, 301, "undo"), moment(6, 302)]
        )
        assert [(m.seq, m.voxels) for m in found] == [(3, 30), (4, 10), (5, 10), (6, 10)]

    def test_where_nothing_was_saved_there_is_nothing(self, open_session):
        from napari_unet.domain.errors import SessionError

        session = open_session()
        state = session.add_scan(scan_of())
        assert session.timeline.moments(state) == []
        with pytest.raises(SessionError):
            session.timeline.restore(state, 1)


def test_a_desk_that_cannot_be_kept_does_not_repeat_strokes(open_session, monkeypatch):
    monkeypatch.setattr("napari_unet.session.journaling._AGAIN_SECONDS", 0.05)
    session = open_session()
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[1], 1), slice(None))
    until(lambda: session.ledger.settle() == 2)

    def refuse(*_):
        raise ProjectError("no")

    monkeypatch.setattr(Journal, "keep_desk", refuse)
    session.desk.look_at(state, 3)
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    time.sleep(0.4)
    monkeypatch.undo()
    session.close()
    with contextlib.closing(Journal(session.project.path, read_only=True)) as journal:
        assert [event.action for event in journal.events()] == ["import", "stroke", "stroke"]
