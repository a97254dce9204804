"""Changing the classes of a session; what is painted keeps its meaning, since ids stay what they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError, SessionError
from napari_unet.domain.labels import MOST_CLASSES, PALETTE, LabelClass, LabelSchema
from napari_unet.io.masks import distinct_values

if TYPE_CHECKING:
    from napari_unet.session.session import Session


def change_classes(session: Session, schema: LabelSchema) -> None:
    """Give a session other classes.

    Raises
    ------
    SessionError
        A class that would be gone is on an open scan, or the model in use needs it. Of a scan that is closed, the class
        comes back with its voxels.
    """
    for each in session.schema.classes:
        if each.id not in schema.ids and any(np.any(state.annotation.labels == each.id) for state in session.scans):
            raise SessionError(f"Some voxels are labelled {each.name}: erase them before you remove the class.")
    session.set_schema(schema)


def edited_schema(schema: LabelSchema, names: Sequence[str], taken: Collection[int] = ()) -> LabelSchema:
    """Return a schema with new names: as many or more rename in place and add, fewer remove those not named.

    Ids that are ``taken`` are given to no further class: somewhere there may be voxels of what was removed.

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
    next_id = max(*schema.ids, *taken, 0) + 1
    ids = [*schema.ids, *range(next_id, next_id + len(names) - len(schema.ids))]
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


def enlarged(schema: LabelSchema, taken: Collection[int] = ()) -> LabelSchema:
    """Return a schema with one more class at the end, to be named; see :func:`edited_schema`."""
    names = [each.name for each in schema.classes]
    number = len(names) + 1
    while f"class {number}" in names:
        number += 1
    return edited_schema(schema, [*names, f"class {number}"], taken)


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

    Where only scans that are closed have labels, classes of these names are those that the project had, and others get
    ids of their own.

    Raises
    ------
    SessionError
        Something is painted, and there are more classes than the preset names.
    """
    if not any(state.annotation.labels.any() for state in session.scans):
        open_scans = {state.scan.fingerprint for state in session.scans}
        is_fresh = all(place.scan in open_scans for place in session.desk.places())
        # What was painted and taken back may come again.
        if is_fresh and not any(state.history.next_undo or state.history.next_redo for state in session.scans):
            return LabelSchema.of(*names)
        former = session.desk.former
        known = {each.name: each for each in former.values()}
        fresh = LabelSchema.of(*(name for name in names if name not in known)) if set(names) - known.keys() else None
        added = {each.name: each for each in fresh.classes} if fresh is not None else {}
        above = max(former, default=0)
        return LabelSchema(
            classes=tuple(
                known.get(name) or added[name].model_copy(update={"id": above + added[name].id}) for name in names
            )
        )
    if len(names) < len(session.schema.classes):
        raise SessionError(
            f"There are labels already, of more classes than {', '.join(names)}: remove those that you do not need."
        )
    return edited_schema(session.schema, names, session.desk.former)


def with_classes_of(schema: LabelSchema, ids: Iterable[int], former: Mapping[int, LabelClass]) -> LabelSchema:
    """Return a schema in which each id has a class: behind its own, those that the project had.

    Parameters
    ----------
    schema : LabelSchema
    ids : iterable of int
        Of labels that are there; 0 is background.
    former : mapping of int to LabelClass
    """
    names = {each.name for each in schema.classes}
    added = []
    for value in sorted(set(ids) - {0, *schema.ids}):
        found = former.get(
            value, LabelClass(id=value, name=f"class {value}", colour=PALETTE[(value - 1) % len(PALETTE)])
        )
        name = found.name if found.name not in names else f"{found.name} ({value})"
        names.add(name)
        added.append(found.model_copy(update={"name": name}))
    return LabelSchema(classes=(*schema.classes, *added)[:MOST_CLASSES]) if added else schema


def in_own_classes(schema: LabelSchema, labels: NDArray, names: Mapping[int, str], who: str) -> NDArray:
    """Return labels from elsewhere with the ids that their classes have here.

    Parameters
    ----------
    schema : LabelSchema
    labels : integer array
    names : mapping of int to str
        What the values are called there, as far as that is known: classes are then the same where their names are, and
        otherwise where their ids are.
    who : str
        Whose labels they are, for what is said of them.

    Raises
    ------
    MaskError
        There is a class that is none here.
    """
    own = {_as_stored(each.name): each.id for each in schema.classes}
    here: dict[int, int] = {}
    for value in sorted(distinct_values(labels) - {0}):
        name = None if value not in names else _as_stored(names[value])
        if (name not in own) if name is not None else (names or value not in schema.ids):
            what = "name" if name is not None else "number"
            raise MaskError(
                f"{who} holds {name or value}, and there is no class of that {what}: add it with Classes..."
            )
        here[value] = value if name is None else own[name]
    if all(value == mine for value, mine in here.items()):
        return labels
    found = np.zeros(labels.shape, np.uint8 if max(here.values()) < 256 else np.uint16)
    for value, mine in here.items():
        found[labels == value] = mine
    return found


def _as_stored(name: str) -> str:
    """Return a name as DICOM keeps it: no backslash, single spaces, at most 64 characters."""
    return " ".join(name.replace("\\", "/").split())[:64]


def labels_there(session: Session) -> set[int]:
    """Return the labels of the open scans, but for background."""
    return set().union(*(distinct_values(state.annotation.labels) for state in session.scans)) - {0}


def told_otherwise(session: Session, schema: LabelSchema) -> list[tuple[int, str, str]]:
    """Return the classes of voxels on open scans that a schema calls otherwise: id, name, and the other name."""
    names = {each.id: each.name for each in schema.classes}
    there = labels_there(session)
    return [
        (each.id, each.name, names[each.id])
        for each in session.schema.classes
        if each.id in there and names.get(each.id, each.name) != each.name
    ]
