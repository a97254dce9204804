"""Choosing a model in the dock: new ones and those that come with the program."""

from __future__ import annotations

import pytest
from qtpy.QtTest import QTest

from napari_unet.session.models import STARTER, find_model
from tests.qt.conftest import Desk, make_scan

pytestmark = pytest.mark.gui

NEW, FROM_SCRATCH = "new model", "new, from scratch"


def choose(desk: Desk, name: str) -> None:
    """Type the beginning of an entry's name into the model list, as one does in a list."""
    box = desk.widget.propose.model
    box.setFocus()
    QTest.keyClicks(box, name)
    desk.spin()


def test_a_new_model_begins_with_the_starter_unless_told_otherwise(desk: Desk) -> None:
    box = desk.widget.propose.model
    desk.until(lambda: box.currentText() == NEW, 10)
    body = find_model(STARTER)
    assert body is not None
    assert desk.session.models.body.id == body.id
    desk.open(make_scan((40, 48), slice_axis=None))
    assert any("with the weights called starter" in line for line in desk.session.planning.in_words())
    choose(desk, FROM_SCRATCH)
    assert box.currentText() == FROM_SCRATCH
    assert desk.session.models.body is None
    assert not any("with the weights called starter" in line for line in desk.session.planning.in_words())


def test_a_model_that_comes_with_the_program_proposes_at_once(desk: Desk) -> None:
    desk.open(make_scan((6, 40, 48)))
    choose(desk, "nuclei")
    assert desk.session.models.in_use.card.name == "nuclei-fluorescence"
    assert [each.name for each in desk.session.schema.classes] == ["nucleus"]
    desk.push(desk.widget.propose.button)
    desk.until(lambda: desk.session.proposals.run is not None and desk.session.proposals.run.is_over, 90)
    assert desk.said == ""
    assert desk.layer.data.any(), "a bright ball is not unlike a nucleus"
    choose(desk, NEW)
    assert desk.session.models.in_use is None
