"""Classes come and go; what was painted keeps its meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.session.classes import change_classes, enlarged, from_preset, without
from tests.session.conftest import painted
from tests.session.test_autosave import scan_of

TWO = LabelSchema.of("liver", "tumour")


def names(session):
    return {each.id: each.name for each in session.schema.classes}


@pytest.fixture
def session(open_session):
    session = open_session()
    session.set_schema(TWO)
    return session


def test_a_class_removed_while_its_scan_is_closed_comes_back_with_it(session):
    scan = scan_of()
    state = session.add_scan(scan)
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    session.remove_scan(state)
    change_classes(session, without(session.schema, 2))
    change_classes(session, enlarged(session.schema, session.desk.former))
    assert names(session) == {1: "liver", 3: "class 2"}  # and not 2: somewhere there may be voxels of that
    session.add_scan(scan)
    assert names(session) == {1: "liver", 3: "class 2", 2: "tumour"}
    assert any("tumour" in notice and "again" in notice for notice in session.heard.notices)


def test_a_class_removed_comes_back_with_what_undo_brings_back(session):
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    with pytest.raises(SessionError, match="Some voxels are labelled tumour"):
        change_classes(session, without(session.schema, 2))
    session.record_edit(state, painted(state, np.s_[2], 0), slice(None))
    change_classes(session, without(session.schema, 2))
    session.undo(state)
    assert names(session) == {1: "liver", 2: "tumour"}
    assert (state.annotation.labels[2] == 2).all()


def test_former_classes_are_known_the_next_day(session, open_session):
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    change_classes(session, without(session.schema, 2))
    session.close()
    again = open_session()  # with a class of its own for the time being
    again.set_schema(LabelSchema.of("something"))
    assert [again.desk.former[value].name for value in (1, 2)] == ["liver", "tumour"]


def test_a_preset_renumbers_nothing_that_a_closed_scan_holds(session):
    assert from_preset(session, ("kidney", "cyst")) == LabelSchema.of("kidney", "cyst")
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    session.remove_scan(state)
    found = from_preset(session, ("tumour", "cyst"))
    assert {each.id: each.name for each in found.classes} == {2: "tumour", 3: "cyst"}


def test_no_class_is_taken_from_under_its_voxels_by_an_undone_choice_of_a_model(session, trained):
    first, second = session.add_scan(scan_of(seed=1)), session.add_scan(scan_of(seed=2))
    session.set_schema(LabelSchema.of("liver"))
    session.activate(first)
    session.models.use(model_of(trained, "liver", "tumour"))
    session.record_edit(second, painted(second, np.s_[2], 2), slice(None))
    session.undo(first)
    assert session.models.in_use is None
    assert names(session) == {1: "liver", 2: "tumour"}
    session.redo(first)
    assert names(session) == {1: "liver", 2: "tumour"}


def test_no_class_becomes_another_by_an_undone_choice_of_a_model(session, trained):
    first, second = session.add_scan(scan_of(seed=1)), session.add_scan(scan_of(seed=2))
    session.set_schema(LabelSchema.of("liver", "cyst"))
    session.activate(first)
    model = model_of(trained, "liver", "tumour")
    session.models.use(model)
    session.record_edit(second, painted(second, np.s_[2], 2), slice(None))
    session.undo(first)
    assert "not taken back: voxels labelled tumour would count as cyst" in session.heard.notices[-1]
    assert session.models.in_use is model
    assert names(session)[2] == "tumour"


def test_voxels_that_count_as_another_class_are_said(session, trained):
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    session.models.use(model_of(trained, "liver", "vessel"))
    assert any("labelled tumour count as vessel now: Undo" in notice for notice in session.heard.notices)
    session.undo(state)  # as it was said
    assert names(session)[2] == "tumour"
    assert session.models.in_use is None


def test_the_persons_classes_come_back_though_voxels_have_added_one(session, trained):
    session.set_schema(LabelSchema.of("a", "b", "c"))
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 3), slice(None))
    session.models.use(model_of(trained, "liver", "vessel"))
    assert names(session) == {1: "liver", 2: "vessel", 3: "c"}
    session.models.begin_anew(None)
    assert names(session) == {1: "a", 2: "b", 3: "c"}


def test_a_scan_whose_labels_are_called_otherwise_now_says_so(session, trained):
    scan = scan_of()
    state = session.add_scan(scan)
    session.record_edit(state, painted(state, np.s_[2], 2), slice(None))
    session.remove_scan(state)
    session.models.use(model_of(trained, "liver", "vessel"))
    session.add_scan(scan)
    assert any("labelled tumour count as vessel now" in notice for notice in session.heard.notices)


def test_a_preset_gives_no_undone_stroke_another_class(session):
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 1), slice(None))
    session.undo(state)
    change_classes(session, from_preset(session, ("kidney", "cyst")))
    session.redo(state)
    assert {names(session)[value] for value in np.unique(state.annotation.labels) if value} == {"liver"}


def test_a_deleted_model_is_not_taken_into_use_by_undo(session, trained):
    session.add_scan(scan_of())
    for _ in range(2):
        kept = session.project.write_model(model_of(trained, "liver", "tumour"))
        session.models.use_kept(kept.card.name)
    session.models.remove(["v1"])
    session.undo(session.active)
    assert session.models.in_use.card.name == "v2"
    assert "v1 was deleted" in session.heard.notices[-1]


def test_numbers_that_the_labels_of_an_open_scan_cannot_hold_are_refused(session, trained):
    state = session.add_scan(scan_of())
    large = LabelSchema(classes=(*TWO.classes, LabelClass(id=300, name="vessel", colour=(1, 0, 0))))
    with pytest.raises(SessionError, match="number 300"):
        session.set_schema(large)
    card = trained.card.model_copy(update={"label_schema": large})
    with pytest.raises(SessionError, match="close the scans first"):
        session.models.use(replace(trained, card=card))
    assert session.models.in_use is None
    session.remove_scan(state)
    session.set_schema(large)
    state = session.add_scan(scan_of())
    session.record_edit(state, painted(state, np.s_[2], 300).astype(np.uint16), slice(None))
    assert state.annotation.labels.max() == 300


def model_of(trained, *classes):
    """A model that says it knows these classes."""
    return replace(trained, card=trained.card.model_copy(update={"label_schema": LabelSchema.of(*classes)}))
