"""The model in use, chosen among those at hand, and the body that a new one begins with; undo takes a choice back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.networks.growing import can_grow
from napari_unet.session.classes import labels_there, told_otherwise
from napari_unet.storage.verify import REMOVED

if TYPE_CHECKING:
    from napari_unet.session.session import Session


@dataclass(frozen=True)
class _Choice:
    """What one step puts in the place of another: the model, the body, the classes, and those that wait."""

    model: Checkpoint | None
    body: Checkpoint | None
    schema: LabelSchema
    own_schema: LabelSchema | None


class ModelChoice:
    """Which model proposes and learns; the project's checkpoints are there to go back to.

    Parameters
    ----------
    session : Session
        Whose classes give way to a model's, and on whose active scan undo takes a choice back.
    change_schema : callable
        Puts other classes in the place of the session's, whatever the model in use knows.
    make_ready : callable
        Called once another model is in use, since it may be asked to propose next.

    Attributes
    ----------
    in_use : Checkpoint or None
    body : Checkpoint or None
        What a new model begins with; None: random weights.
    """

    changed = Signal()  # another model or body is chosen, or models are gone: read ``in_use``, ``body``, ``kept``

    def __init__(
        self, session: Session, change_schema: Callable[[LabelSchema], None], make_ready: Callable[[], None]
    ) -> None:
        self._session, self._change_schema, self._make_ready = session, change_schema, make_ready
        self.in_use: Checkpoint | None = None
        self.body: Checkpoint | None = None
        self._own_schema: LabelSchema | None = None  # while the classes of a model stand in its place
        self._deleted: set[str] = set()  # names of checkpoints that are gone

    def use(self, checkpoint: Checkpoint | None, *, learnt_here: bool = False) -> None:
        """Take a checkpoint into use (None: none); undo on the active scan takes the one before.

        Its classes become the session's. Those that were added behind them stay, for the next fine-tune to learn; and
        where the model has learnt here, classes that were renamed meanwhile stay so.
        """
        with self._as_a_step():
            self._put(checkpoint, learnt_here)

    def begin_anew(self, body: Checkpoint | None) -> None:
        """Have no model in use, and let the next fine-tune begin with a body's weights (None: random ones).

        Classes that a model had put in the place of the person's own are changed back.
        """
        with self._as_a_step():
            own, self._own_schema = self._own_schema, None
            known = () if self.in_use is None else self.in_use.card.label_schema.classes
            # Classes behind the model's are those of which there are voxels.
            if own is not None and known and self._session.schema.classes[: len(known)] == known:
                self._change_schema(own)
            self.body = body
            self._put(None, learnt_here=False)
        self._session.planning.changed.emit()

    def forget(self) -> None:
        """Have no model in use, in silence: its project is being left."""
        self.in_use = self._own_schema = None

    # -- the project's checkpoints --------------------------------------------------------------------------------

    def kept(self) -> list[str]:
        """Return the names of the checkpoints in the project, oldest first."""
        return self._session.project.model_names()

    def use_kept(self, name: str) -> None:
        """Take a checkpoint of the project into use: roll back, or forward."""
        checkpoint = self._session.project.read_model(name)
        self.use(checkpoint)
        self._session.ledger.note("model used", checkpoint.id, name=name)

    def remove(self, names: Sequence[str]) -> None:
        """Delete the weights of kept checkpoints; that this was done is kept.

        Raises
        ------
        SessionError
            One of them is in use, or waits for the person's decision.
        ExportError
            A file cannot be deleted.
        """
        session = self._session
        if session.ledger.only_reads:
            raise SessionError("Another program writes to this project: it can delete its models.")
        offered = None if session.learning.verdict is None else session.learning.verdict.checkpoint.card.name
        in_use = None if self.in_use is None else self.in_use.card.name
        for name in names:
            if name in (in_use, offered):
                raise SessionError(f"{name} is in use or waits for your decision: choose another model first.")
        for name in names:
            session.project.remove_model(name)
            self._deleted.add(name)
            session.ledger.note(REMOVED, name=name)
        self.changed.emit()

    # -- helpers --------------------------------------------------------------------------------------------------

    @contextmanager
    def _as_a_step(self) -> Iterator[None]:
        """Let undo on the active scan take back what is done to the model in use, to its classes and to the body."""
        before, active, there = self._now(), self._session.active, labels_there(self._session)
        yield
        after = self._now()
        if active is not None and before.model is not after.model:
            active.history.add_swap(partial(self._use_again, before, there), partial(self._use_again, after, there))

    def _now(self) -> _Choice:
        return _Choice(self.in_use, self.body, self._session.schema, self._own_schema)

    def _use_again(self, choice: _Choice, there: Set[int]) -> None:
        """Go back to a choice, or forward; of labels that were there when it was made it was said what they become."""
        model = choice.model
        if model is not None and model.card.name in self._deleted and model.card.name not in self.kept():
            self._session.tell(f"{model.card.name} was deleted, so the change of model is not taken back.")
            return
        told = [each for each in told_otherwise(self._session, choice.schema) if each[0] not in there]
        if told:
            _, before, after = told[0]
            self._session.tell(
                f"The change of model is not taken back: voxels labelled {before} would count as {after}. "
                "Choose the model in the Model list where that is what you want."
            )
            return
        self.in_use, self.body, self._own_schema = model, choice.body, choice.own_schema
        name = "no model" if model is None else model.card.name
        self._session.ledger.note("model used", None if model is None else model.id, name=name)
        if choice.schema != self._session.schema:
            self._change_schema(choice.schema)
        self.changed.emit()
        self._session.planning.changed.emit()
        self._make_ready()
        self._session.tell(f"{name[0].upper()}{name[1:]} is in use again.")

    def _put(self, checkpoint: Checkpoint | None, learnt_here: bool) -> None:
        schema = self._session.schema
        if checkpoint is not None:
            self._session.require_room(checkpoint.card.label_schema)
        self.in_use = checkpoint
        if checkpoint is not None:
            known = checkpoint.card.label_schema
            stay = schema.classes[: len(known.classes)] == known.classes
            if not stay and not (learnt_here and can_grow(known, schema)):
                self._own_schema = self._own_schema or schema
                self._change_schema(known)
        self.changed.emit()
        self._make_ready()
