"""Changing the classes of a session; what is painted keeps its meaning, since ids stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import PALETTE, LabelClass, LabelSchema
from napari_unet.session.session import Session


def change_classes(session: Session, schema: LabelSchema) -> None:
    """Give a session other classes.

    Raises
    ------
    SessionError
        A class that would be gone is on an open scan, or the model in use needs it.
    """
    for each in session.schema.classes:
        if each.id not in schema.ids and any(np.any(state.annotation.labels == each.id) for state in session.scans):
            raise SessionError(f"Some voxels are labelled {each.name}: erase them before you remove the class.")
    session.set_schema(schema)


def edited_schema(schema: LabelSchema, names: Sequence[str]) -> LabelSchema:
    """Return a schema with new names: as many or more rename in place and add, fewer remove those not named.

    Raises
    ------
    SessionError
        No name, one name twice, or names missing and others changed at once.
    """
    if not names or not all(names) or len(set(names)) != len(names):
        raise SessionError("Give each class a name of its own, such as: liver, tumour.")
    if len(names) < len(schema.classes):
        kept = [c for c in schema.classes if c.name in names]
        if len(kept) != len(names):
            raise SessionError("To remove a class take its name away and leave the other names as they are.")
        return LabelSchema(classes=tuple(kept))
    ids = [*schema.ids, *range(max(schema.ids) + 1, max(schema.ids) + 1 + len(names) - len(schema.ids))]
    fresh = iter([colour for colour in PALETTE if colour not in {c.colour for c in schema.classes}])
    colours = [c.colour for c in schema.classes]
    colours += [next(fresh, PALETTE[(value - 1) % len(PALETTE)]) for value in ids[len(colours) :]]
    return LabelSchema(
        classes=tuple(LabelClass(id=i, name=n, colour=c) for i, n, c in zip(ids, names, colours, strict=True))
    )


def renamed(schema: LabelSchema, value: int, name: str) -> LabelSchema:
    """Return a schema in which the class of an id has another name.

    Raises
    ------
    SessionError
        The name is empty, or another class has it.
    """
    return edited_schema(schema, [name.strip() if each.id == value else each.name for each in schema.classes])


def recoloured(schema: LabelSchema, value: int, colour: tuple[float, float, float]) -> LabelSchema:
    """Return a schema in which the class of an id has another colour: red, green, blue from 0 to 1."""
    changed = [each.model_copy(update={"colour": colour}) if each.id == value else each for each in schema.classes]
    return LabelSchema(classes=tuple(changed))


def enlarged(schema: LabelSchema) -> LabelSchema:
    """Return a schema with one more class at the end, to be named."""
    names = [each.name for each in schema.classes]
    number = len(names) + 1
    while f"class {number}" in names:
        number += 1
    return edited_schema(schema, [*names, f"class {number}"])


def without(schema: LabelSchema, value: int) -> LabelSchema:
    """Return a schema without the class of an id.

    Raises
    ------
    SessionError
        It is the only one.
    """
    kept = tuple(each for each in schema.classes if each.id != value)
    if not kept:
        raise SessionError("One class has to stay: give it another name instead.")
    return LabelSchema(classes=kept)


def moved(schema: LabelSchema, value: int, by: int) -> LabelSchema:
    """Return a schema in which the class of an id stands so many places further down; ids stay."""
    classes = list(schema.classes)
    at = schema.ids.index(value)
    classes.insert(min(max(at + by, 0), len(classes) - 1), classes.pop(at))
    return LabelSchema(classes=tuple(classes))


def from_preset(session: Session, names: Sequence[str]) -> LabelSchema:
    """Return the classes of a preset: anew where nothing is painted, else as new names of those there are.

    Raises
    ------
    SessionError
        Something is painted, and there are more classes than the preset names.
    """
    if not any(state.annotation.labels.any() for state in session.scans):
        return LabelSchema.of(*names)
    if len(names) < len(session.schema.classes):
        raise SessionError(
            f"There are labels already, of more classes than {', '.join(names)}: remove those that you do not need."
        )
    return edited_schema(session.schema, names)
