"""Fine-tune in the background, then the verdict: use the new model or keep the old one."""

from __future__ import annotations

from collections.abc import Callable

from magicgui.widgets import SpinBox
from qtpy.QtWidgets import QLabel, QPushButton

from napari_unet.qt.panels.cases import CaseTable
from napari_unet.qt.panels.curve import LossCurve
from napari_unet.qt.panels.parts import Calm, Panel, WorkBar, button, line
from napari_unet.qt.settings_form import SettingsForm
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class ImprovePanel(Panel):
    """The Fine-tune button, its progress, and the verdict."""

    def __init__(self, session: Session, guard: Guard) -> None:
        super().__init__("Improve")
        self._session = session
        self._said = line("", "What can be learnt from")
        self.body.addWidget(self._said)
        self.seconds = SpinBox(
            value=60, min=5, max=86_400, step=5, tooltip="How long a fine-tune may take, in seconds."
        )
        self.seconds.native.setAccessibleName("Seconds for a fine-tune")
        Calm(self.seconds.native)
        self.button = button(
            "Fine-tune", "Learn from everything accepted and painted so far, in the background.", guard(self.start)
        )
        self.settings = button(
            "Settings...",
            "Read the plan of the next fine-tune in words, and change any part of it.",
            self.open_settings,
        )
        self.row(self.button, QLabel("for"), self.seconds.native, QLabel("s"), self.settings)
        self.form: SettingsForm | None = None
        self.bar = WorkBar("the fine-tune", guard(session.learning.cancel))
        self.curve = LossCurve()
        self.body.addWidget(self.bar)
        self.body.addWidget(self.curve)
        self.verdict = line("", "Verdict on the new model")
        self.use = button("Use", "Propose with the new model from now on.", guard(session.learning.use_new))
        self.keep = button(
            "Keep the old",
            "Stay with the model in use; the new one stays in the list.",
            guard(session.learning.keep_old),
        )
        self.cases = CaseTable()
        self.body.addWidget(self.verdict)
        self.body.addWidget(self.cases)
        self._choice = self.row(self.use, self.keep)
        for signal in (
            session.active_changed,
            session.acceptance_changed,
            session.labels_changed,
            session.models.changed,
        ):
            signal.connect(lambda *_: self._count())
        session.learning.changed.connect(self._show_run)
        session.learning.verdict_changed.connect(self._show_verdict)
        self.seconds.changed.connect(guard(session.planning.set_budget))
        session.planning.changed.connect(self._show_settings)
        self._count()
        self._show_run()
        self._show_verdict()

    def start(self) -> None:
        """Fine-tune for as long as the box says."""
        self._session.learning.begin(float(self.seconds.value))

    def open_settings(self) -> None:
        """Open the form of settings beside the work."""
        if self.form is None:
            self.form = SettingsForm(self._session, self)
        self.form.show()
        self.form.raise_()
        self.form.activateWindow()

    def close_settings(self) -> None:
        """Close the form, if it is open."""
        if self.form is not None:
            self.form.close()

    def _show_settings(self) -> None:
        planning = self._session.planning
        # Blocked: the box has limits of its own, which must not become the session's.
        with self.seconds.changed.blocked():
            self.seconds.value = int(max(self.seconds.min, min(planning.budget_seconds, self.seconds.max)))
        n = len(planning.overrides)
        self.settings.setText(f"Settings ({n} by hand)..." if n else "Settings...")

    def _count(self) -> None:
        accepted = sum(state.n_accepted for state in self._session.scans)
        scans = sum(bool(state.n_accepted) for state in self._session.scans)
        if accepted:
            text = f"{accepted} slice{'s' if accepted != 1 else ''} accepted in {scans} scan{'s' if scans != 1 else ''}"
        else:
            text = "Accept a slice or two, then press Fine-tune: the model learns from them."
        self._said.setText(text)

    def _show_run(self) -> None:
        run = self._session.learning.run
        running = run is not None and not run.is_over
        self.button.setEnabled(not running)
        self.curve.setVisible(running)
        if run is None or run.is_over:
            self.bar.hide()
            return
        if run.last is None:
            self.bar.show_progress(0.0, None)
        else:
            self.bar.show_progress(run.last.fraction, run.last.seconds_left)
            self.curve.show_losses(run.losses)

    def _show_verdict(self) -> None:
        verdict = self._session.learning.verdict
        for widget in (self.verdict, self.use, self.keep):
            widget.setVisible(verdict is not None)
        self.cases.setVisible(verdict is not None and bool(verdict.rows))
        if verdict is None:
            return
        old = self._session.models.in_use
        self.verdict.setText(verdict.sentence)
        self.use.setText(f"Use {verdict.checkpoint.card.name}")
        self.keep.setText(f"Keep {old.card.name}" if old is not None else "Do not use it")
        self.cases.fill(verdict.rows)
        if verdict.recommended is False:
            self._recommend(self.keep)
        else:
            # Without a model in use there is nothing to be worse than.
            self._recommend(self.use if verdict.recommended or old is None else None)

    def _recommend(self, choice: QPushButton | None) -> None:
        """Put a button first, in bold; none where it cannot be told which."""
        first = choice or self.use
        self._choice.insertWidget(0, first)
        for each in (self.use, self.keep):
            font = each.font()
            font.setBold(each is choice)
            each.setFont(font)
            each.setAccessibleName(f"{each.text()}{' (recommended)' if each is choice else ''}")
        self.setTabOrder(first, self.keep if first is self.use else self.use)
