"""The application without a window: open scans, correct, accept; and by its parts propose, fine-tune, use or keep.

All methods are called on one thread (the window's, or the script's). Long work runs in the engine; what it says
arrives through :meth:`Session.poll`. Views listen to the signals and send intentions; they hold no state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import MaskError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import Notice
from napari_unet.domain.scan import Scan
from napari_unet.io.masks import distinct_values, read_mask_of
from napari_unet.networks.growing import can_grow
from napari_unet.session.audits import Audits
from napari_unet.session.autosave import Autosave
from napari_unet.session.classes import in_own_classes, labels_there, told_otherwise, with_classes_of
from napari_unet.session.cleaning import CleanUp
from napari_unet.session.comparing import Comparison
from napari_unet.session.computing import Computing
from napari_unet.session.desk import ProjectDesk
from napari_unet.session.folder_masking import FolderMasking
from napari_unet.session.learning import Learning
from napari_unet.session.live import LiveRefit
from napari_unet.session.model_choice import ModelChoice
from napari_unet.session.planning import Planning
from napari_unet.session.preferences import Preferences
from napari_unet.session.proposals import Proposals
from napari_unet.session.reporting import Reporting
from napari_unet.session.state import Flag, ScanState, lock_scan, open_scan, require_openable
from napari_unet.session.suggesting import Suggestion, next_slice
from napari_unet.session.timeline import Timeline
from napari_unet.session.tools import Tools
from napari_unet.session.worker import Worker
from napari_unet.storage.audit import FLAG
from napari_unet.storage.project_folder import ProjectFolder, require_project


@dataclass(frozen=True)
class LabelsChanged:
    """Labels of a scan changed: which, and what. ``origin`` is ``view`` where the view shows it already."""

    state: ScanState
    correction: Correction
    origin: Literal["view", "session"]


class Session:
    """The open scans, what is said about them, and the parts that do the rest; each part tells of its own changes.

    Parameters
    ----------
    engine : Engine
        Runs the long work. The session starts it, and closes it in :meth:`close`.
    folder : Path
        Where checkpoints and labels are kept.
    schema : LabelSchema, optional
        Classes; one foreground class by default. A model with other classes brings its own.

    Attributes
    ----------
    models : ModelChoice
        The model in use, and those at hand.
    proposals : Proposals
    learning : Learning
        Fine-tuning, and the decision on what comes of it.
    planning : Planning
        The settings of the next fine-tune.
    folder : FolderMasking
    tools, live, clean_up, comparison : Tools, LiveRefit, CleanUp, Comparison
        What changes labels, or asks about them.
    computing : Computing
        Where things are computed.
    project, ledger, desk, timeline, audits : ProjectFolder, Ledger, ProjectDesk, Timeline, Audits
        Of the open project, and replaced with it.
    reporting : Reporting
    """

    scan_added = Signal(ScanState)
    scan_removed = Signal(ScanState)
    active_changed = Signal()
    labels_changed = Signal(LabelsChanged)
    acceptance_changed = Signal(ScanState)
    slice_wanted = Signal(int)  # of the active scan, to be shown
    project_changed = Signal()  # another one, or another reader: read ``project``, ``reader``, ``desk``
    schema_changed = Signal()
    notified = Signal(Notice)

    def __init__(self, engine: Engine, folder: Path, schema: LabelSchema | None = None) -> None:
        self._worker = Worker(engine)
        self._use_project(folder)
        self.computing = Computing(self._worker, self._require_rest, self._moved_elsewhere)
        self.schema = schema or LabelSchema.of("structure")
        self.scans: list[ScanState] = []
        self.active: ScanState | None = None
        self._visible_slice = 0
        #: How Next chooses.
        self.suggestion: Suggestion = "spacing"
        self.models = ModelChoice(self, self._change_schema, lambda: self.proposals.make_ready())
        self.proposals = Proposals(self, self._worker, self._take)
        self.learning = Learning(self, self._worker, lambda state: self._autosave.mark(state))
        self.folder = FolderMasking(self, self._worker)
        self.planning = Planning(self, self._worker)
        self.clean_up = CleanUp(self, self._worker, self._take)
        self.live = LiveRefit(self, self._worker, self._take)
        self.comparison = Comparison(self, self._put)
        self.tools = Tools(self, self._worker, self._put)
        self.reporting = Reporting(self, lambda: self.engine.notify())
        for signal in (self.active_changed, self.schema_changed, self.models.changed):
            signal.connect(lambda: self.desk.note())

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine in the background, so that the first click finds it warm."""
        self.engine.start()
        # A failure is told once something is to be computed.
        self._worker.when_resolved(self._know_device, lambda _: None)

    @property
    def engine(self) -> Engine:
        """What computes now."""
        return self._worker.engine

    def _require_rest(self) -> None:
        """Refuse to compute elsewhere in the midst of work.

        Raises
        ------
        SessionError
            Something is being computed.
        """
        if not all(part.is_over for part in (self.proposals, self.learning, self.folder, self.clean_up)):
            raise SessionError("Something is being computed: wait for it, or stop it first.")

    def _moved_elsewhere(self) -> None:
        self.live.restart()
        self.clean_up.dismiss()
        self.tools.dismiss()
        self.start()
        self.computing.changed.emit()
        self.planning.changed.emit()

    def _know_device(self, compute: ResolvedCompute) -> None:
        # Until now all was planned for a CPU.
        if compute.device != "cpu":
            self.planning.changed.emit()
        self.computing.changed.emit()

    def poll(self) -> None:
        """Take in what the engine has said since; called on the session's thread."""
        self.engine.poll()
        self.computing.poll()
        self._tell_save_errors()
        self.reporting.poll()

    def close(self) -> None:
        """Stop all work, save what is unsaved, end the engine; returns within about two seconds."""
        for part in (self.proposals, self.learning, self.folder):
            part.cancel()
        self.desk.leave()
        self._autosave.close()
        self._tell_save_errors()
        self.reporting.close()
        self.engine.close()

    # -- the project --------------------------------------------------------------------------------------------

    def _use_project(self, folder: Path) -> None:
        self.project = ProjectFolder(folder)
        self._autosave = Autosave(self.project, lambda: self.engine.notify())
        self.ledger = self._autosave.ledger
        self.timeline = Timeline(self.ledger, self._restore)
        self.desk = ProjectDesk(self, self.ledger)
        self.audits = Audits(self.ledger, self.desk)

    def open_project(self, folder: Path) -> None:
        """Work in another project from now on: all scans are closed; ``desk.reopen`` opens what was open there.

        Raises
        ------
        SessionError
            Something is being computed.
        ProjectError
            The folder is there and is no project, though it is not empty.
        """
        self._require_rest()
        require_project(folder)
        unsaved = [each.name for each in self.scans if not self._autosave.flush(each) and each.history.next_undo]
        if unsaved:
            raise SessionError(
                f"Your work on {', '.join(unsaved)} could not be saved and would be lost: export the masks first, and "
                "close the scans."
            )
        self.desk.leave()
        for state in list(self.scans):
            self.remove_scan(state)
        self._autosave.close()
        self._tell_save_errors()
        self.models.forget()
        self.learning.verdict = None
        self._use_project(folder)
        self.tools.unlock_all()
        self.schema = LabelSchema.of("structure")
        Preferences.read().with_project(folder).keep()
        for signal in (self.project_changed, self.schema_changed, self.models.changed, self.learning.verdict_changed):
            signal.emit()

    @property
    def reader(self) -> str:
        """The name under which the person's work is recorded."""
        return self.ledger.reader

    def set_reader(self, name: str) -> None:
        """Record the work from now on under another name, here and in projects that are opened later.

        Raises
        ------
        SessionError
            The name is empty or longer than a line.
        ProjectError
            What was done under the name so far could not be saved yet.
        """
        name = name.strip()
        if not 0 < len(name) <= 60 or not name.isprintable():
            raise SessionError("A reader's name has 1 to 60 letters: initials will do.")
        self.ledger.reader = name
        Preferences.read().model_copy(update={"reader": name}).keep()
        self.project_changed.emit()

    # -- scans --------------------------------------------------------------------------------------------------

    def add_scan(self, scan: Scan, labels: NDArray | None = None) -> ScanState:
        """Open a scan; what was saved for it before (found by the hash of its voxels) comes back.

        Parameters
        ----------
        scan : Scan
        labels : array, optional
            Starting labels over the spatial axes, where nothing was saved.

        Raises
        ------
        ScanError
            A scan with channels that are neither colour nor single, or one larger than the memory.
        MaskError
            ``labels`` has another shape, or values that no label can have.
        """
        require_openable(scan, labels)
        known = next((s for s in self.scans if s.scan.fingerprint == scan.fingerprint), None)
        if known is not None:
            elsewhere = ", in another place: close it first, then open this one"
            same = known.scan.geometry.is_same(scan.geometry)
            self.tell(f"This scan is open already, as {known.name}{'' if same else elsewhere}.")
            self.activate(known)
            return known
        state = open_scan(scan, labels, self.schema, self.desk.number_of(scan))
        remembered = self._autosave.restore(state)
        if remembered is not None:
            self.tell(remembered)
            self._keep_classes(distinct_values(state.annotation.labels))
            self._tell_other_names(state)
        self.scans.append(state)
        self.scan_added.emit(state)
        for warning in scan.warnings:
            self.tell(f"{state.name}: {warning}")
        self.activate(state)
        return state

    def remove_scan(self, state: ScanState) -> bool:
        """Close a scan; its labels stay saved. Returns whether they could be."""
        if state not in self.scans:
            return True
        self.proposals.cancel_for(state)
        self.scans.remove(state)
        is_saved = self._autosave.flush(state)
        if self.learning.is_over:
            self.engine.forget(state.scan.fingerprint)
        if self.active is state:
            self.active = None
            self.active_changed.emit()
        self.scan_removed.emit(state)
        return is_saved

    def activate(self, state: ScanState | None) -> None:
        """Make a scan the one that Propose and Accept act on."""
        if state is not self.active:
            self.active = state
            self.active_changed.emit()
            self.proposals.make_ready()

    def go_to(self, index: int) -> None:
        """Have a slice of the active scan shown."""
        self.slice_wanted.emit(index)

    def next_to_check(self) -> None:
        """Show the slice where a look pays most, in this scan or in the next one that has any.

        Raises
        ------
        SessionError
            No scan is open, or nothing is left to be checked in any.
        """
        if self.active is None:
            raise SessionError("No scan is open.")
        at = self.scans.index(self.active)
        for state in (*self.scans[at:], *self.scans[:at]):
            here = self.visible_slice if state is self.active else None
            index = next_slice(state, here, self.suggestion)
            if index is not None:
                self.activate(state)
                self.go_to(index)
                return
        raise SessionError("All slices of the open scans are accepted: open another scan, or export the masks.")

    def set_flag(self, state: ScanState, flag: Flag | None) -> None:
        """Note how hard a scan is, with a comment; None: no longer."""
        state.flag = flag
        self._autosave.note_on(state, FLAG, {} if flag is None else asdict(flag))
        self.acceptance_changed.emit(state)

    def show_slice(self, index: int) -> None:
        """Say which slice of the active scan is on screen: proposals near it come first."""
        self._visible_slice = index
        if self.active is not None:
            self.desk.look_at(self.active, index)
        self.live.look_again()
        self.proposals.look_at(self.active, index)

    @property
    def visible_slice(self) -> int:
        """Slice of the active scan that is on screen."""
        return min(self._visible_slice, self.active.scan.n_slices - 1) if self.active else 0

    def set_schema(self, schema: LabelSchema) -> None:
        """Change the classes.

        Classes behind those that the model in use knows are learnt by the next fine-tune; until then it goes on
        proposing the others.

        Raises
        ------
        SessionError
            The model in use knows classes that would be gone, or another order: that needs a new model.
        """
        model = self.models.in_use
        if model is not None and not can_grow(model.card.label_schema, schema):
            raise SessionError(
                "The model in use knows other classes: choose a new one in the Model list to start with these classes."
            )
        self.require_room(schema)
        self.desk.rename(self.schema, schema)
        self.schema = schema
        self.schema_changed.emit()

    def require_room(self, schema: LabelSchema) -> None:
        """Refuse classes whose numbers the labels of an open scan cannot hold.

        Raises
        ------
        SessionError
            There is such a scan.
        """
        largest = max(schema.ids)
        for state in self.scans:
            if largest > np.iinfo(state.annotation.labels.dtype).max:
                raise SessionError(
                    f"There is a class with the number {largest}, and {state.name} was opened for numbers up to "
                    f"{np.iinfo(state.annotation.labels.dtype).max}: close the scans first, and open them again after."
                )

    def _change_schema(self, schema: LabelSchema) -> None:
        """Put other classes in the place of these; those of which there are voxels stay behind them."""
        told, there = told_otherwise(self, schema), labels_there(self)
        former = {**self.desk.former, **{each.id: each for each in self.schema.classes}}
        self.schema = with_classes_of(schema, there, former)
        self.schema_changed.emit()
        if told:
            changes = ", ".join(f"{before} count as {after}" for _, before, after in told)
            self.tell(f"Voxels that were labelled {changes} now: Undo takes this choice back.")
        if there:
            self.tell(f"The classes are now {', '.join(each.name for each in self.schema.classes)}.")

    def _tell_other_names(self, state: ScanState) -> None:
        """Say which labels of a scan that was opened again have another name now than the project gave them."""
        names = {each.id: each.name for each in self.schema.classes}
        for value in sorted(distinct_values(state.annotation.labels) - {0}):
            former = self.desk.former.get(value)
            if former is not None and names.get(value, former.name) != former.name:
                self.tell(f"{state.name}: voxels that were labelled {former.name} count as {names[value]} now.")

    def _keep_classes(self, ids: Collection[int]) -> None:
        """Have each label that is there belong to a class: one that was removed comes back with its voxels."""
        schema = with_classes_of(self.schema, ids, self.desk.former)
        if schema != self.schema:
            names = [each.name for each in schema.classes[len(self.schema.classes) :]]
            self.schema = schema
            self.schema_changed.emit()
            self.tell(f"There are voxels of {', '.join(names)}: that is among the classes again.")

    # -- the correcting hand --------------------------------------------------------------------------------------

    def record_edit(self, state: ScanState, view: NDArray, slices: slice, kind: str = "stroke") -> Correction:
        """Take over what the person has painted.

        Parameters
        ----------
        state : ScanState
        view : array over the spatial axes
            Labels as the view shows them; compared with the session's.
        slices : slice
            Which slices may have changed (along the slice axis).
        kind : str
            ``stroke``, ``fill``...

        Returns
        -------
        Correction
            What was recorded; empty if nothing differs. What locks and the overwrite rule do not allow is put back in
            ``view``.
        """
        annotation = state.annotation
        index = annotation.slice_index(slices)
        current, seen = annotation.labels[index], view[index]
        changed = current != seen
        refused = changed & self.tools.forbidden(current, seen)
        if refused.any():
            seen[refused] = current[refused]
            changed &= ~refused
        if not changed.any():
            return Correction(kind)
        after = seen[changed]
        if after.min() < 0 or after.max() > np.iinfo(current.dtype).max:
            raise SessionError(
                f"Labels of {state.name} go from 0 to {np.iinfo(current.dtype).max}: paint with one of these."
            )
        touched = annotation.flat_indices(changed, slices.indices(state.scan.n_slices)[0])
        painted = annotation.painted[index][changed]
        correction = Correction(
            kind,
            labels=SparseChange(touched, current[changed], after.astype(current.dtype)),
            painted=SparseChange(touched, painted, np.ones_like(painted)),
            proposal=state.proposed_by,
        )
        state.history.add(correction)
        self._commit(state, correction, "view")
        return correction

    def _put(self, state: ScanState, correction: Correction) -> None:
        """Carry out what the person decided about labels, as one step."""
        state.history.add(correction)
        self._take(state, correction)

    def _take(self, state: ScanState, correction: Correction) -> None:
        """Carry out what is a step, or a part of one, already."""
        self._commit(state, correction, "session")

    def _restore(self, state: ScanState, correction: Correction) -> None:
        # The rest of it would come over what was brought back.
        self.proposals.cancel_for(state)
        self._put(state, correction)

    def load_mask(self, state: ScanState, path: Path) -> int:
        """Take labels from a mask file on the scan's grid, as one step; return how many voxels changed.

        Accepted slices, voxels painted by hand and locked classes stay, and nothing of it counts as reviewed.

        Raises
        ------
        MaskError, ScanError
            The file cannot be read, lies on another grid, or holds values that are no class.
        """
        labels, names = read_mask_of(state.scan, path)
        labels = in_own_classes(self.schema, labels, names, path.name)
        if labels.max(initial=0) > np.iinfo(state.annotation.labels.dtype).max:
            raise MaskError(f"{path.name} holds labels above those of {state.name}: close the scan and open it again.")
        annotation = state.annotation
        kept = annotation.reviewed() | self.tools.forbidden(annotation.labels, labels)
        wanted = np.where(kept, annotation.labels, labels).astype(annotation.labels.dtype)
        change = SparseChange.between(annotation.labels, wanted)
        self._put(state, Correction("load mask", labels=change))
        return len(change)

    def accept_slices(self, state: ScanState, slices: Sequence[int] | None = None, accepted: bool = True) -> None:
        """Declare slices right as they stand (all of the scan by default): they become truth."""
        chosen = list(range(state.scan.n_slices)) if slices is None else list(slices)
        self._put(state, state.annotation.acceptance(chosen, accepted))

    def undo(self, state: ScanState) -> bool:
        """Take back the last step on a scan; returns whether there was one."""
        step = state.history.next_undo
        if step is not None:
            self.proposals.make_way_for_undo(state, step)
        return self._replay(state, state.history.undo(), "undo") or step is not None

    def redo(self, state: ScanState) -> bool:
        """Do the last undone step again; returns whether there was one."""
        step = state.history.next_redo
        return self._replay(state, state.history.redo(), "redo") or step is not None

    def _replay(self, state: ScanState, corrections: list[Correction], action: str) -> bool:
        for correction in corrections:
            self._commit(state, correction, "session", action)
            if correction.proposal is not None:
                state.proposed_by = state.history.proposed_by
        if corrections:
            self.comparison.look_again(state)
        return bool(corrections)

    def _commit(
        self, state: ScanState, correction: Correction, origin: Literal["view", "session"], action: str | None = None
    ) -> None:
        if origin == "session" and correction.labels is not None:
            self._keep_classes(distinct_values(correction.labels.after))
        self._autosave.apply(state, correction, action)
        self.desk.note()
        if correction.labels is not None and len(correction.labels):
            self.labels_changed.emit(LabelsChanged(state, correction, origin))
        if correction.accepted is not None and len(correction.accepted):
            base = self.models.in_use or self.models.body
            if lock_scan(state, self.scans, () if base is None else base.card.seen):
                self._autosave.mark(state)
                self.tell(f"{state.name} is held out from now on: one scan in five judges models and teaches none.")
            self.acceptance_changed.emit(state)

    # -- helpers --------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> None:
        """Poll until no work is running (scripts and tests)."""
        for part in (self.proposals, self.learning, self.live, self.clean_up, self.tools):
            part.wait(self.engine, timeout)
        self.folder.wait(timeout)

    def tell(self, message: str) -> None:
        """Say one sentence to the person."""
        self.notified.emit(Notice(message))

    def _tell_save_errors(self) -> None:
        while (error := self._autosave.take_error()) is not None:
            self.tell(str(error))
