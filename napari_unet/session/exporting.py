"""A scan's labels out of the door: the mask on its acquired grid, and a record of its making beside it."""

from __future__ import annotations

from pathlib import Path

from napari_unet.domain.labels import LabelSchema
from napari_unet.io.sidecar import write_sidecar
from napari_unet.io.writers import write_mask
from napari_unet.session.state import ScanState
from napari_unet.storage.audit import AuditCard


def export_mask(state: ScanState, path: Path, schema: LabelSchema, audit: AuditCard | None = None) -> None:
    """Write the labels of a scan, and how they came to be: which model made the last proposal that stands.

    Parameters
    ----------
    state : ScanState
    path : Path
        Its suffix names the format.
    schema : LabelSchema
        What the labels mean.
    audit : AuditCard, optional
        How they came to be; goes into the record beside the mask.

    Raises
    ------
    ExportError
        The file cannot be written, or its format cannot hold the mask.
    """
    annotation = state.annotation
    card = state.proposers.get(state.proposed_by or "")
    # By hand is only what a hand has painted: labels that came back from an earlier day may have been proposed.
    by_hand = card is None and not (annotation.labels.astype(bool) & ~annotation.painted).any()
    write_mask(
        annotation.labels,
        state.scan,
        path,
        schema,
        algorithm="MANUAL" if by_hand else "SEMIAUTOMATIC",
        model_name=None if card is None else card.name,
    )
    write_sidecar(
        path,
        state.scan,
        schema,
        model=card,
        model_id=state.proposed_by,
        audit=None if audit is None else audit.to_json(),
    )
