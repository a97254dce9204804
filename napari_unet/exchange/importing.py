"""One door for other programs' models: what a package is, it shows by its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.exchange.archives import opened
from napari_unet.exchange.bioimageio import is_package, read_package
from napari_unet.exchange.monai_bundle import is_bundle, read_bundle
from napari_unet.exchange.nnunet import is_nnunet, read_nnunet


def read_foreign(source: Path, name: str, compute: ResolvedCompute, folds: Sequence[str] | None = None) -> Checkpoint:
    """Read a package of another program's, a folder or a ``.zip``.

    Parameters
    ----------
    source : Path
        A bioimage.io package, a MONAI bundle, or nnU-Net's trained folder; it may lie alone in another folder.
    name : str
        Of the new model.
    compute : ResolvedCompute
        Threads, for the checks.
    folds : sequence of str, optional
        Which of nnU-Net's folds.

    Raises
    ------
    ModelError
        It is none of these, or not sound. Nothing is downloaded.
    """
    if not source.exists():
        raise ModelError(
            f"There is no file or folder {source}, and models are not downloaded: fetch the package and give its path."
        )
    with opened(source) as folder:
        for place in _places(folder):
            if is_nnunet(place):
                return read_nnunet(place, name, compute, folds)
            if is_package(place):
                return read_package(place, name, compute)
            if is_bundle(place):
                return read_bundle(place, name, compute)
    raise ModelError(
        f"{source.name} is no package that is known here: bioimage.io (rdf.yaml), MONAI (configs/metadata.json) and "
        "nnU-Net (plans.json, dataset.json) are."
    )


def _places(folder: Path) -> list[Path]:
    """Return the folder, and the only one in it: archives often hold the folder that was packed."""
    within = sorted(each for each in folder.iterdir() if each.is_dir() and each.name != "__MACOSX")
    places = [folder, *within]
    # nnU-Net's archives hold results/Dataset/trainer.
    return places + [each for place in within for each in sorted(place.glob("*")) if each.is_dir()]
