"""Masks out of the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtWidgets import QFileDialog

from napari_unet.domain.errors import ExportError, SessionError
from napari_unet.io.writers import format_of, mask_suffix
from napari_unet.qt.panels.parts import Panel, button
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
    """Export the mask of the active scan on its acquired grid."""

    def __init__(self, session: Session, guard: Guard, say: Callable[[str], None]) -> None:
        super().__init__("Finish")
        self._session, self._say = session, say
        self.export = button("Export mask...", "Write the mask where viewers find it in place.", guard(self._ask))
        self.row(self.export)

    def export_to(self, path: Path) -> None:
        """Write the active scan's mask."""
        state = self._session.active
        if state is None:
            raise SessionError("No scan is open, so there is no mask to export.")
        self._session.export_mask(state, path)
        carries = " It carries the patient's name and dates, as DICOM must." if path.suffix.lower() == ".dcm" else ""
        self._say(f"The mask was written to {path.name} and read back correctly.{carries}")

    def _ask(self) -> None:
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
