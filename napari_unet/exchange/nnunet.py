"""Models that nnU-Net has trained: its folder in, a model of this program's out, whose masks are nnU-Net's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.labels import PALETTE, LabelClass, LabelSchema
from napari_unet.domain.nnunet import NnunetChannel, NnunetRecipe, Reader
from napari_unet.domain.settings import ModelSettings
from napari_unet.exchange.graphs import graph_of

_CHECKPOINT = "checkpoint_final.pth"
_RESAMPLING = "resample_data_or_seg_to_shape"
_READERS = get_args(Reader)
_DAMAGED = "The nnU-Net folder cannot be understood: plans.json or dataset.json are damaged or of an older version."


def is_nnunet(folder: Path) -> bool:
    """Return whether a folder is one of nnU-Net's trained models."""
    return (folder / "plans.json").is_file() and (folder / "dataset.json").is_file()


def read_nnunet(folder: Path, name: str, compute: ResolvedCompute, folds: Sequence[str] | None = None) -> Checkpoint:
    """Read a trained model of nnU-Net (2.4 or later): ``plans.json``, ``dataset.json`` and the folds' checkpoints.

    Parameters
    ----------
    folder : Path
        ``nnUNetTrainer__nnUNetPlans__3d_fullres`` or the like.
    name : str
        Of the new model.
    compute : ResolvedCompute
        Threads, for the check against torch.
    folds : sequence of str, optional
        ``0``, ``1``, ... or ``all``; by default all numbered ones that are there, whose answers are averaged, or
        ``all``.

    Returns
    -------
    Checkpoint
        With the network as a graph, and nnU-Net's recipe in its card.

    Raises
    ------
    ModelError
        Something is missing, cannot be read as plain tensors, or is not known here (cascades, other networks).
    """
    plans, dataset = _json(folder / "plans.json"), _json(folder / "dataset.json")
    loaded = [_fold(path) for path in _fold_paths(folder, folds)]
    try:
        configuration = _configuration(plans, str(loaded[0]["init_args"]["configuration"]))
        if configuration.get("previous_stage") or configuration.get("previous_stage_name"):
            raise ModelError("A cascade of nnU-Net's needs two networks: import its 3d_fullres or 2d instead.")
        recipe, schema = _recipe(plans, dataset, configuration, loaded), _schema(dataset)
        if recipe.regions is None and schema.ids != tuple(range(1, 1 + len(schema.ids))):
            raise ModelError(_DAMAGED)
        heads = len(recipe.regions) if recipe.regions else 1 + len(schema.classes)
        architecture = configuration["architecture"]
        network = _network(architecture, len(recipe.channels), heads, [each["network_weights"] for each in loaded])
        settings = _settings(architecture["arch_kwargs"], recipe, 1 + len(schema.classes))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ValidationError) as error:
        raise ModelError(_DAMAGED) from error
    trainer = str(loaded[0].get("trainer_name", "nnU-Net"))[:80]
    card = ModelCard(
        name=name,
        settings=settings,
        label_schema=schema,
        steps=max(1, int(loaded[0].get("current_epoch", 1))),
        notes=f"Trained by nnU-Net ({trainer}), {len(loaded)} folds; predicted as nnU-Net does (Isensee et al. 2021).",
        nnunet=recipe,
    )
    return graph_of(network, card, (), compute)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of the nnU-Net folder cannot be read.") from error
    if not isinstance(found, dict):
        raise ModelError(_DAMAGED)
    return found


def _fold_paths(folder: Path, folds: Sequence[str] | None) -> list[Path]:
    if folds is None:
        numbered = sorted(folder.glob(f"fold_[0-9]*/{_CHECKPOINT}"))
        paths = numbered or [folder / "fold_all" / _CHECKPOINT]
    else:
        paths = [folder / f"fold_{fold}" / _CHECKPOINT for fold in folds]
    missing = [path for path in paths if not path.is_file() or not path.resolve().is_relative_to(folder.resolve())]
    if missing:
        raise ModelError(f"The nnU-Net folder lacks {missing[0].parent.name}/{_CHECKPOINT}: train it to the end.")
    return paths


def _fold(path: Path) -> dict[str, Any]:
    """Return a checkpoint as plain tensors and values; nothing in it is run."""
    import torch

    # nnU-Net keeps its curves as numpy's numbers, which are values too.
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    known: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    known += [np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(known):
            found = torch.load(path, map_location="cpu", weights_only=True)
    # A foreign pickle raises whatever its first wrong byte leads to; none of its code has run.
    except Exception as error:
        raise ModelError(
            f"{path.parent.name}/{path.name} cannot be read as plain tensors: it is damaged, or could run code "
            "when opened, so that it was not."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("network_weights"), Mapping):
        raise ModelError(f"{path.parent.name}/{path.name} is no checkpoint of nnU-Net's.")
    return found


def _configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    chain: list[dict[str, Any]] = []
    wanted: str | None = name
    while wanted is not None:
        if len(chain) > len(plans["configurations"]):
            raise ModelError(_DAMAGED)
        chain.append(plans["configurations"][wanted])
        wanted = chain[-1].get("inherits_from")
    merged: dict[str, Any] = {}
    for each in reversed(chain):
        merged |= each
    return merged


def _recipe(
    plans: dict[str, Any], dataset: dict[str, Any], configuration: dict[str, Any], folds: Sequence[dict[str, Any]]
) -> NnunetRecipe:
    reader = str(plans.get("image_reader_writer", _READERS[0]))
    if reader not in _READERS:
        raise ModelError(f"nnU-Net's reader {reader[:60]!r} turns scans in a way that is not known here.")
    if configuration.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise ModelError("Only nnU-Net's DefaultPreprocessor is known here.")
    for which in ("data", "probabilities"):
        if configuration[f"resampling_fn_{which}"] != _RESAMPLING:
            raise ModelError(f"Of nnU-Net's ways to resample only {_RESAMPLING} is known here.")
    data, logits = (configuration[f"resampling_fn_{which}_kwargs"] for which in ("data", "probabilities"))
    intensities = plans["foreground_intensity_properties_per_channel"]
    schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    channels = []
    for i, (scheme, inside) in enumerate(zip(schemes, masks, strict=True)):
        of = intensities[str(i)]
        channels.append(
            NnunetChannel(
                scheme=scheme,
                inside_mask=bool(inside),
                mean=of["mean"],
                deviation=of["std"],
                lowest=of["percentile_00_5"],
                highest=of["percentile_99_5"],
            )
        )
    labels = dataset["labels"]
    has_regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    return NnunetRecipe(
        channels=tuple(channels),
        reader=reader,
        spacing=tuple(configuration["spacing"]),
        patch_size=tuple(configuration["patch_size"]),
        transpose=tuple(plans["transpose_forward"]),
        folds=len(folds),
        mirror=tuple(folds[0].get("inference_allowed_mirroring_axes") or ()),
        regions=tuple(int(value) for value in dataset["regions_class_order"]) if has_regions else None,
        data_order=data["order"],
        data_order_between=data["order_z"],
        logits_order=logits["order"],
        logits_order_between=logits["order_z"],
        separate=data["force_separate_z"],
    )


def _schema(dataset: dict[str, Any]) -> LabelSchema:
    """Return the classes; a region is the class whose value it writes."""
    labels = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    order = dataset.get("regions_class_order")
    values = order if order and any(isinstance(v, list) for v in labels.values()) else list(labels.values())
    pairs = zip(labels, values, strict=True)
    return LabelSchema(
        classes=tuple(
            LabelClass(id=int(value), name=str(name)[:80], colour=PALETTE[i % len(PALETTE)])
            for i, (name, value) in enumerate(pairs)
        )
    )


def _network(architecture: dict[str, Any], n_channels: int, heads: int, weights: Sequence[Mapping[str, Any]]) -> Any:
    from napari_unet.exchange.nnunet_network import Ensemble, NnunetNetwork

    members = []
    for each in weights:
        member = NnunetNetwork(architecture["network_class_name"], architecture["arch_kwargs"], n_channels, heads)
        member.load(each)
        members.append(member)
    return members[0] if len(members) == 1 else Ensemble(members)


def _settings(options: dict[str, Any], recipe: NnunetRecipe, n_classes: int) -> ModelSettings:
    """Return what this program must know of the network: channels, sizes; the rest is nnU-Net's."""
    n = len(recipe.patch_size)
    strides = [(each,) * n if isinstance(each, int) else tuple(each) for each in options["strides"]]
    values = {
        "network.dimensions": n,
        "network.in_channels": len(recipe.channels),
        "network.out_channels": n_classes,
        "network.strides": tuple(stride for stride in strides if set(stride) != {1}),
        "preparation.colour": "rgb" if len(recipe.channels) == 3 else "grey",
        "inference.tile": recipe.patch_size,
        "augmentation.mirror": recipe.mirror,
    }
    return ModelSettings(preset="nnunet").with_values(values)
