"""What is known about a mask, as JSON beside it: what made it, of which scan, which classes. No path, no patient."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.errors import ExportError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import source_stem
from napari_unet.io.writers import format_of
from napari_unet.io.writing.replacing import MaskFile, put_in_place

_PROGRAM = "napari-unet"


def sidecar_path(mask_path: Path | str) -> Path:
    """Return where the sidecar of a mask lies: beside it, with its stem and ``.json``."""
    mask_path = Path(mask_path)
    return mask_path.with_name(f"{source_stem(mask_path)}.json")


def write_sidecar(
    mask_path: Path | str,
    scan: Scan,
    schema: LabelSchema,
    *,
    model: ModelCard | None = None,
    model_id: str | None = None,
    prediction: dict[str, Any] | None = None,
    audit: dict[str, Any] | None = None,
) -> Path:
    """Write the provenance of a mask beside it.

    Parameters
    ----------
    mask_path : Path or str
        The mask that was written.
    scan : Scan
        What it is the mask of. Only its grid and the hash of its voxels are noted.
    schema : LabelSchema
        The classes.
    model : ModelCard, optional
        Of the model that proposed.
    model_id : str, optional
        Hash of its weights (``Checkpoint.id``).
    prediction : dict, optional
        What is to be known of a mask that nobody has touched, in plain JSON values.
    audit : dict, optional
        Who and what made the mask, in plain JSON values.

    Returns
    -------
    Path
        The sidecar. One that was there before is replaced.

    Raises
    ------
    ExportError
        There is a JSON file of that name that this program did not write (a BIDS sidecar of the scan, say), or the
        disk refuses.
    """
    path = sidecar_path(mask_path)
    if path.exists() and not _is_ours(path):
        raise ExportError(f"{path.name} is there already and is no record of this program: choose another folder.")
    record = provenance(mask_path, scan, schema, model=model, model_id=model_id)
    if prediction is not None:
        record["prediction"] = prediction
    if audit is not None:
        record["audit"] = audit
    text = json.dumps(record, indent=2, ensure_ascii=False)
    data = (text + "\n").encode("utf-8")
    put_in_place(path, ".json", MaskFile(lambda p: p.write_bytes(data), lambda p: p.read_bytes() == data))
    return path


def provenance(
    mask_path: Path | str,
    scan: Scan,
    schema: LabelSchema,
    *,
    model: ModelCard | None = None,
    model_id: str | None = None,
) -> dict[str, Any]:
    """Return what :func:`write_sidecar` writes, as plain JSON values."""
    return {
        "program": _PROGRAM,
        "version": _version(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "format": format_of(mask_path),
        "source": {"hash": scan.fingerprint, "modality": scan.modality},
        "grid": grid_of(scan),
        "labels": [{"id": one.id, "name": one.name, "colour": list(one.colour)} for one in schema.classes],
        "model": None if model is None else {"name": model.name, "id": model_id, "created": model.created or None},
    }


def grid_of(scan: Scan) -> dict[str, Any]:
    """Return where the voxels of a scan stand, as plain JSON values."""
    geometry = scan.geometry
    return {
        "axes": "zyx"[-len(scan.spatial_shape) :],
        "shape": [int(n) for n in scan.spatial_shape],
        "spacing_mm": None if geometry.spacing is None else [float(step) for step in geometry.spacing],
        "affine_lps_mm": None if geometry.affine is None else geometry.affine.tolist(),
    }


def has_record(mask_path: Path) -> bool:
    """Return whether a record of this program lies beside a mask, so that the mask holds this program's labels."""
    return _is_ours(sidecar_path(mask_path))


def read_record(mask_path: Path) -> dict[str, Any] | None:
    """Return the record of this program beside a mask; None where there is none."""
    return _read(sidecar_path(mask_path))


def _is_ours(path: Path) -> bool:
    return _read(path) is not None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("program") == _PROGRAM else None


def _version() -> str:
    try:
        return version(_PROGRAM)
    except PackageNotFoundError:
        return "unknown"
