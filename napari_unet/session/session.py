"""The application without a window: open scans, propose, correct, accept, fine-tune, use or keep.

All methods are called on one thread (the window's, or the script's). Long work runs in the engine; what it says
arrives through :meth:`Session.poll`. Views listen to the signals and send intentions; they hold no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.compute.engine import Engine
from napari_unet.domain.annotation import Correction, SparseChange
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import MaskError, NapariUnetError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import Notice
from napari_unet.domain.proposal import Proposal
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.io.masks import check_same_grid, distinct_values, read_mask
from napari_unet.io.sidecar import sidecar_path
from napari_unet.io.writers import mask_suffix
from napari_unet.networks.growing import can_grow
from napari_unet.session.autosave import Autosave
from napari_unet.session.cleaning import CleanUp
from napari_unet.session.comparing import Comparison
from napari_unet.session.computing import Computing
from napari_unet.session.desk import ProjectDesk
from napari_unet.session.exporting import export_mask
from napari_unet.session.folder_run import FolderRun
from napari_unet.session.improving import FineTuneRun
from napari_unet.session.live import LiveRefit
from napari_unet.session.planning import Planning
from napari_unet.session.predicting import MaskFolder, Outcome, Target, find_targets
from napari_unet.session.preferences import Preferences
from napari_unet.session.proposing import WORSE_THAN_NOTHING, ProposalRun
from napari_unet.session.reporting import Reporting
from napari_unet.session.state import Flag, ScanState, lock_scan, open_scan, require_openable
from napari_unet.session.suggesting import Suggestion, next_slice
from napari_unet.session.timeline import Timeline
from napari_unet.session.tools import Tools
from napari_unet.session.verdict import Verdict, with_history
from napari_unet.session.worker import Worker
from napari_unet.storage.audit import FLAG, AuditCard, audit_card
from napari_unet.storage.desk import Place
from napari_unet.storage.project_folder import ProjectFolder, require_project
from napari_unet.storage.verify import KEPT, REMOVED


@dataclass(frozen=True)
class LabelsChanged:
    """Labels of a scan changed: which, and what. ``origin`` is ``view`` where the view shows it already."""

    state: ScanState
    correction: Correction
    origin: Literal["view", "session"]


class Session:
    """State and commands of the application.

    Parameters
    ----------
    engine : Engine
        Runs the long work. The session starts it, and closes it in :meth:`close`.
    folder : Path
        Where checkpoints and labels are kept.
    schema : LabelSchema, optional
        Classes; one foreground class by default. A model with other classes brings its own.
    """

    scan_added = Signal(ScanState)
    scan_removed = Signal(ScanState)
    active_changed = Signal()
    labels_changed = Signal(LabelsChanged)
    acceptance_changed = Signal(ScanState)
    slice_wanted = Signal(int)  # of the active scan, to be shown
    project_changed = Signal()  # another one, or another reader: read ``project``, ``reader``, ``desk``
    schema_changed = Signal()
    model_changed = Signal()
    uncertainty_changed = Signal(ScanState)
    clean_up_changed = Signal()  # asked for, known, or out of date: read ``clean_up``
    proposal_changed = Signal()  # started, went on, or ended: read ``proposal``
    training_changed = Signal()  # started, went on, or ended: read ``training``
    verdict_changed = Signal()  # read ``verdict``
    folder_changed = Signal()  # a folder was begun, went on, or ended: read ``folder``
    compute_changed = Signal()  # where things are computed, or what is known of it: read ``computing``
    report_changed = Signal()  # a report was begun or is there: read ``reporting``
    settings_changed = Signal()  # preset, time, device or something set by hand: read ``planning``
    notified = Signal(Notice)

    def __init__(self, engine: Engine, folder: Path, schema: LabelSchema | None = None) -> None:
        self._worker = Worker(engine)
        self._use_project(folder)
        self.computing = Computing(self._worker, self._require_rest, self._moved_elsewhere)
        self.schema = schema or LabelSchema.of("structure")
        self.scans: list[ScanState] = []
        self.active: ScanState | None = None
        self.model: Checkpoint | None = None
        #: What a new model begins with; None: random weights.
        self.body: Checkpoint | None = None
        self.proposal: ProposalRun | None = None
        self.training: FineTuneRun | None = None
        self.folder: FolderRun | None = None
        self.verdict: Verdict | None = None
        self._visible_slice = 0
        #: How Next chooses.
        self.suggestion: Suggestion = "spacing"
        self._said: set[tuple[str, str, str]] = set()  # notes on proposals: scan, model, what
        self._doubted: set[str] = set()  # models of which it has been said that their proposals do not help
        self._own_schema: LabelSchema | None = None  # while the classes of a model stand in its place
        self.planning = Planning(self, self._worker)
        self.clean_up = CleanUp(self, self._worker, lambda state, own: self._commit(state, own, "session"))
        self.live = LiveRefit(self, self._worker, lambda state, own: self._commit(state, own, "session"))
        self.comparison = Comparison(self, self._put)
        self.tools = Tools(self, self._worker, self._put)
        self.reporting = Reporting(self, lambda: self.engine.notify())
        for signal in (self.active_changed, self.schema_changed, self.model_changed):
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
        if any(
            run is not None and not run.is_over for run in (self.proposal, self.training, self.folder, self.clean_up)
        ):
            raise SessionError("Something is being computed: wait for it, or stop it first.")

    def _moved_elsewhere(self) -> None:
        self.live.restart()
        self.clean_up.dismiss()
        self.tools.dismiss()
        self.start()
        self.compute_changed.emit()
        self.settings_changed.emit()

    def _know_device(self, compute: ResolvedCompute) -> None:
        # Until now all was planned for a CPU.
        if compute.device != "cpu":
            self.settings_changed.emit()
        self.compute_changed.emit()

    def poll(self) -> None:
        """Take in what the engine has said since; called on the session's thread."""
        self.engine.poll()
        if self.computing.has_changed():
            if self.engine.state == "away":
                self._worker.forget_compute()
            self.compute_changed.emit()
        self._tell_save_errors()
        report = self.reporting.poll()
        if report is not None:
            self._tell(str(report) if isinstance(report, NapariUnetError) else f"The report was written to {report}.")
            self.report_changed.emit()

    def close(self) -> None:
        """Stop all work, save what is unsaved, end the engine; returns within about two seconds."""
        for run in (self.proposal, self.training, self.folder):
            if run is not None:
                run.cancel()
        self.desk.leave()
        self._autosave.close()
        self._tell_save_errors()
        self.reporting.close()
        self.engine.close()

    # -- the project --------------------------------------------------------------------------------------------

    def _use_project(self, folder: Path) -> None:
        self.project = ProjectFolder(folder)
        self._autosave = Autosave(self.project, lambda: self.engine.notify())
        self.timeline = Timeline(self._autosave, self._restore)
        self.desk = ProjectDesk(self, self._autosave)

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
        self.verdict = self.model = self._own_schema = None
        self._use_project(folder)
        self.schema = LabelSchema.of("structure")
        Preferences.read().with_project(folder).keep()
        for signal in (self.project_changed, self.schema_changed, self.model_changed, self.verdict_changed):
            signal.emit()

    @property
    def reader(self) -> str:
        """The name under which the person's work is recorded."""
        return self._autosave.reader

    def set_reader(self, name: str) -> None:
        """Record the work from now on under another name, here and in projects that are opened later.

        Raises
        ------
        SessionError
            The name is empty or longer than a line.
        """
        name = name.strip()
        if not 0 < len(name) <= 60 or not name.isprintable():
            raise SessionError("A reader's name has 1 to 60 letters: initials will do.")
        self._autosave.reader = name
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
            self._tell(f"This scan is open already, as {known.name}{'' if same else elsewhere}.")
            self.activate(known)
            return known
        state = open_scan(scan, labels, self.schema, self.desk.number_of(scan))
        remembered = self._autosave.restore(state)
        if remembered is not None:
            self._tell(remembered)
        self.scans.append(state)
        self.scan_added.emit(state)
        for warning in scan.warnings:
            self._tell(f"{state.name}: {warning}")
        self.activate(state)
        return state

    def remove_scan(self, state: ScanState) -> bool:
        """Close a scan; its labels stay saved. Returns whether they could be."""
        if state not in self.scans:
            return True
        if self.proposal is not None and self.proposal.state is state:
            self.cancel_proposal()
        self.scans.remove(state)
        is_saved = self._autosave.flush(state)
        if self.training is None or self.training.is_over:
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
            self._make_ready()

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

    def compare_with_before(self) -> None:
        """Put the labels from before the last proposal beside those of the active scan; put them away if they are.

        Raises
        ------
        SessionError
            Nothing was proposed for it.
        """
        if self.comparison.state is not None:
            self.comparison.end()
        elif self.active is None or self.active.before_proposal is None:
            raise SessionError("Nothing was proposed for this scan yet: there is no before and after.")
        else:
            self.comparison.begin(self.active, self.active.before_proposal, "before the proposal")

    def show_slice(self, index: int) -> None:
        """Say which slice of the active scan is on screen: proposals near it come first."""
        self._visible_slice = index
        if self.active is not None:
            self.desk.look_at(self.active, index)
        self.live.look_again()
        if self.proposal is not None and self.proposal.state is self.active:
            self.proposal.look_at(index)

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
        if self.model is not None and not can_grow(self.model.card.label_schema, schema):
            raise SessionError(
                "The model in use knows other classes: choose a new one in the Model list to start with these classes."
            )
        self.schema = schema
        self.schema_changed.emit()

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
        self._commit(state, correction, "session")

    def _restore(self, state: ScanState, correction: Correction) -> None:
        if self.proposal is not None and self.proposal.state is state and not self.proposal.is_over:
            # The rest of it would come over what was brought back.
            self.cancel_proposal()
        self._put(state, correction)

    def load_mask(self, state: ScanState, path: Path) -> int:
        """Take labels from a mask file on the scan's grid, as one step; return how many voxels changed.

        Accepted slices and voxels painted by hand keep their labels, and nothing of it counts as reviewed.

        Raises
        ------
        MaskError, ScanError
            The file cannot be read, lies on another grid, or holds values that are no class.
        """
        mask = read_mask(path)
        check_same_grid(state.scan, mask)
        values = distinct_values(mask.data)
        unknown = sorted(values - {0, *self.schema.ids})
        if unknown:
            raise MaskError(
                f"{path.name} holds {', '.join(map(str, unknown[:5]))}, and there is no class of that number: add it "
                "with Classes... first."
            )
        annotation = state.annotation
        wanted = np.where(annotation.reviewed(), annotation.labels, mask.data).astype(annotation.labels.dtype)
        change = SparseChange.between(annotation.labels, wanted)
        self._put(state, Correction("load mask", labels=change))
        return len(change)

    def set_live(self, on: bool) -> None:
        """Have the slice on screen follow each stroke, or no longer; the model stays as it is."""
        self.live.switch(on)

    def accept_slices(self, state: ScanState, slices: Sequence[int] | None = None, accepted: bool = True) -> None:
        """Declare slices right as they stand (all of the scan by default): they become truth."""
        chosen = list(range(state.scan.n_slices)) if slices is None else list(slices)
        self._put(state, state.annotation.acceptance(chosen, accepted))

    def undo(self, state: ScanState) -> bool:
        """Take back the last step on a scan; returns whether there was one."""
        if self.proposal is not None and self.proposal.step is state.history.next_undo:
            # The rest of it would come back over what was just taken away.
            self.cancel_proposal()
        step = state.history.next_undo
        if step is not None and step.by_machine and step.kind == "proposal":
            self._forget_uncertainty(state)
        return self._replay(state, state.history.undo(), "undo") or step is not None

    def redo(self, state: ScanState) -> bool:
        """Do the last undone step again; returns whether there was one."""
        step = state.history.next_redo
        return self._replay(state, state.history.redo(), "redo") or step is not None

    def _forget_uncertainty(self, state: ScanState) -> None:
        """What one proposal said of itself must not stand beside another, or beside none."""
        if state.uncertainty is not None:
            state.uncertainty.fill(0)
            self.uncertainty_changed.emit(state)

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
        self._autosave.apply(state, correction, action)
        self.desk.note()
        if correction.labels is not None and len(correction.labels):
            self.labels_changed.emit(LabelsChanged(state, correction, origin))
        if correction.accepted is not None and len(correction.accepted):
            base = self.model or self.body
            if lock_scan(state, self.scans, () if base is None else base.card.seen):
                self._autosave.mark(state)
                self._tell(f"{state.name} is held out from now on: one scan in five judges models and teaches none.")
            self.acceptance_changed.emit(state)

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Let the model propose labels for the active scan, the slice on screen first.

        Accepted slices and voxels painted by hand are never overwritten.

        Raises
        ------
        SessionError
            No scan; no model that has learnt anything; or one whose forerunners spared no work on the last two new
            scans: that is said once for each model, and the next call proposes.
        """
        if self.active is None:
            raise SessionError("No scan is open: drop a scan onto the window, or use File > Open.")
        if self.model is None or self.model.card.steps == 0:
            raise SessionError(
                "There is no model yet: paint on a slice or two, accept them, and press Fine-tune. Then it can propose."
            )
        if self.model.card.is_worse_than_nothing and self.model.id not in self._doubted:
            self._doubted.add(self.model.id)
            raise SessionError(WORSE_THAN_NOTHING)
        if self.proposal is not None and not self.proposal.is_over:
            self.cancel_proposal()
        self.active.proposers[self.model.id] = self.model.card
        self._forget_uncertainty(self.active)
        self.active.before_proposal = self.active.annotation.labels.copy()
        self.proposal = ProposalRun(
            self._worker, self.active, self.model, self.visible_slice, self._take_slab, self._proposal_moved
        )
        self.proposal_changed.emit()

    def _make_ready(self) -> None:
        """Have the engine, if it is up, measure the active scan for the model in use: Propose may be next."""
        if self.active is not None and self.model is not None and self.model.card.steps > 0:
            self._worker.make_ready(self.active.scan, self.model)

    def cancel_proposal(self, *, take_back: bool = False) -> None:
        """Stop proposing; what has arrived stays, unless it is to be taken back.

        It can only be taken back as long as nothing was done since: later steps stand on it.

        Raises
        ------
        SessionError
            Something was painted or accepted since; the proposal is stopped all the same.
        """
        run = self.proposal
        if run is None:
            return
        run.cancel()
        steps = [step for step in run.steps if step.corrections]
        if take_back and steps:
            if not run.state.history.are_latest(steps):
                raise SessionError(
                    "You have worked on the scan since: what was proposed stays. Undo takes back your steps, then it."
                )
            for _ in steps:
                self.undo(run.state)

    def _take_slab(self, state: ScanState, correction: Correction, proposal: Proposal) -> None:
        for note in proposal.notes:
            if (said := (state.name, proposal.checkpoint, note)) not in self._said:
                self._said.add(said)
                self._tell(f"{state.name}: {note}")
        if state in self.scans:
            state.proposed_by = proposal.checkpoint
            self._commit(state, correction, "session")
            state.put_uncertainty(proposal)
            self.uncertainty_changed.emit(state)

    def _proposal_moved(self, error: NapariUnetError | None) -> None:
        if error is not None:
            self._tell(str(error))
        run = self.proposal
        if run is not None and run.is_whole and run.after_care.does_something:
            self.clean_up.after(run, run.after_care)
        self.proposal_changed.emit()

    # -- improving ------------------------------------------------------------------------------------------------

    def planned_settings(self) -> ModelSettings:
        """Return the settings of the next fine-tune: the model's or a plan, and on top what was set by hand."""
        return self.planning.settings()

    def plan_in_words(self) -> list[str]:
        """Return :meth:`planned_settings` in plain sentences."""
        return self.planning.in_words()

    def set_override(self, key: str, value: Any) -> None:
        """Set one setting by hand; raises SettingsError, and changes nothing, where that cannot be."""
        self.planning.set_value(key, value)

    def clear_overrides(self) -> None:
        """Go back to the plan."""
        self.planning.clear()

    def set_preset(self, name: str) -> None:
        """Choose the recipe that plans start from."""
        self.planning.set_preset(name)

    def fine_tune(self, budget_seconds: float | None = None, steps: int | None = None) -> None:
        """Train in the background on everything reviewed so far, with :meth:`planned_settings`.

        Parameters
        ----------
        budget_seconds : float, optional
            Wall time from now on, unless ``steps`` is given; as before without.
        steps : int, optional
            Exactly so many steps instead, this time.

        Raises
        ------
        SessionError
            A training is running, or nothing has been reviewed.
        SettingsError
            What was set by hand does not fit the plan.
        """
        if self.training is not None and not self.training.is_over:
            raise SessionError("A fine-tune is running already: wait for it or cancel it first.")
        taught = self.planning.lessons()
        if not taught:
            raise SessionError(
                "Nothing has been reviewed yet, so there is nothing to learn from: paint on a slice or accept one."
            )
        if budget_seconds is not None:
            self.planning.set_budget(budget_seconds)
        settings = self.planned_settings()
        if steps is not None:
            settings = settings.with_values({"training.budget_seconds": None, "training.steps": steps})
        name = self.project.next_model_name()
        # A scan that holds judges is looked at by nobody who learns.
        others = [state.scan for state in self.scans if state not in taught and not state.locked.any()]
        base = self.model or self.planning.body()
        run = FineTuneRun(self._worker, taught, self.schema, settings, base, name, self._training_moved, others)
        self.training, self.verdict = run, None
        for state in taught:
            self._autosave.mark(state)
        self.verdict_changed.emit()
        self.training_changed.emit()

    def cancel_training(self) -> None:
        """Stop training; the model in use stays as it is."""
        if self.training is not None:
            self.training.cancel()

    def _training_moved(self, verdict: Verdict | None, error: NapariUnetError | None) -> None:
        if error is not None:
            self._tell(str(error))
        if verdict is not None:
            try:
                kept = self.project.write_model(verdict.checkpoint)
                self._autosave.note(KEPT, kept.id, name=kept.card.name, parent=kept.card.parent)
                verdict = replace(verdict, checkpoint=kept)
            except NapariUnetError as problem:
                self._tell(str(problem))
            self.verdict = with_history(verdict, self.project.scores(verdict.checkpoint.card.label_schema))
        self.training_changed.emit()
        if verdict is not None:
            self.verdict_changed.emit()

    def use_new_model(self) -> None:
        """Take the fine-tuned checkpoint into use."""
        if self.verdict is not None:
            verdict, self.verdict = self.verdict, None
            self._autosave.note("model used", verdict.checkpoint.id, name=verdict.checkpoint.card.name)
            self.use_model(verdict.checkpoint, learnt_here=True)
            self.verdict_changed.emit()

    def keep_old_model(self) -> None:
        """Stay with the model in use; the new one is kept on disk."""
        self.verdict = None
        self.verdict_changed.emit()

    def use_model(self, checkpoint: Checkpoint | None, *, learnt_here: bool = False) -> None:
        """Take a checkpoint into use (None: none); undo on the active scan takes the one before.

        Its classes become the session's. Those that were added behind them stay, for the next fine-tune to learn; and
        where the model has learnt here, classes that were renamed meanwhile stay so.
        """
        with self._as_a_step():
            self._put_model(checkpoint, learnt_here)

    @contextmanager
    def _as_a_step(self) -> Iterator[None]:
        """Let undo on the active scan take back what is done to the model in use, to its classes and to the body."""
        before, active = self._in_use(), self.active
        yield
        after = self._in_use()
        if active is not None and before[0] is not after[0]:
            active.history.add_swap(partial(self._use_again, before), partial(self._use_again, after))

    def _in_use(self) -> tuple[Checkpoint | None, Checkpoint | None, LabelSchema, LabelSchema | None]:
        return self.model, self.body, self.schema, self._own_schema

    def _use_again(self, state: tuple[Checkpoint | None, Checkpoint | None, LabelSchema, LabelSchema | None]) -> None:
        self.model, self.body, schema, self._own_schema = state
        name = "no model" if self.model is None else self.model.card.name
        self._autosave.note("model used", None if self.model is None else self.model.id, name=name)
        if schema != self.schema:
            self._change_schema(schema)
        self.model_changed.emit()
        self.settings_changed.emit()
        self._make_ready()
        self._tell(f"{name[0].upper()}{name[1:]} is in use again.")

    def _put_model(self, checkpoint: Checkpoint | None, learnt_here: bool) -> None:
        self.model = checkpoint
        if checkpoint is not None:
            known = checkpoint.card.label_schema
            stay = self.schema.classes[: len(known.classes)] == known.classes
            if not stay and not (learnt_here and can_grow(known, self.schema)):
                self._own_schema = self._own_schema or self.schema
                self._change_schema(known)
        self.model_changed.emit()
        self._make_ready()

    def begin_anew(self, body: Checkpoint | None) -> None:
        """Have no model in use, and let the next fine-tune begin with a body's weights (None: random ones).

        Classes that a model had put in the place of the person's own are changed back.
        """
        with self._as_a_step():
            own, self._own_schema = self._own_schema, None
            if own is not None and self.model is not None and self.schema == self.model.card.label_schema:
                self._change_schema(own)
            self.body = body
            self._put_model(None, learnt_here=False)
        self.settings_changed.emit()

    def _change_schema(self, schema: LabelSchema) -> None:
        self.schema = schema
        self.schema_changed.emit()
        if any(state.annotation.labels.any() for state in self.scans):
            self._tell(f"The classes are now {', '.join(each.name for each in schema.classes)}.")

    def remove_models(self, names: Sequence[str]) -> None:
        """Delete the weights of kept checkpoints; that this was done is kept.

        Raises
        ------
        SessionError
            One of them is in use, or waits for the person's decision.
        ExportError
            A file cannot be deleted.
        """
        if self._autosave.only_reads:
            raise SessionError("Another program writes to this project: it can delete its models.")
        offered = None if self.verdict is None else self.verdict.checkpoint.card.name
        in_use = None if self.model is None else self.model.card.name
        for name in names:
            if name in (in_use, offered):
                raise SessionError(f"{name} is in use or waits for your decision: choose another model first.")
        for name in names:
            self.project.remove_model(name)
            self._autosave.note(REMOVED, name=name)
        self.model_changed.emit()

    def kept_models(self) -> list[str]:
        """Return the names of the checkpoints in the project, oldest first."""
        return self.project.model_names()

    def use_kept_model(self, name: str) -> None:
        """Take a checkpoint of the project into use: roll back, or forward."""
        checkpoint = self.project.read_model(name)
        self._autosave.note("model used", checkpoint.id, name=name)
        self.use_model(checkpoint)

    # -- finishing ------------------------------------------------------------------------------------------------

    def export_mask(self, state: ScanState, path: Path) -> None:
        """Write the labels of a scan on its acquired grid, and a record of their making beside it.

        Parameters
        ----------
        state : ScanState
        path : Path
            Its suffix names the format.

        Raises
        ------
        ExportError
            The file cannot be written, or its format cannot hold the mask.
        """
        try:
            card = self.audit(state)
        except NapariUnetError as error:
            # The mask matters more than its history.
            self._tell(f"{error} The mask is written without a record of who made it.")
            card = None
        export_mask(state, path, self.schema, card)

    def export_masks(self, folder: Path) -> list[Path]:
        """Write the masks of all open scans into a folder, each in its source's format; return the files.

        Files that are there already are left: the next free name is taken. A mask that cannot be written is notified,
        and the others are.

        Raises
        ------
        SessionError
            No scan is open.
        """
        if not self.scans:
            raise SessionError("No scan is open, so there are no masks to export.")
        written: list[Path] = []
        for state in self.scans:
            suffix = mask_suffix(None, state.scan)
            paths = (folder / f"{state.stem}-mask{f'-{n}' if n > 1 else ''}{suffix}" for n in count(1))
            path = next(each for each in paths if not (each.exists() or sidecar_path(each).exists()))
            try:
                self.export_mask(state, path)
                written.append(path)
            except NapariUnetError as error:
                self._tell(f"{state.name}: {error}")
        return written

    def audits(self) -> list[tuple[Place, AuditCard | None]]:
        """Return what became of each of the project's scans, by their numbers; it takes as long as there are events.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._autosave.journal()
        places = self.desk.places()
        if journal is None:
            return [(place, None) for place in places]
        with closing(journal):
            return [(place, audit_card(journal, place.scan)) for place in places]

    def model_names(self) -> dict[str, str]:
        """Return the names of the project's checkpoints by their identifiers, as the journal has them."""
        journal = self._autosave.journal()
        if journal is None:
            return {}
        with closing(journal):
            kept = [event for event in journal.events() if event.action == KEPT and event.model is not None]
            return {str(event.model): str(event.content().facts.get("name")) for event in kept}

    def audit(self, state: ScanState) -> AuditCard | None:
        """Return how the labels of a scan came to be, as the journal knows; None where it knows nothing of the scan.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._autosave.journal()
        if journal is None:
            return None
        with closing(journal):
            return audit_card(journal, state.scan.fingerprint)

    # -- folders --------------------------------------------------------------------------------------------------

    def mask_folder(self, source: Path, out: Path) -> None:
        """Let the model in use mask every scan of a folder, in the background; what is masked already is left.

        Raises
        ------
        SessionError
            There is no model, or a folder is under way. What else is wrong is notified.
        """
        if self.folder is not None and not self.folder.is_over:
            raise SessionError("A folder is being masked: wait for it, or stop it first.")
        if self.model is None or self.model.card.steps == 0:
            raise SessionError("There is no model yet that could mask a folder: fine-tune one, or choose one.")
        if out.resolve() == source.resolve():
            raise SessionError("The masks need a folder of their own: choose another one.")

        def find() -> list[Target]:
            # Masks of an earlier run, in a folder below the scans, are no scans.
            return [each for each in find_targets([source]) if not each.source.resolve().is_relative_to(out.resolve())]

        into = MaskFolder(out, self.model, {}, format_name=None)
        self.folder = FolderRun(self._worker, find, into, self._folder_moved)
        self.folder_changed.emit()

    def _folder_moved(self, outcome: Outcome | None) -> None:
        run = self.folder
        if outcome is None and run is not None:
            if run.error is not None:
                self._tell(str(run.error))
            elif run.is_whole:
                self._tell(run.in_words())
        self.folder_changed.emit()

    # -- helpers --------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> None:
        """Poll until no work is running (scripts and tests)."""
        for run in (self.proposal, self.training, self.live, self.clean_up, self.tools):
            if run is not None:
                run.wait(self.engine, timeout)
        if self.folder is not None:
            self.folder.wait(timeout)

    def _tell_save_errors(self) -> None:
        while (error := self._autosave.take_error()) is not None:
            self._tell(str(error))

    def _tell(self, message: str) -> None:
        self.notified.emit(Notice(message))
