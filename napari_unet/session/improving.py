"""One fine-tune in the background: a frozen snapshot goes out, numbers come back, and with them the evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from napari_unet.compute.engine import Engine, Job
from napari_unet.compute.jobs import LessonHandle, fine_tune
from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.progress import TrainingStep
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.growing import can_grow
from napari_unet.patches.prepare import n_input_channels
from napari_unet.session.models import has_learnt
from napari_unet.session.state import ScanState, lock_judges
from napari_unet.session.verdict import Verdict
from napari_unet.session.worker import Worker, wait_until
from napari_unet.training.lesson import FineTuned

Moved = Callable[[Verdict | None, NapariUnetError | None], None]


class FineTuneRun:
    """Training on the reviewed parts of some scans.

    Parameters
    ----------
    worker : Worker
    states : sequence of ScanState
        Scans with something reviewed; the active or newest last.
    schema : LabelSchema
    settings : ModelSettings
        Recipe and budget.
    base : Checkpoint or None
        Model in use, or the body that a new one begins with. Where the schema has more classes than a model in use
        knows, training lets it grow.
    name : str
        Of the checkpoint to come.
    moved : callable
        Called after each step with ``(None, None)``, at the end with the verdict, or with the error.
    others : sequence of Scan
        Open scans about which nothing is known. They teach only where the settings ask for a Mean Teacher.

    Raises
    ------
    SessionError
        The base knows other classes, or all that is reviewed judges.
    """

    def __init__(
        self,
        worker: Worker,
        states: Sequence[ScanState],
        schema: LabelSchema,
        settings: ModelSettings,
        base: Checkpoint | None,
        name: str,
        moved: Moved,
        others: Sequence[Scan] = (),
    ) -> None:
        if has_learnt(base) and not can_grow(base.card.label_schema, schema):
            raise SessionError("The model in use knows other classes: choose a new one in the Model list.")
        lock_judges(states, base.card.seen if base is not None else ())
        if not any(state.teaches() for state in states):
            raise SessionError(
                "All that is reviewed is held out to judge models, so there is nothing to learn from: accept slices of "
                "another scan, or open one that teaches."
            )
        self._settings = settings
        self._worker, self._schema, self._base, self._name, self._moved = worker, schema, base, name, moved
        # The snapshot: later strokes belong to the next fine-tune.
        self._names = {state.scan.fingerprint: state.name for state in states}
        self._lessons = [LessonHandle.of(worker.share_scan(s.scan), s.annotation, s.locked) for s in states]
        self._unlabelled = [worker.share_scan(scan) for scan in _for_the_teacher(others, settings)]
        for state in states:
            state.note_taught()
        self.losses: list[float] = []
        self.last: TrainingStep | None = None
        self._job: Job | None = None
        self._over = False
        worker.when_resolved(self._begin, self._fail)

    @property
    def is_over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._over

    def cancel(self) -> None:
        """Stop; the model in use stays as it is."""
        if not self._over:
            self._over = True
            if self._job is not None:
                self._job.cancel()
            self._moved(None, None)

    def wait(self, engine: Engine, timeout: float | None = None) -> None:
        """Poll until it is over."""
        wait_until(lambda: self._over, engine, timeout, "the fine-tune")

    def _begin(self, compute: ResolvedCompute) -> None:
        if self._over:
            return
        base = None if self._base is None else self._worker.share_checkpoint(self._base)
        self._job = self._worker.engine.submit(
            fine_tune,
            self._lessons,
            self._settings,
            self._schema,
            compute,
            base,
            self._name,
            self._unlabelled,
            lane="train",
            on_event=self._stepped,
            on_result=self._done,
            on_error=self._fail,
        )

    def _stepped(self, step: TrainingStep) -> None:
        self.last = step
        self.losses.append(step.loss)
        self._moved(None, None)

    def _done(self, outcome: FineTuned) -> None:
        if not self._over:
            self._over = True
            old = self._base.card.name if has_learnt(self._base) else None
            self._moved(Verdict(outcome.checkpoint, outcome.verdicts, self._names, old), None)

    def _fail(self, error: NapariUnetError) -> None:
        if not self._over:
            self._over = True
            self._moved(None, error)


def _for_the_teacher(scans: Sequence[Scan], settings: ModelSettings) -> list[Scan]:
    """Return the scans that can be learnt from without labels: none, unless the settings ask for a Mean Teacher."""
    if not settings.training.consistency_weight > 0:
        return []
    channels = settings.network.in_channels
    return [scan for scan in scans if not scan.is_lazy and n_input_channels(scan, settings.preparation) == channels]
