"""Masks out of the door, and whole folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtWidgets import QFileDialog

from napari_unet.domain.errors import ExportError, SessionError
from napari_unet.io.writers import format_of, mask_suffix
from napari_unet.qt.panels.parts import Panel, WorkBar, button, line
from napari_unet.session.exporting import export_mask, export_masks
from napari_unet.session.session import Session

_FILTERS = (
    "NIfTI (*.nii.gz)",
    "3D Slicer segmentation (*.seg.nrrd)",
    "DICOM segmentation, with the patient's tags (*.dcm)",
    "OME-Zarr (*.ome.zarr)",
    "TIFF (*.tif)",
    "PNG (*.png)",
)

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class FinishPanel(Panel):
    """Export the mask of the active scan on its acquired grid; let the model mask a folder."""

    def __init__(self, session: Session, guard: Guard, say: Callable[[str], None]) -> None:
        super().__init__("Finish")
        self._session, self._say = session, say
        self.export = button("Export mask...", "Write the mask where viewers find it in place.", guard(self.ask))
        self.folder = button(
            "Whole folder...",
            "Let the model in use mask every scan of a folder, in the background; what is done already is left.",
            guard(self.ask_for_folder),
        )
        self.export_all = button(
            "Export all...", "Write the masks of all open scans into a folder.", guard(self._ask_for_masks_folder)
        )
        self.row(self.export, self.export_all, self.folder)
        self.report = button(
            "Report...",
            "How good the proposals were, what was done by hand, the models: a page with figures, and a PDF.",
            guard(self._ask_for_report),
        )
        self.load = button(
            "Load mask...", "Begin with the labels of a mask file on the scan's grid.", guard(self._ask_for_mask)
        )
        self.row(self.load, self.report)
        session.reporting.changed.connect(lambda: self.report.setEnabled(not session.reporting.is_writing))
        self.bar = WorkBar("the folder", guard(session.folder.cancel))
        self.told = line("", "What became of the folder's scans")
        self.told.hide()
        self.body.addWidget(self.told)
        self.body.addWidget(self.bar)
        session.folder.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show how far the folder is."""
        run = self._session.folder.run
        is_running = run is not None and not run.is_over
        self.folder.setEnabled(not is_running)
        if run is None:
            return
        self.told.setText(run.in_words())
        self.told.show()
        if is_running:
            self.bar.show_progress(run.progress.fraction, run.progress.seconds_left)
        else:
            self.bar.hide()

    def export_to(self, path: Path) -> None:
        """Write the active scan's mask."""
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open, so there is no mask to export.")
        export_mask(self._session, state, path)
        carries = " It carries the patient's name and dates, as DICOM must." if path.suffix.lower() == ".dcm" else ""
        self._say(f"The mask was written to {path.name} and read back correctly.{carries}")

    def export_all_to(self, folder: Path) -> None:
        """Write the masks of all open scans."""
        written = export_masks(self._session, folder)
        if len(written) == len(self._session.scans):
            n = len(written)
            self._say(f"{n} mask{'s were' if n > 1 else ' was'} written to {folder.name} and read back correctly.")

    def _ask_for_masks_folder(self) -> None:
        if not self._session.scans:
            raise SessionError("No scan is open, so there are no masks to export.")
        chosen = QFileDialog.getExistingDirectory(self, "The folder for the masks")
        if chosen:
            self.export_all_to(Path(chosen))

    def load_mask(self, path: Path) -> None:
        """Take labels for the active scan from a mask file."""
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open, so there is nothing to load a mask for.")
        n = self._session.load_mask(state, path)
        self._say(f"{n:,} voxels of {state.name} were labelled from the file; Undo takes it back.")

    def _ask_for_mask(self) -> None:
        if self._session.active is None:
            raise SessionError("No scan is open, so there is nothing to load a mask for.")
        path, _ = QFileDialog.getOpenFileName(self, "A mask on the scan's grid")
        if path:
            self.load_mask(Path(path))

    def _ask_for_report(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "The folder for the report")
        if chosen:
            self._session.reporting.write(Path(chosen))

    def ask_for_folder(self) -> None:
        """Ask which folder to mask, and where the masks go."""
        source = QFileDialog.getExistingDirectory(self, "The folder with the scans")
        if not source:
            return
        out = QFileDialog.getExistingDirectory(self, "The folder for the masks", str(Path(source).parent))
        if out:
            self._session.folder.begin(Path(source), Path(out))

    def ask(self) -> None:
        """Ask where the active scan's mask goes, and write it."""
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open, so there is no mask to export.")
        suffix = mask_suffix(None, state.scan)
        suggestion = f"{state.stem}-mask{suffix}"
        # The first filter is the one that Qt shows.
        filters = sorted(_FILTERS, key=lambda text: f"*{suffix})" not in text)
        path, kind = QFileDialog.getSaveFileName(self, "Export mask", suggestion, ";;".join(filters))
        if path:
            self.export_to(_of_kind(Path(path), kind, suffix))


def _of_kind(path: Path, kind: str, suggested: str) -> Path:
    """Return a name with the suffix of the kind of file that was chosen, unless the person typed another one.

    Not every system's dialog changes the suffix when another kind is chosen.
    """
    wanted = kind.rpartition("(*")[2].rstrip(")")
    typed = format_of(path)
    if not wanted or (typed is not None and not (path.name.endswith(suggested) and wanted != suggested)):
        return path
    named = path.with_name((path.name.removesuffix(suggested) if typed else path.name) + wanted)
    if named.exists():
        # The dialog asked about the other name only.
        raise ExportError(f"{named.name} is there already: choose it by its full name to replace it.")
    return named
