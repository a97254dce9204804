"""Other labels of the active scan beside its own: a second reader's, or those of an earlier proposal.

The person sees where they differ, and how much; what is decided about the differences is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.errors import MaskError, SessionError
from napari_unet.io.masks import read_mask_of
from napari_unet.session.classes import in_own_classes
from napari_unet.session.history import Step
from napari_unet.session.recalling import replayed
from napari_unet.storage.journal import Journal
from napari_unet.storage.project_folder import ProjectFolder

if TYPE_CHECKING:
    from napari_unet.session.session import Session
    from napari_unet.session.state import ScanState

#: What the journal calls a decision about a difference.
CONSENSUS = "consensus"


@dataclass(frozen=True)
class Agreement:
    """How much two masks of one scan agree on a class.

    Parameters
    ----------
    name : str
        Of the class.
    dice : float
        In [0, 1]; 1 where both lack the class.
    nsd : float
        Normalised surface Dice at 1 mm (1 pixel where the spacing is not known).
    differing : int
        Voxels that one of them gives to the class and the other does not.
    """

    name: str
    dice: float
    nsd: float
    differing: int


class Comparison:
    """Other labels of one scan, next to the session's.

    Parameters
    ----------
    session : Session
        Whose active scan is compared.
    commit : callable
        Carries out a correction as a step that undo takes back.
    """

    changed = Signal()  # begun, ended, or the differences have changed

    def __init__(self, session: Session, commit: Callable[[ScanState, Correction], None]) -> None:
        self._session, self._commit = session, commit
        self._with: tuple[ScanState, NDArray, str] | None = None
        #: What was decided, as steps of the scan's history: what undo takes back is open again.
        self._decided: list[tuple[Step, NDArray[np.int64]]] = []
        session.active_changed.connect(self._left)
        session.labels_changed.connect(lambda change: self._relabelled(change.state))

    @property
    def state(self) -> ScanState | None:
        """The scan that is compared; None where none is."""
        return None if self._with is None else self._with[0]

    @property
    def others(self) -> NDArray | None:
        """The other labels, over the spatial axes."""
        return None if self._with is None else self._with[1]

    @property
    def name(self) -> str:
        """Whose labels the other ones are."""
        return "" if self._with is None else self._with[2]

    def with_project(self, folder: Path) -> None:
        """Compare with what was said about the scan in another project, which another reader works in.

        Raises
        ------
        SessionError
            No scan is open, or the project knows nothing of it.
        MaskError
            It holds a class that is none here.
        ProjectError, ScanError
            The project is damaged.
        """
        state = self._active()
        scan, project = state.scan, ProjectFolder(folder)
        if folder.resolve() == self._session.project.path.resolve():
            raise SessionError("That is the project you work in: choose the other reader's.")
        saved = project.read_annotation(scan.fingerprint, scan.spatial_shape, scan.slice_axis)
        readers: dict[str, None] = {}
        names: dict[int, str] = {}
        if project.has_journal:
            with closing(Journal(folder, read_only=True)) as journal:
                known = journal.scan(scan.fingerprint)
                desk, _ = journal.desk()
                classes = () if desk.classes is None else desk.classes.classes
                names = {each.id: each.name for each in (*desk.former, *classes)}
                if known is not None:
                    saved, _ = replayed(journal, known, saved)
                    readers = {event.reader: None for event in journal.events(scan.fingerprint)}
        if saved is None:
            raise SessionError(f"The project {folder.name} knows nothing of {state.name}: choose another one.")
        who = ", ".join(readers) or folder.name
        self.begin(state, in_own_classes(self._session.schema, saved.annotation.labels, names, who), who)

    def with_mask(self, path: Path) -> None:
        """Compare with a mask in a file, of the same grid.

        Raises
        ------
        SessionError
            No scan is open.
        MaskError, ScanError
            The mask cannot be read, belongs to another grid, or holds values that are no class.
        """
        state = self._active()
        labels, names = read_mask_of(state.scan, path)
        self.begin(state, in_own_classes(self._session.schema, labels, names, path.name), path.name)

    def with_before(self) -> None:
        """Compare with the labels from before the last proposal.

        Raises
        ------
        SessionError
            Nothing was proposed for the active scan.
        """
        state = self._session.active
        if state is None or state.before_proposal is None:
            raise SessionError("Nothing was proposed for this scan yet: there is no before and after.")
        self.begin(state, state.before_proposal, "before the proposal")

    def begin(self, state: ScanState, others: NDArray, name: str) -> None:
        """Put other labels of a scan, over its spatial axes, beside its own.

        Raises
        ------
        MaskError
            They have another shape.
        """
        if others.shape != state.scan.spatial_shape:
            raise MaskError(
                f"The mask has shape {others.shape} and the scan {state.scan.spatial_shape}: they do not belong "
                "together."
            )
        self._with = state, others, name
        self._decided = []
        self.changed.emit()

    def end(self) -> None:
        """Put the other labels away."""
        if self._with is not None:
            self._with, self._decided = None, []
            self.changed.emit()

    def agreement(self) -> list[Agreement]:
        """Return how much both agree, class by class."""
        # scipy, with it, would hold the window's start up.
        from napari_unet.evaluation.metrics import dice, nsd

        state, others, _ = self._require()
        own, spacing = state.annotation.labels, state.scan.geometry.spacing
        found = []
        for each in self._session.schema.classes:
            mine, theirs = own == each.id, others == each.id
            differing = int((mine != theirs).sum())
            found.append(Agreement(each.name, dice(mine, theirs), nsd(mine, theirs, spacing, 1.0), differing))
        return found

    def differences(self) -> NDArray[np.bool_]:
        """Return where the labels differ and nothing was decided yet, over the spatial axes."""
        state, others, _ = self._require()
        found = state.annotation.labels != others
        for step, places in self._decided:
            if state.history.stands(step):
                found.flat[places] = False
        return found

    def look_again(self, state: ScanState) -> None:
        """Tell those who look at the differences that steps of a scan were taken back, or done again."""
        if self._with is not None and state is self._with[0]:
            self.changed.emit()

    def next_slice(self) -> int | None:
        """Return the slice after the one on screen that differs, going round at the end; None where none does."""
        state, _, _ = self._require()
        planes = state.scan.to_planes(self.differences())
        differing = [bool(plane.any()) for plane in planes]
        n, here = len(differing), self._session.visible_slice
        return next(((here + i) % n for i in range(1, n + 1) if differing[(here + i) % n]), None)

    def take_theirs(self, slices: slice = slice(None)) -> int:
        """Give the voxels that differ in some slices the other labels; return how many those were.

        Accepted slices too, which is what two readers settle; but no voxel that a lock or the overwrite rule protects.
        """
        return self._decide(slices, theirs=True)

    def keep_mine(self, slices: slice = slice(None)) -> int:
        """Put on record that the session's labels hold where they differ in some slices; return how many voxels."""
        return self._decide(slices, theirs=False)

    def _decide(self, slices: slice, theirs: bool) -> int:
        state, others, _ = self._require()
        annotation = state.annotation
        where = self.differences()
        chosen = np.zeros_like(where)
        index = annotation.slice_index(slices)
        chosen[index] = where[index]
        places = np.flatnonzero(chosen)
        before, after = annotation.labels.flat[places], others.flat[places]
        if theirs:
            refused = self._session.tools.forbidden(before, after)
            if refused.any():
                self._session.tell(
                    f"{int(refused.sum()):,} voxels stay as they are: their class is locked, or not overwritten."
                )
            places, before, after = places[~refused], before[~refused], after[~refused]
        if not len(places):
            return 0
        if theirs and after.max() > np.iinfo(before.dtype).max:
            raise SessionError("The other labels hold values that this scan's cannot: they stay as they are.")
        painted = annotation.painted.flat[places]
        correction = Correction(
            CONSENSUS,
            labels=SparseChange(places, before, after.astype(before.dtype)) if theirs else None,
            painted=SparseChange(places, painted, np.ones_like(painted)),
        )
        self._commit(state, correction)
        if theirs and annotation.slice_axis is not None:
            where_to = np.unravel_index(places, annotation.labels.shape)[annotation.slice_axis]
            n = int(annotation.accepted[np.unique(where_to)].sum())
            if n:
                self._session.tell(
                    f"{n} accepted slice{'s' if n > 1 else ''} changed with that, and still count as accepted."
                )
        step = state.history.next_undo
        if step is not None and step.kind == CONSENSUS:
            self._decided.append((step, places))
        self.changed.emit()
        return len(places)

    def _require(self) -> tuple[ScanState, NDArray, str]:
        if self._with is None:
            raise SessionError("Nothing is compared: choose another reader's project, or a mask, first.")
        return self._with

    def _active(self) -> ScanState:
        if self._session.active is None:
            raise SessionError("No scan is open.")
        return self._session.active

    def _left(self) -> None:
        if self._with is not None and self._session.active is not self._with[0]:
            self.end()

    def _relabelled(self, state: ScanState) -> None:
        if self._with is not None and state is self._with[0]:
            self.changed.emit()
