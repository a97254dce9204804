"""MONAI bundles: out with the network as TorchScript, in where the network is a known U-Net of MONAI's.

Of the configuration only the network's name and plain values are read: expressions (``$...``) are code and are not run.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, ModelError, SettingsError
from napari_unet.domain.labels import PALETTE, LabelClass, LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.exchange.archives import inside
from napari_unet.exchange.graphs import graph_of
from napari_unet.storage.atomic import replace_atomically

if TYPE_CHECKING:
    from torch import nn

_NETWORKS = ("UNet", "BasicUNet")
#: A name only: nothing is fetched from there.
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_INFERENCE = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
    "network": "$@network_def.eval()",
}
#: MONAI's names of the transform that turns scans, and the dimensions of ``(batch, channel, z, y, x)`` as loaded (LPS)
#: in which its letters lie.
_TURNING = ("Orientation", "Orientationd", "OrientationD", "OrientationDict")
_DIMENSIONS = {"L": 4, "R": 4, "P": 3, "A": 3, "S": 2, "I": 2}
_AS_LOADED = "LPS"
_NIBABEL_LABELS = [["L", "R"], ["P", "A"], ["I", "S"]]
_DAMAGED = "The MONAI bundle's configuration cannot be understood."


def write_bundle(checkpoint: Checkpoint, path: Path, *, licence: str, author: str) -> None:
    """Write a model as a MONAI bundle (``.zip``): TorchScript, metadata, and how it is run on prepared arrays.

    What this program does to scans before and after stands in ``configs/card.json``; MONAI has no transforms for all of
    it, so that the bundle takes prepared arrays.

    Parameters
    ----------
    checkpoint : Checkpoint
        With a network that torch runs.
    path : Path
    licence : str
        SPDX identifier under which the weights are passed on.
    author : str

    Raises
    ------
    ModelError
        The model is a graph.
    ExportError
        The file cannot be written.
    """
    from napari_unet.inference.runtimes import network_of

    if checkpoint.graph is not None:
        raise ModelError("This model is an ONNX graph, and a MONAI bundle wants a network of torch's: export another.")
    files = {
        "configs/metadata.json": json.dumps(_metadata(checkpoint.card, licence, author), indent=2),
        "configs/inference.json": json.dumps(_INFERENCE, indent=2),
        "configs/card.json": checkpoint.card.model_dump_json(indent=2),
        "docs/README.md": f"# {checkpoint.card.name}\n\nFor research use only.\n\n{checkpoint.card.notes}\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"{path.stem}/{name}", text)
        archive.writestr(f"{path.stem}/models/model.ts", _torchscript(network_of(checkpoint).eval(), checkpoint.card))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ExportError(
            f"The bundle could not be written to {path.name}: {os.strerror(error.errno or 0)}."
        ) from error


def _torchscript(network: nn.Module, card: ModelCard) -> bytes:
    import warnings

    import torch

    settings, out = card.settings.network, io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # Sizes are traced as such, and stay free.
        warnings.simplefilter("ignore")
        example = torch.zeros(1, settings.in_channels, *(4 * factor for factor in settings.divisor))
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), out)
    return out.getvalue()


def _metadata(card: ModelCard, licence: str, author: str) -> dict[str, Any]:
    network = card.settings.network
    classes = {"0": "background"} | {str(i): each.name for i, each in enumerate(card.label_schema.classes, start=1)}
    sizes = [f"{factor}*n" for factor in network.divisor]
    shared = {"format": "segmentation", "spatial_shape": sizes, "dtype": "float32", "is_patch_data": True}
    image = {**shared, "type": "image", "format": "magnitude", "num_channels": network.in_channels, "value_range": []}
    image["channel_def"] = {str(i): f"channel {i}" for i in range(network.in_channels)}
    logits = {**shared, "type": "image", "num_channels": network.n_logits, "value_range": [], "channel_def": classes}
    versions = {name: card.versions[name] for name in ("torch", "numpy") if name in card.versions}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by napari-unet"},
        "monai_version": "1.4.0",
        "pytorch_version": versions.get("torch", ""),
        "numpy_version": versions.get("numpy", ""),
        "required_packages_version": {},
        "name": card.name,
        "task": f"Segmentation of {', '.join(each.name for each in card.label_schema.classes)}",
        "description": "A U-Net made with napari-unet. For research use only.",
        "authors": author,
        "copyright": licence,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
    }


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a MONAI bundle."""
    return (folder / "configs" / "metadata.json").is_file()


def read_bundle(folder: Path, name: str, compute: ResolvedCompute) -> Checkpoint:
    """Read a MONAI bundle: ``configs/metadata.json``, ``configs/inference.json``, ``models/model.pt``.

    MONAI's arrays begin with x, and stand as the bundle's ``Orientationd`` says: the graph turns its input there, and
    its answer back. How the bundle prepares intensities is code as often as not: the model is given scans normalised to
    mean 0 and deviation 1, as its card says.

    Parameters
    ----------
    folder : Path
    name : str
        Of the new model.
    compute : ResolvedCompute
        Threads, for the check against torch.

    Raises
    ------
    ModelError
        Its network is no U-Net of MONAI's, is described by code, sees scans in an orientation that is not known, or its
        weights are not plain tensors; or MONAI is not installed.
    """
    metadata = _json(inside(folder, "configs/metadata.json"))
    inference = _json(inside(folder, "configs/inference.json"))
    description = inference.get("network_def")
    if not isinstance(description, Mapping) or description.get("_target_") not in _NETWORKS:
        raise ModelError(f"Of MONAI bundles only those are read whose network_def is {' or '.join(_NETWORKS)}.")
    options = {key: value for key, value in description.items() if not key.startswith("_")}
    if any("$" in str(value) or "@" in str(value) for value in options.values()):
        raise ModelError("The bundle's network is described by code ($ or @), which is not run: write out its values.")
    try:
        import monai.networks.nets as nets
    except ModuleNotFoundError as error:
        raise ModelError("MONAI bundles need MONAI: run pip install 'napari-unet[encoders]'.") from error
    try:
        network = getattr(nets, description["_target_"])(**options)
        network.load_state_dict(_weights(inside(folder, "models/model.pt")))
        card = _card(metadata, description["_target_"], options, name)
        turned = _turned(network, *_axes(inference, card.settings.network.dimensions))
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, ValidationError, SettingsError) as error:
        raise ModelError(f"{_DAMAGED[:-1]}, or its weights are those of another network.") from error
    return graph_of(turned, card, (), compute)


def _axes(inference: dict[str, Any], dimensions: int) -> tuple[list[int], list[int]]:
    """Return which dimension of our tensors each axis of MONAI's arrays is, and which of the latter are flipped.

    Raises
    ------
    ModelError
        What the network is to see as left, front or up is not known.
    """
    turning = [each for each in _mappings(inference) if str(each.get("_target_")).rsplit(".", 1)[-1] in _TURNING]
    found = {_letters(each) for each in turning if not each.get("_disabled_")}
    if dimensions == 2:
        if found:
            raise ModelError("The bundle's 2D network sees planes of turned volumes, and which ones is not known here.")
        # MONAI reads pictures with x before y.
        return [3, 2], []
    letters = found.pop() if len(found) == 1 else ""
    if sorted(_DIMENSIONS.get(letter, 0) for letter in letters) != [2, 3, 4]:
        raise ModelError(
            "The bundle's 3D network sees scans in an orientation that is not known here: only bundles are read whose "
            "inference.json turns them once, by Orientationd with plain axcodes such as RAS."
        )
    flipped = [axis for axis, letter in enumerate(letters, start=2) if letter not in _AS_LOADED]
    return [_DIMENSIONS[letter] for letter in letters], flipped


def _mappings(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all mappings of a configuration, whatever they stand in."""
    if isinstance(tree, Mapping):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from _mappings(each)


def _letters(transform: Mapping[str, Any]) -> str:
    """Return the orientation that a transform brings scans to; empty where it cannot be told."""
    if transform.get("labels") not in (None, _NIBABEL_LABELS):
        return ""
    return "RAS" if transform.get("as_closest_canonical") is True else "".join(transform.get("axcodes") or ())


def _turned(network: nn.Module, order: Sequence[int], flipped: Sequence[int]) -> nn.Module:
    """Return a network that takes and gives tensors as loaded, of one that takes and gives MONAI's."""
    from torch import Tensor, nn

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 1, *order)
            if not flipped:
                return self.network(x).permute(0, 1, *back)
            return self.network(x.flip(list(flipped))).flip(list(flipped)).permute(0, 1, *back)

    back = [2 + list(order).index(axis) for axis in range(2, 2 + len(order))]
    return Turned()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(_DAMAGED) from error
    if not isinstance(found, dict):
        raise ModelError(_DAMAGED)
    return found


def _weights(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A foreign pickle raises whatever its first wrong byte leads to; none of its code has run.
    except Exception as error:
        raise ModelError(
            "models/model.pt cannot be read as plain tensors: it is damaged, or could run code when opened, so that it "
            "was not."
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping):
        raise ModelError("models/model.pt holds no state dict.")
    return found


def _card(metadata: dict[str, Any], target: str, options: dict[str, Any], name: str) -> ModelCard:
    n, channels, logits = (int(options[key]) for key in ("spatial_dims", "in_channels", "out_channels"))
    # BasicUNet halves four times; UNet by its strides, one number for all axes.
    strides = [2] * 4 if target == "BasicUNet" else [int(each) for each in options["strides"]]
    values = {
        "network.dimensions": n,
        "network.in_channels": channels,
        "network.out_channels": max(2, logits),
        "network.head": "softmax" if logits > 1 else "sigmoid",
        "network.strides": tuple((each,) * n for each in strides if each > 1),
        "preparation.clip_percentiles": None,
        "preparation.colour": "rgb" if channels == 3 else "grey",
    }
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    first: Mapping[str, Any] = next(iter(outputs.values()), {}) if isinstance(outputs, Mapping) else {}
    named = first.get("channel_def", {})
    classes = tuple(
        LabelClass(id=i, name=str(named.get(str(i)) or f"label {i}")[:80], colour=PALETTE[(i - 1) % len(PALETTE)])
        for i in range(1, max(2, logits))
    )
    return ModelCard(
        name=name,
        settings=ModelSettings(preset="monai").with_values(values),
        label_schema=LabelSchema(classes=classes),
        steps=1,
        notes=f"A {target} from a MONAI bundle ({str(metadata.get('name', ''))[:80]}); its scans are taken to be "
        "prepared with mean 0 and deviation 1" + (", and to have axial slices." if n == 3 else "."),
    )
