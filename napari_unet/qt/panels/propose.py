"""Which model proposes, and the proposal under way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtWidgets import QComboBox, QFileDialog, QSizePolicy

from napari_unet.qt.looks import look_like
from napari_unet.qt.panels.computing import ComputeDialog
from napari_unet.qt.panels.parts import Calm, OneLine, Panel, WorkBar, button, line, tool
from napari_unet.session.models import SCRATCH, STARTER, find_model, find_task_model, shipped_models
from napari_unet.session.session import Session

_NEW, _FROM_SCRATCH = "new model", "new, from scratch"
_FILE = "open a model file..."


class ProposePanel(Panel):
    """The model chooser and the Propose button."""

    def __init__(self, session: Session, guard: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        super().__init__("Propose")
        self._session = session
        self._guard = guard
        self.model = QComboBox()
        self.model.setAccessibleName("Model")
        self.model.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.model.setToolTip(
            "The model that proposes and that Fine-tune goes on from. Earlier versions stay here. A new one begins "
            "with the first Fine-tune, from the shipped starter where that helps."
        )
        self.model.activated.connect(lambda _: guard(self._choose)())
        Calm(self.model)
        self.button = button(
            "Propose", "Let the model mask the scan, the slice on screen first.", guard(session.proposals.begin)
        )
        self.row(line("Model"), self.model, self.button)
        self.bar = WorkBar("proposing", guard(lambda: session.proposals.cancel()))
        self.take_back = button(
            "Take back", "Stop proposing, and put the labels back as they were.", guard(self._take_back)
        )
        self.bar.add(self.take_back)
        self.body.addWidget(self.bar)
        self.compute: ComputeDialog | None = None
        self.where = OneLine("Where things are computed")
        look_like(self.where, "faint")
        change = tool("Where...", "Compute on this computer, or on a cluster.", guard(self._choose_where))
        self.row(self.where, change).setStretch(0, 1)
        session.computing.changed.connect(self._show_where)
        self._show_where()
        session.models.changed.connect(self._list_models)
        session.learning.verdict_changed.connect(self._list_models)
        session.proposals.changed.connect(self.refresh)
        session.active_changed.connect(self.refresh)
        self._list_models()
        self.refresh()

    def refresh(self) -> None:
        """Show the proposal under way."""
        run = self._session.proposals.run
        if run is None or run.is_over:
            self.bar.hide()
        else:
            self.bar.show_progress(run.progress.fraction, run.progress.seconds_left)
        self.button.setEnabled(self._session.active is not None)

    def close_dialog(self) -> None:
        """Close the dialog, if it is open."""
        if self.compute is not None:
            self.compute.close()

    def _choose_where(self) -> None:
        if self.compute is None:
            self.compute = ComputeDialog(self._session, self._guard, self)
        self.compute.show_present()

    def _show_where(self) -> None:
        self.where.setText(self._session.computing.in_words)

    def _take_back(self) -> None:
        self._session.proposals.cancel(take_back=True)

    def _list_models(self) -> None:
        self.model.clear()
        kept, shipped = self._session.models.kept(), shipped_models()
        model = self._session.models.in_use
        new = [_NEW, _FROM_SCRATCH] if STARTER in shipped else [_FROM_SCRATCH]
        self.model.addItems([*new, *reversed(kept), *(name for name in shipped if name != STARTER)])
        begun = _FROM_SCRATCH if self._session.models.body is None else _NEW
        name = begun if model is None else model.card.name
        if self.model.findText(name) < 0:
            self.model.addItem(name)
        self.model.addItem(_FILE)
        self.model.setCurrentText(name)

    def _choose(self) -> None:
        choice = self.model.currentText()
        try:
            if choice == _FILE:
                path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", "Models (*.safetensors)")
                if path:
                    self._session.models.use(find_task_model(str(Path(path))))
            elif choice in (_NEW, _FROM_SCRATCH):
                self._session.models.begin_anew(find_model(STARTER if choice == _NEW else SCRATCH))
            elif choice in self._session.models.kept():
                self._session.models.use_kept(choice)
            elif choice in shipped_models():
                self._session.models.use(find_task_model(choice))
        finally:
            self._list_models()
