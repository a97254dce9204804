"""The models at hand: those that this version brings, and the project's checkpoints; what is known of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ModelError
from napari_unet.session.models import WEIGHTS, find_model, shipped_models
from napari_unet.storage.checkpoint_file import read_card
from napari_unet.storage.project_folder import ProjectFolder, default_project


def model_rows() -> list[dict[str, Any]]:
    """Return a row for each model that has a name: shipped ones, then the project's, oldest first.

    Returns
    -------
    list of dict
        ``name``, ``where`` (``shipped`` or ``project``), ``classes``, ``dimensions``, ``dice`` (mean over the scans
        that judged it; None without any), ``judges``, ``bytes``. One whose file is damaged has a ``problem`` instead.
    """
    project = ProjectFolder(default_project())
    found = [(name, "shipped", WEIGHTS / f"{name}.safetensors") for name in shipped_models()]
    found += [(name, "project", project.model_path(name)) for name in project.model_names()]
    return [_row(name, where, path) for name, where, path in found]


def _row(name: str, where: str, path: Path) -> dict[str, Any]:
    try:
        card = read_card(path)
        return {"name": name, "where": where, **_told(card), "bytes": path.stat().st_size}
    except (ModelError, OSError) as error:
        return {"name": name, "where": where, "problem": str(error)}


def _told(card: ModelCard) -> dict[str, Any]:
    scores = [score for score in card.scores.values() if score is not None]
    learnt = card.steps > 0
    return {
        "classes": [each.name for each in card.label_schema.classes] if learnt else [],
        "dimensions": card.settings.network.dimensions,
        "dice": sum(scores) / len(scores) if scores else None,
        "judges": len(scores),
    }


def model_info(name: str) -> dict[str, Any]:
    """Return what is known of a model: identifier, kind of network, size, and its whole card.

    Parameters
    ----------
    name : str
        Name or file, as for ``predict``.

    Raises
    ------
    ModelError
        There is no such model, or its file is not sound.
    """
    model = require_model(name)
    return {
        "id": model.id,
        "kind": _kind(model),
        "bytes": sum(array.nbytes for array in model.tensors.values()),
        **_told(model.card),
        "card": model.card.model_dump(mode="json"),
    }


def _kind(model: Checkpoint) -> str:
    if model.card.nnunet is not None:
        return "nnunet"
    return "checkpoint" if model.graph is None else "graph"


def require_model(name: str) -> Checkpoint:
    """Return a model by name or file.

    Raises
    ------
    ModelError
        There is none; random weights are none.
    """
    model = find_model(name)
    if model is None:
        raise ModelError(f"{name} is random weights, drawn anew each time: name a model or a file.")
    return model
