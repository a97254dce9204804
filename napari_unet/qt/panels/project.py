"""Which project is open, who works in it, and what was open last time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from psygnal import Signal
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QInputDialog, QMenu, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_unet.domain.errors import ProjectError
from napari_unet.qt.panels.compare import CompareDialog
from napari_unet.qt.panels.kept_models import ModelsDialog
from napari_unet.qt.panels.parts import button, line
from napari_unet.qt.panels.scans import ScansDialog
from napari_unet.session.preferences import Preferences
from napari_unet.session.session import Session

Guard = Callable[[Callable[..., None]], Callable[..., None]]

_TIP = (
    "The folder with your labels, your models and the journal of all that was done. It also remembers where your scans "
    "lie; it holds no scan and no name of a patient, unless a file's name is one."
)


class ProjectBar(QWidget):
    """The project's name with its menu, and what can be gone on with."""

    guide_wanted = Signal()
    keys_wanted = Signal()

    def __init__(self, session: Session, guard: Guard, say: Callable[[str], None]) -> None:
        super().__init__()
        self._session, self._guard, self._say = session, guard, say
        self.compare: CompareDialog | None = None
        self.models: ModelsDialog | None = None
        self.scans: ScansDialog | None = None
        self.name = QPushButton()
        self.name.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.name.setAccessibleName("Project")
        self.menu = QMenu(self)
        self.menu.aboutToShow.connect(self._fill_menu)
        self.name.setMenu(self.menu)
        self.again = button("Open them", "Open the scans that were open last time.", guard(self.reopen))
        self._waiting = line("", "What was open last time")
        self.find = button("Find moved scans...", "Name the folder where they may be.", guard(self._ask_where))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.name)
        row = QHBoxLayout()
        row.addWidget(self._waiting, 1)
        row.addWidget(self.again)
        row.addWidget(self.find)
        layout.addLayout(row)
        self._steps: Iterator[None] | None = None
        self._timer = QTimer(self)
        self._timer.timeout.connect(guard(self._step))
        for signal in (session.project_changed, session.scan_added, session.scan_removed):
            signal.connect(lambda *_: self.refresh())
        self.refresh()

    def refresh(self) -> None:
        """Show the project, and what was open last time."""
        session = self._session
        self.name.setText(f"Project  {session.project.path.name}   ({session.reader})")
        self.name.setToolTip(f"{_TIP}\n\n{session.project.path}")
        n = len(session.desk.waiting) if not session.scans else 0
        busy, missing = self._steps is not None, len(session.desk.missing)
        self.again.setVisible(n > 0 and not busy)
        self.find.setVisible(missing > 0 and not busy)
        is_new = not session.project.path.exists()
        self._waiting.setVisible(busy or n > 0 or missing > 0 or is_new)
        if busy:
            self._waiting.setText("Opening scans...")
        elif n:
            self._waiting.setText(f"Last time {n} scan{'s were' if n > 1 else ' was'} open.")
        elif missing:
            self._waiting.setText(f"{missing} scan{'s' if missing > 1 else ''} not found.")
        elif is_new:
            self._waiting.setText("A new project: your first stroke makes it. It remembers where your scans lie.")

    def reopen(self) -> None:
        """Open what was open last time."""
        self._go_through(self._session.desk.reopen())

    def find_in(self, folder: Path) -> None:
        """Look for missing scans in a folder."""
        self._go_through(self._session.desk.find_moved(folder))

    def open_project(self, folder: Path) -> None:
        """Work in another project, with what was open there."""
        self._session.open_project(folder)
        self.reopen()

    def close(self) -> bool:
        """Stop opening, and close the dialogs."""
        self._timer.stop()
        for dialog in (self.compare, self.models, self.scans):
            if dialog is not None:
                dialog.close()
        return super().close()

    def _go_through(self, steps: Iterator[None]) -> None:
        # One scan after the other, and the window in between.
        self._steps = steps
        self._timer.start(0)
        self.refresh()

    def _step(self) -> None:
        try:
            assert self._steps is not None
            next(self._steps)
        except BaseException as end:
            self._timer.stop()
            self._steps = None
            self.refresh()
            if not isinstance(end, StopIteration):
                raise

    def _fill_menu(self) -> None:
        menu, session = self.menu, self._session
        menu.clear()
        self._offer(menu, "Open project...", self._ask_for_project)
        recent = menu.addMenu("Recent projects")
        assert recent is not None
        here = str(session.project.path.resolve())
        for path in (Path(each) for each in Preferences.read().projects if each != here):
            self._offer(recent, str(path), partial(self._open_recent, path))
        recent.setEnabled(bool(recent.actions()))
        menu.addSeparator()
        self._offer(menu, "Scans of the project...", self.open_scans)
        self._offer(menu, "Reader's name...", self._ask_name)
        self._offer(menu, "Models on disk...", self.open_models)
        self._offer(menu, "Compare with another reader...", self.open_compare)
        self._offer(menu, "Show the guide", self.guide_wanted.emit)
        self._offer(menu, "Keys...", self.keys_wanted.emit)

    def _offer(self, menu: QMenu, text: str, action: Callable[[], None]) -> None:
        run = self._guard(action)
        made = menu.addAction(text)
        assert made is not None
        made.triggered.connect(lambda _=False: run())

    def _open_recent(self, folder: Path) -> None:
        # Where its drive is not there, a project of the same name would be made in its place.
        if not folder.is_dir():
            raise ProjectError(f"{folder} is not there: connect its drive, or choose Open project... if it has moved.")
        self.open_project(folder)

    def _ask_for_project(self) -> None:
        chosen = QFileDialog.getExistingDirectory(
            self, "A project's folder, or an empty one for a new project", str(self._session.project.path.parent)
        )
        if chosen:
            self.open_project(Path(chosen))

    def _ask_where(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "The folder where the scans are now")
        if chosen:
            self.find_in(Path(chosen))

    def _ask_name(self) -> None:
        name, given = QInputDialog.getText(
            self, "Reader", "Under which name is your work recorded (initials will do)?", text=self._session.reader
        )
        if given:
            self._session.set_reader(name)

    def open_scans(self) -> None:
        """Open the list of the project's scans."""
        if self.scans is None:
            self.scans = ScansDialog(self._session, self._guard, self)
        self.scans.refresh()
        self.scans.show()
        self.scans.raise_()

    def open_models(self) -> None:
        """Open the list of the project's checkpoints."""
        if self.models is None:
            self.models = ModelsDialog(self._session, self._guard, self)
        self.models.refresh()
        self.models.show()
        self.models.raise_()

    def open_compare(self) -> None:
        """Open the comparison with another reader."""
        if self.compare is None:
            self.compare = CompareDialog(self._session, self._guard, self)
        self.compare.refresh()
        self.compare.show()
        self.compare.raise_()
