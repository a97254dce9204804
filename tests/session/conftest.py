"""Sessions on small scans; one engine for all tests of this room, because starting one costs seconds."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest

from napari_unet.compute.engine import Engine
from napari_unet.domain.labels import LabelSchema
from napari_unet.session.session import Session
from napari_unet.training.fine_tune import fine_tune
from tests.training.lessons import CPU, SCHEMA, lesson, run, small_settings


class Heard:
    """Everything a session says, in order."""

    def __init__(self, session):
        self.notices, self.changes, self.events = [], [], []
        session.notified.connect(lambda notice: self.notices.append(notice.message))
        session.labels_changed.connect(self.changes.append)
        for name in (
            *("scan_added", "scan_removed", "active_changed", "labels_changed", "acceptance_changed", "schema_changed"),
            *("models.changed", "proposals.changed", "learning.changed", "learning.verdict_changed"),
        ):
            attrgetter(name)(session).connect(lambda *_, name=name: self.events.append(name))

    def take(self):
        """Return the names of the events since the last call."""
        taken, self.events[:] = list(self.events), []
        return taken


class Borrowed:
    """The engine as one session sees it, which outlives the session."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def close(self):
        self._engine.poll()


@pytest.fixture(scope="package")
def engine():
    with contextlib.closing(Engine(threads=1)) as engine:
        engine.start()
        yield engine


@pytest.fixture
def open_session(tmp_path):
    """Open sessions without a running engine; all end with the test."""
    opened = []

    def make(folder="project", schema=None, engine=None):
        session = Session(engine or Engine(), tmp_path / folder, schema)
        session.heard = Heard(session)
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()


@pytest.fixture
def session(open_session):
    """One that edits and saves, but never computes."""
    return open_session(schema=LabelSchema.of("a", "b"))


@pytest.fixture
def computing(open_session, engine):
    """One with the engine behind it, and a class called as in the lessons."""
    return open_session(schema=SCHEMA, engine=Borrowed(engine))


@pytest.fixture(scope="package")
def trained():
    """A checkpoint that finds bright squares in volumes."""
    lessons = [lesson((6, 24, 24), seed=seed) for seed in range(2)]
    return run(fine_tune(lessons, small_settings(steps=80), SCHEMA, CPU, name="v1"))[1].checkpoint


@pytest.fixture
def scan_and_truth():
    one = lesson((6, 24, 24), seed=5)
    return one.scan, one.labels


def renumbered(checkpoint, schema):
    """The same network with other label ids."""
    return replace(checkpoint, card=checkpoint.card.model_copy(update={"label_schema": schema}))


def painted(state, where, value):
    """What the view shows after a stroke."""
    view = state.annotation.labels.copy()
    view[where] = value
    return view


def snapshot(state):
    annotation = state.annotation.copy()
    return annotation.labels, annotation.painted, annotation.accepted


def assert_same_state(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
