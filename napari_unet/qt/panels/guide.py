"""The first steps, on a computed scan: each ticks itself off once it has been done."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout

from napari_unet.domain.progress import Notice
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.classes import from_preset
from napari_unet.session.preferences import Preferences
from napari_unet.session.session import LabelsChanged, Session
from napari_unet.session.state import ScanState

Guard = Callable[[Callable[..., None]], Callable[..., None]]

_STEPS = (
    "Open a scan: the sample, or drop your own.",
    "Paint a structure on a slice (or press P, once a model can propose).",
    "Correct it: paint over it, or erase.",
    "Accept the slice: Enter.",
    "Fine-tune: F. The model learns from what you accepted.",
)
_DONE = "That is all of it: on the next scan press P, correct, accept, and fine-tune again."
_OPEN, _MARK, _CORRECT, _ACCEPT, _TEACH = range(len(_STEPS))
_SAMPLE_SEED = 1


class Guide(QFrame):
    """Five steps for whoever is here for the first time.

    Parameters
    ----------
    session : Session
    guard : callable
    """

    def __init__(self, session: Session, guard: Guard) -> None:
        super().__init__()
        self._session = session
        self.setObjectName("guide")
        self.setStyleSheet("#guide { border: 1px solid #56b4e9; border-radius: 4px; }")
        self._marks: list[QLabel] = []
        self.done = [False] * len(_STEPS)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 6, 8, 6)
        column.setSpacing(3)
        title = QHBoxLayout()
        title.addWidget(line("<b>First steps</b>", "First steps"), 1)
        self.put_away = button("Hide", "Do not show this again; the project's menu brings it back.", guard(self._hide))
        title.addWidget(self.put_away)
        column.addLayout(title)
        for text in _STEPS:
            mark = line("", text)
            self._marks.append(mark)
            column.addWidget(mark)
        self.sample = button("Open the sample", "A computed CT of an upper abdomen; no patient.", guard(self._open))
        column.insertWidget(2, self.sample)
        self._end = line(_DONE, "End of the first steps")
        column.addWidget(self._end)
        session.scan_added.connect(self._opened)
        session.labels_changed.connect(self._marked)
        session.acceptance_changed.connect(self._accepted)
        session.learning.verdict_changed.connect(self._taught)
        self._show_steps()
        self.hide()
        # Whoever starts with scans at hand has them open by then.
        QTimer.singleShot(0, self._show_at_first_run)

    def show_again(self) -> None:
        """Bring the guide back, from the first step that is left."""
        Preferences.read().model_copy(update={"guide_hidden": False}).keep()
        if all(self.done):
            self.done = [False] * len(_STEPS)
        self.done[_OPEN] = bool(self._session.scans)
        self._show_steps()
        self.show()

    def _show_at_first_run(self) -> None:
        if not self._session.scans and is_new(self._session) and not Preferences.read().guide_hidden:
            self.show()

    def _hide(self) -> None:
        Preferences.read().model_copy(update={"guide_hidden": True}).keep()
        self.hide()

    def _open(self) -> None:
        from napari_unet.io.samples import ct_phantom

        scan, _, schema = ct_phantom(_SAMPLE_SEED, "thick")
        model = self._session.models.in_use
        if model is None and not any(state.annotation.labels.any() for state in self._session.scans):
            self._session.set_schema(from_preset(self._session, [each.name for each in schema.classes]))
        self._session.add_scan(scan)
        self._session.notified.emit(Notice("This is the sample: a computed CT with liver, kidneys, spleen and aorta."))

    def _tick(self, step: int) -> None:
        if not self.done[step]:
            self.done[step] = True
            self._show_steps()

    def _opened(self, state: ScanState) -> None:
        self._tick(_OPEN)

    def _marked(self, change: LabelsChanged) -> None:
        by_hand = change.origin == "view"
        if self.done[_MARK] and by_hand:
            self._tick(_CORRECT)
        elif by_hand or change.correction.kind == "proposal":
            self._tick(_MARK)

    def _accepted(self, state: ScanState) -> None:
        if state.annotation.accepted.any():
            self._tick(_ACCEPT)

    def _taught(self) -> None:
        if self._session.learning.verdict is not None:
            self._tick(_TEACH)

    def _show_steps(self) -> None:
        now = self.done.index(False) if not all(self.done) else None
        for step, (mark, text) in enumerate(zip(self._marks, _STEPS, strict=True)):
            if self.done[step]:
                mark.setText(f"<span style='color: #8a919c'>✓ {text}</span>")
            else:
                mark.setText(f"{step + 1}. {f'<b>{text}</b>' if step == now else text}")
            mark.setAccessibleDescription("done" if self.done[step] else "to do")
            # With a scan open the dock needs the room: then only the step at hand.
            mark.setVisible(step == now or not self.done[_OPEN] or now is None)
        self.sample.setVisible(not self.done[_OPEN])
        self._end.setVisible(now is None)


def is_new(session: Session) -> bool:
    """Return whether nothing was ever done in the session's project."""
    return not session.project.has_journal and not session.models.kept() and not session.desk.waiting
