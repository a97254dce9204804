"""Labels out of the door: masks on their acquired grids, and a record of their making beside each."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.io.sidecar import sidecar_path, write_sidecar
from napari_unet.io.writers import mask_suffix, write_mask
from napari_unet.session.state import ScanState

if TYPE_CHECKING:
    from napari_unet.session.session import Session


def export_mask(session: Session, state: ScanState, path: Path) -> None:
    """Write the labels of a scan on its acquired grid, and a record of their making beside it.

    Both name the model that made the last proposal that stands.

    Parameters
    ----------
    session : Session
        Whose classes the labels are, and whose journal knows how they came to be.
    state : ScanState
    path : Path
        Its suffix names the format.

    Raises
    ------
    ExportError
        The file cannot be written, or its format cannot hold the mask.
    """
    try:
        audit = session.audits.of(state)
    except NapariUnetError as error:
        # The mask matters more than its history.
        session.tell(f"{error} The mask is written without a record of who made it.")
        audit = None
    annotation = state.annotation
    card = state.proposers.get(state.proposed_by or "")
    # By hand is only what a hand has painted: labels that came back from an earlier day may have been proposed.
    by_hand = card is None and not (annotation.labels.astype(bool) & ~annotation.painted).any()
    write_mask(
        annotation.labels,
        state.scan,
        path,
        session.schema,
        algorithm="MANUAL" if by_hand else "SEMIAUTOMATIC",
        model_name=None if card is None else card.name,
    )
    write_sidecar(
        path,
        state.scan,
        session.schema,
        model=card,
        model_id=state.proposed_by,
        audit=None if audit is None else audit.to_json(),
    )


def export_masks(session: Session, folder: Path) -> list[Path]:
    """Write the masks of all open scans into a folder, each in its source's format; return the files.

    Files that are there already are left: the next free name is taken. A mask that cannot be written is notified,
    and the others are.

    Raises
    ------
    SessionError
        No scan is open.
    """
    if not session.scans:
        raise SessionError("No scan is open, so there are no masks to export.")
    written: list[Path] = []
    for state in session.scans:
        suffix = mask_suffix(None, state.scan)
        paths = (folder / f"{state.stem}-mask{f'-{n}' if n > 1 else ''}{suffix}" for n in count(1))
        path = next(each for each in paths if not (each.exists() or sidecar_path(each).exists()))
        try:
            export_mask(session, state, path)
            written.append(path)
        except NapariUnetError as error:
            session.tell(f"{state.name}: {error}")
    return written
