"""Model packages of bioimage.io (bioimageio.spec 0.5), out and in: the network as ONNX, with what it takes and gives.

The package carries this program's own ONNX file, so that it comes back as it was; another program's package comes in
where its network is ONNX and its description can be met by what this program does to scans. Nothing is downloaded.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.exchange.archives import inside
from napari_unet.exchange.graphs import Input, as_graph, noise, runner_of
from napari_unet.storage.atomic import replace_atomically
from napari_unet.storage.onnx_file import CARD, from_onnx_bytes, to_onnx_bytes

DESCRIPTION = "rdf.yaml"
_NAMES = (DESCRIPTION, "bioimageio.yaml")
_MISSING = "bioimage.io packages need bioimageio.spec, which is not installed: run pip install 'napari-unet[exchange]'."
_OPSET = 17
_U_NET = ("Ronneberger et al. 2015, U-Net", "10.1007/978-3-319-24574-4_28")
_SPATIAL = {2: "yx", 3: "zyx"}
#: Intensities between which a picture is drawn, in deviations about the mean.
_SHOWN = 2.0


def write_package(
    checkpoint: Checkpoint,
    path: Path,
    compute: ResolvedCompute,
    *,
    licence: str,
    author: str,
    inputs: Sequence[Input] = (),
) -> None:
    """Write a model as a package of bioimage.io, checked by bioimageio.spec.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : Path
        A ``.zip``.
    compute : ResolvedCompute
        Threads.
    licence : str
        SPDX identifier under which the weights are passed on.
    author : str
        Who made the model.
    inputs : sequence of arrays
        What the network was shown of a scan that may be passed on (:func:`napari_unet.exchange.graphs.seen_inputs`);
        the first becomes test tensor and picture. None: noise, which tells nothing about anybody.

    Raises
    ------
    ModelError
        The network cannot be written as ONNX, bioimageio.spec is not installed or refuses the description.
    ExportError
        The file cannot be written.
    """
    spec = _spec()
    model = checkpoint if checkpoint.graph is not None else as_graph(checkpoint, inputs, compute)
    if model.card.nnunet is not None:
        raise ModelError("A model of nnU-Net's goes its own ways around the network: pass on nnU-Net's folder instead.")
    shown = (list(inputs) or noise(model.card.settings.network))[0][:1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_parts(model, shown, folder, compute)
        try:
            with spec.ValidationContext(root=folder, perform_io_checks=True):
                described = _described(model, licence, author)
                target = folder / "package.zip"
                spec.save_bioimageio_package(described, output_path=target)
            data = target.read_bytes()
        except (ValueError, TypeError, OSError) as error:
            raise ModelError(
                f"bioimageio.spec refuses the description ({str(error).splitlines()[0][:120]})."
            ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, data)
    except OSError as error:
        raise ExportError(
            f"The package could not be written to {path.name}: {os.strerror(error.errno or 0)}."
        ) from error


def _write_parts(model: Checkpoint, shown: Input, folder: Path, compute: ResolvedCompute) -> None:
    """Write weights, test tensors, picture and documentation."""
    import torch
    from PIL import Image

    logits = runner_of(model, compute)(torch.from_numpy(shown)).numpy()
    (folder / "weights.onnx").write_bytes(to_onnx_bytes(model))
    np.save(folder / "test_input.npy", shown)
    np.save(folder / "test_output.npy", logits)
    Image.fromarray(_picture(model, shown, logits)).save(folder / "cover.png")
    (folder / "README.md").write_text(_documentation(model.card), encoding="utf-8")


def _picture(model: Checkpoint, shown: Input, logits: Input) -> np.ndarray:
    """Return the middle plane of the test tensor beside itself with the labels in their colours, 2:1."""
    import torch

    from napari_unet.networks.heads import class_logits

    network, schema = model.card.settings.network, model.card.label_schema
    classes = class_logits(torch.from_numpy(logits), network)[0].argmax(0).numpy()
    image = shown[0, shown.shape[1] // 2]
    if network.dimensions == 3:
        image, classes = image[len(image) // 2], classes[len(classes) // 2]
    grey = np.clip((image + _SHOWN) / (2 * _SHOWN), 0, 1)[..., None].repeat(3, -1)
    coloured = grey.copy()
    for value, each in enumerate(schema.classes, start=1):
        coloured[classes == value] = 0.4 * grey[classes == value] + 0.6 * np.array(each.colour)
    side = min(image.shape)
    pair = [
        np.kron((255 * part[:side, :side]).astype(np.uint8), np.ones((8, 8, 1), np.uint8)) for part in (grey, coloured)
    ]
    return np.concatenate(pair, axis=1)


def _documentation(card: ModelCard) -> str:
    preparation = card.settings.preparation.model_dump(mode="json")
    classes = "\n".join(f"- {each.id}: {each.name}" for each in card.label_schema.classes)
    steps = "\n".join(f"- {key}: {value}" for key, value in preparation.items())
    validation = "Judged by the project on held-out scans: see the scores in the card inside the ONNX file's metadata."
    return (
        f"# {card.name}\n\nA U-Net made with napari-unet. For research use only.\n\n## Classes\n\n- 0: background\n"
        f"{classes}\n\n## Preparation\n\n{steps}\n\n## Validation\n\n{validation}\n\n## Notes\n\n{card.notes or '-'}\n"
    )


def _described(model: Checkpoint, licence: str, author: str) -> Any:
    from bioimageio.spec.model import v0_5 as v

    card = model.card
    network, axes = card.settings.network, _SPATIAL[card.settings.network.dimensions]

    def file(name: str) -> Any:
        return v.FileDescr(source=v.RelativeFilePath(name))

    channels = [v.Identifier(f"channel{i}") for i in range(network.in_channels)]
    logits = [v.Identifier(f"logit{i}") for i in range(network.n_logits)]
    input_axes = [v.BatchAxis(), v.ChannelAxis(channel_names=channels)]
    output_axes: list[Any] = [v.BatchAxis(), v.ChannelAxis(channel_names=logits)]
    for axis, factor in zip(axes, network.divisor, strict=True):
        size = v.ParameterizedSize(min=2 * factor, step=factor)
        input_axes.append(v.SpaceInputAxis(id=v.AxisId(axis), size=size))
        reference = v.SizeReference(tensor_id=v.TensorId("image"), axis_id=v.AxisId(axis))
        output_axes.append(v.SpaceOutputAxis(id=v.AxisId(axis), size=reference))
    name = "".join(letter if letter.isalnum() or letter in " +-_()" else " " for letter in card.name).ljust(5, "_")
    return v.ModelDescr(
        name=name,
        description=f"U-Net for {', '.join(each.name for each in card.label_schema.classes)}; research use only"[:1024],
        authors=[v.Author(name=author)],
        cite=[v.CiteEntry(text=_U_NET[0], doi=v.Doi(_U_NET[1]))],
        license=licence,
        documentation=file("README.md"),
        covers=[file("cover.png")],
        tags=["unet", "segmentation", "napari-unet", f"{network.dimensions}d"],
        inputs=[
            v.InputTensorDescr(
                id=v.TensorId("image"),
                axes=input_axes,
                test_tensor=file("test_input.npy"),
                preprocessing=_preprocessing(card.settings, v),
            )
        ],
        outputs=[v.OutputTensorDescr(id=v.TensorId("logits"), axes=output_axes, test_tensor=file("test_output.npy"))],
        weights=v.WeightsDescr(
            onnx=v.OnnxWeightsDescr(source=v.RelativeFilePath("weights.onnx"), opset_version=_OPSET)
        ),
    )


def _preprocessing(settings: ModelSettings, v: Any) -> list[Any]:
    """Return what the format can say of the preparation; the whole of it stands in the card."""
    how = settings.preparation
    # The test tensor is prepared already, and to do this much once more changes it by nothing but rounding.
    if how.normalisation == "zscore" and how.window is None and how.equalise == "none" and how.clip_percentiles is None:
        axes = [v.AxisId("channel"), *(v.AxisId(axis) for axis in _SPATIAL[settings.network.dimensions])]
        return [v.ZeroMeanUnitVarianceDescr(kwargs=v.ZeroMeanUnitVarianceKwargs(axes=axes))]
    return []


def is_package(folder: Path) -> bool:
    """Return whether a folder is a package of bioimage.io."""
    return any((folder / name).is_file() for name in _NAMES)


def read_package(folder: Path, name: str, compute: ResolvedCompute) -> Checkpoint:
    """Read a package of bioimage.io; its test tensors are run through the network first.

    Parameters
    ----------
    folder : Path
        Unpacked.
    name : str
        Of the new model, where the package is another program's.
    compute : ResolvedCompute
        Threads.

    Raises
    ------
    ModelError
        It is not sound, its network is not ONNX, or it takes or gives what this program cannot.
    """
    import yaml

    path = next(folder / each for each in _NAMES if (folder / each).is_file())
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        source = described["weights"]["onnx"]["source"]
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError) as error:
        raise ModelError(f"{path.name} of the package cannot be understood.") from error
    except KeyError as error:
        raise ModelError("The package has no weights as ONNX, the only ones that are read here.") from error
    data = inside(folder, str(source)).read_bytes()
    if CARD.encode() in data:
        model = from_onnx_bytes(data, "the package")
    else:
        model = Checkpoint.of_graph(data, _card(described, name))
    _run_tests(model, described, folder, compute)
    return model


def _card(described: Any, name: str) -> ModelCard:
    """Return a card for another program's network, where its description says that scans are made into its input."""
    try:
        (taken,), (given,) = described["inputs"], described["outputs"]
        ids = [str(axis.get("id", axis.get("type"))) for axis in taken["axes"]]
        sizes = {str(axis.get("id", axis.get("type"))): axis for axis in taken["axes"]}
        spatial = [axis for axis in ids if axis in "zyx"]
        if "".join(ids).replace("batch", "b").replace("channel", "c") not in ("bcyx", "bczyx"):
            raise ModelError("The package's input is not (batch, channel, ..., y, x): it cannot be met here.")
        steps = [sizes[axis]["size"].get("step", 1) if isinstance(sizes[axis]["size"], dict) else 0 for axis in spatial]
        fixed = [sizes[axis]["size"] if isinstance(sizes[axis]["size"], int) else None for axis in spatial]
        channels = len(sizes["channel"]["channel_names"])
        logits = len(next(axis for axis in given["axes"] if axis["type"] == "channel")["channel_names"])
        normalisation = _normalisation([str(step["id"]) for step in taken.get("preprocessing") or ()])
        after = {str(step["id"]) for step in given.get("postprocessing") or ()}
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ModelError("The package's description cannot be understood (format 0.5 is read here).") from error
    if any(size is not None for size in fixed) and not all(size is not None for size in fixed):
        raise ModelError("The package's input has sizes of which only some are fixed: it cannot be met here.")
    if after - {"sigmoid", "softmax", "ensure_dtype"}:
        raise ModelError("The package does things to the output that this program does not.")
    strides = tuple(size or step for size, step in zip(fixed, steps, strict=True))
    values = {
        "network.dimensions": len(spatial),
        "network.in_channels": channels,
        "network.out_channels": logits if logits > 1 else 2,
        "network.head": "softmax" if logits > 1 else "sigmoid",
        "network.strides": (strides,),
        "preparation.normalisation": normalisation,
        "preparation.clip_percentiles": None,
        "preparation.colour": "rgb" if channels == 3 else "grey",
        "inference.tile": strides if fixed[0] is not None else None,
    }
    schema = LabelSchema.numbered(max(1, logits - 1))
    notes = f"From a package of bioimage.io: {str(described.get('name', ''))[:80]}, {described.get('license', '')}."
    settings = ModelSettings(preset="bioimageio").with_values(values)
    return ModelCard(name=name, settings=settings, label_schema=schema, steps=1, notes=notes)


def _normalisation(steps: Sequence[str]) -> str:
    asked = [step for step in steps if step != "ensure_dtype"]
    known = {(): "none", ("zero_mean_unit_variance",): "zscore", ("scale_range",): "unit"}
    if tuple(asked) not in known:
        raise ModelError(
            f"The package prepares its input in ways that this program does not ({', '.join(asked)[:80]})."
        )
    return known[tuple(asked)]


def _run_tests(model: Checkpoint, described: Any, folder: Path, compute: ResolvedCompute) -> None:
    """Run the package's own test where its input is the network's.

    Raises
    ------
    ModelError
        The network gives something else than the package says.
    """
    import torch

    try:
        taken, given = described["inputs"][0], described["outputs"][0]
        prepared = not taken.get("preprocessing") and not given.get("postprocessing")
        tensors = [_tensor(folder, each["test_tensor"]["source"]) for each in (taken, given)]
    except (KeyError, TypeError, IndexError) as error:
        raise ModelError("The package has no test tensors: nobody can tell whether it is sound.") from error
    if not prepared:
        return
    found = runner_of(model, compute)(torch.from_numpy(tensors[0])).numpy()
    if found.shape != tensors[1].shape or not np.allclose(found, tensors[1], rtol=1e-3, atol=1e-2):
        raise ModelError("The package's network does not give what its test says: it was not imported.")


def _tensor(folder: Path, source: str) -> Input:
    try:
        return np.load(io.BytesIO(inside(folder, str(source)).read_bytes()), allow_pickle=False).astype(np.float32)
    except (ValueError, OSError, EOFError) as error:
        raise ModelError("A test tensor of the package cannot be read.") from error


def _spec() -> Any:
    try:
        import bioimageio.spec
    except ModuleNotFoundError as error:
        raise ModelError(_MISSING) from error
    return bioimageio.spec
