"""Models by name or file, as the command line and the window ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from napari_unet.domain.checkpoint import GRAPH_ONLY, Checkpoint
from napari_unet.domain.errors import ModelError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.adapting import fits
from napari_unet.patches.prepare import n_input_channels
from napari_unet.storage.checkpoint_file import read_checkpoint
from napari_unet.storage.onnx_file import ONNX_SUFFIX, read_onnx_model
from napari_unet.storage.project_folder import ProjectFolder, default_project, is_version

SCRATCH = "scratch"
STARTER = "starter"
SHIPPED = (STARTER, "hippocampus-mr", "lv-cine-mr", "nuclei-fluorescence", "breast-lesion-us")
#: Where the shipped ones lie, and what is to be known about their licences.
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def find_model(name: str | None) -> Checkpoint | None:
    """Return the checkpoint a person named; None for random weights.

    Parameters
    ----------
    name : str or None
        ``scratch``, a shipped model's name, that of a checkpoint in the project (``v1``), or the path of a file. None:
        ``starter`` where shipped, else ``scratch``.

    Raises
    ------
    ModelError
        There is no such model, or its file is not sound.
    """
    if name is None:
        name = STARTER if _shipped(STARTER).exists() else SCRATCH
    if name == SCRATCH:
        return None
    if name in SHIPPED:
        path = _shipped(name)
        if not path.exists():
            raise ModelError(
                f"The model {name!r} is not part of this version: train one with fine-tune and give its file."
            )
        return read_checkpoint(path)
    path = Path(name)
    if is_version(name) and not path.exists():
        return _of_project(name)
    if not path.exists():
        raise ModelError(
            f"There is no model called {name!r} and no such file: give {SCRATCH!r}, one of {', '.join(SHIPPED)}, a "
            "checkpoint of your project (v1, v2, ...) or a .safetensors or .onnx file."
        )
    return read_onnx_model(path) if path.suffix.lower() == ONNX_SUFFIX else read_checkpoint(path)


def _of_project(name: str) -> Checkpoint:
    project = ProjectFolder(default_project())
    try:
        known = project.model_names()
    except OSError as error:
        raise ModelError(f"The project at {project.path} cannot be read: give the model's file instead.") from error
    if name not in known:
        raise ModelError(f"There is no model called {name!r} in the project: give {_or(known)}a .safetensors file.")
    return project.read_model(name)


def _or(names: list[str]) -> str:
    return f"one of {', '.join(names)}, or " if names else ""


def shipped_models() -> list[str]:
    """Return the names of the models that this version brings, ``starter`` first."""
    return [name for name in SHIPPED if _shipped(name).exists()]


def has_learnt(checkpoint: Checkpoint | None) -> TypeGuard[Checkpoint]:
    """Return whether a checkpoint knows a task; ``starter`` is a body that has learnt none."""
    return checkpoint is not None and checkpoint.card.steps > 0


def _shipped(name: str) -> Path:
    return WEIGHTS / f"{name}.safetensors"


def helps(body: Checkpoint, settings: ModelSettings) -> bool:
    """Return whether a plan is one that a body helps: its weights fit, and slices are seen one by one.

    Left out of the starter's training, membranes and vessels took no more painting with it than without, mostly less;
    the hippocampus, in volumes whose slices are seen with their neighbours, took more (benchmarks/README.md).
    """
    return fits(body.card.settings, settings) and settings.preparation.context_slices == 0


def require_channels(checkpoint: Checkpoint, scan: Scan, name: str = "this scan") -> None:
    """Refuse a scan whose channels do not fit a model.

    Raises
    ------
    ModelError
        They do not.
    """
    settings = checkpoint.card.settings
    wanted, given = settings.network.in_channels, n_input_channels(scan, settings.preparation)
    if given != wanted:
        raise ModelError(
            f"The model takes {wanted} channels and {name} has {given}: choose a model made for scans of this kind."
        )


def require_classes(checkpoint: Checkpoint, n_classes: int) -> None:
    """Refuse masks with more or fewer classes than a model knows.

    Raises
    ------
    ModelError
        The numbers differ.
    """
    known = checkpoint.card.settings.network.out_channels - 1
    if known != n_classes:
        raise ModelError(
            f"The model knows {known} classes and the masks hold {n_classes}: start from scratch, or name the classes "
            "with --foreground."
        )


def find_base(name: str | None) -> Checkpoint | None:
    """Return the checkpoint a training starts from, as :func:`find_model` does.

    Raises
    ------
    ModelError
        It is only a graph, so that nothing can be learnt on top of it; or see :func:`find_model`.
    """
    base = find_model(name)
    if base is not None and base.graph is not None:
        raise ModelError(GRAPH_ONLY)
    return base


def find_task_model(name: str) -> Checkpoint:
    """Return a checkpoint that has learnt a task, fit to predict with.

    Raises
    ------
    ModelError
        It has learnt none, or see :func:`find_model`.
    """
    if name in (STARTER, SCRATCH):
        raise ModelError(f"{name} has learnt no task yet: fine-tune it first.")
    checkpoint = find_model(name)
    if checkpoint is None or not has_learnt(checkpoint):
        raise ModelError(f"{name} has learnt no task yet: fine-tune it first.")
    return checkpoint
