"""Where to compute: this computer, or a cluster, tried out before it is used."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QFormLayout,
    QHBoxLayout,
    QLayout,
    QLineEdit,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from napari_unet.domain.errors import NapariUnetError
from napari_unet.qt.panels.parts import button, line
from napari_unet.session.computing import Trial
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]

_LOOK_EVERY_MS = 100


class ComputeDialog(QDialog):
    """This computer or a Dask cluster; what is there is said before it is chosen."""

    def __init__(self, session: Session, guard: Guard, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Where to compute")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        self._session, self._guard = session, guard
        self._trial: Trial | None = None
        self._look = QTimer(self)
        self._look.setInterval(_LOOK_EVERY_MS)
        self._look.timeout.connect(self._look_at_trial)
        self.here = QRadioButton("This computer")
        self.there = QRadioButton("A cluster")
        self.here.setToolTip("Scans and models stay on this computer.")
        self.there.setToolTip("Scans and models travel to a Dask cluster that somebody runs.")
        self.address = QLineEdit()
        self.address.setToolTip("Where its scheduler listens: whoever runs the cluster knows.")
        self.address.setPlaceholderText("tls://host:8786")
        self.address.setAccessibleName("Address of the cluster's scheduler")
        self.insecure = QCheckBox("Allow a connection without encryption")
        self.insecure.setToolTip("Anyone on the network could then read the scans, and run programs as you.")
        self.test = button("Test connection", "Say what is there; nothing is changed yet.", self._begin_trial)
        self.use = button("Use", "Compute there from now on.", self._use)
        self.said = line("", "What is there")
        form = QFormLayout()
        form.addRow(self.here)
        form.addRow(self.there, self.address)
        form.addRow("", self.insecure)
        buttons = QHBoxLayout()
        buttons.addWidget(self.test)
        buttons.addWidget(self.use)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.said)
        layout.addLayout(buttons)
        layout.setSizeConstraint(QLayout.SizeConstraint.SetMinimumSize)
        self.there.toggled.connect(self._refresh)
        self.address.textChanged.connect(self._refresh)
        self.setMinimumWidth(460)

    def show_present(self) -> None:
        """Open with what is used now."""
        computing = self._session.computing
        (self.here if computing.address is None else self.there).setChecked(True)
        if computing.address is not None:
            self.address.setText(computing.address)
        self._say(computing.in_words)
        self._refresh()
        self.show()
        self.raise_()

    def done(self, result: int) -> None:
        """Let go of the trial with the dialog."""
        self._end_trial()
        super().done(result)

    def _say(self, text: str) -> None:
        self.said.setText(text)
        # A sentence of several lines must not be made room for by what stands above it.
        self.adjustSize()

    def _refresh(self) -> None:
        is_there = self.there.isChecked()
        self.address.setEnabled(is_there)
        self.insecure.setEnabled(is_there)
        self.test.setEnabled(is_there and bool(self.address.text().strip()) and self._trial is None)
        self.use.setEnabled(not is_there or bool(self.address.text().strip()))

    def _begin_trial(self) -> None:
        try:
            self._trial = Trial(self.address.text(), self.insecure.isChecked())
        except NapariUnetError as error:
            self._say(str(error))
            return
        self._say("Connecting...")
        self._look.start()
        self._refresh()

    def _look_at_trial(self) -> None:
        answer = None if self._trial is None else self._trial.answer
        if answer is not None:
            self._say(answer[1])
            self._end_trial()
            self._refresh()

    def _end_trial(self) -> None:
        self._look.stop()
        if self._trial is not None:
            self._trial.close()
            self._trial = None

    def _use(self) -> None:
        address = self.address.text() if self.there.isChecked() else None
        try:
            self._session.computing.use(address, insecure=self.insecure.isChecked())
        except NapariUnetError as error:
            self._say(str(error))
        else:
            self.accept()
