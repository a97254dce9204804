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
_NOT_UNDERSTOOD = "The package's description cannot be understood (format 0.5 is read here)."
#: What may be declared before the network, and in which order.
_KNOWN = {
    "zero_mean_unit_variance": ("axes", "eps"),
    "scale_range": ("axes", "eps", "min_percentile", "max_percentile"),
    "clip": ("min", "max"),
}
_ORDERS = ((), ("zero_mean_unit_variance",), ("scale_range",), ("scale_range", "clip"))
#: Probabilities further from 0 and 1 than this are led back to logits; of a softmax they add up to 1 but for rounding.
_LEAST, _SUM = 1e-6, 1e-3
#: What the format adds to a divisor where a description does not say.
_EPS = 1e-6
_OTHER_PREPARATION = "The package prepares its input in ways that this program does not ({})."

#: What is done to a tensor, and how.
_Step = tuple[str, dict[str, Any]]


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

    # What is declared is done to the test tensor too: a tile of a prepared scan is not normalised by itself.
    ids = ["batch", "channel", *_SPATIAL[model.card.settings.network.dimensions]]
    prepared = _prepared(_declared(model.card.settings), ids, shown)
    logits = runner_of(model, compute)(torch.from_numpy(prepared)).numpy()
    (folder / "weights.onnx").write_bytes(to_onnx_bytes(model))
    np.save(folder / "test_input.npy", shown)
    np.save(folder / "test_output.npy", logits)
    Image.fromarray(_picture(model, prepared, logits)).save(folder / "cover.png")
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


def _declared(settings: ModelSettings) -> list[_Step]:
    """Return what the format can say of the preparation; the whole of it stands in the card."""
    how = settings.preparation
    if how.normalisation != "zscore" or how.window is not None or how.equalise != "none":
        return []
    if how.clip_percentiles is not None:
        return []
    axes = list(_SPATIAL[settings.network.dimensions])
    if how.context_slices:
        # Neighbouring slices are channels, and are normalised together; colours are not.
        if settings.network.in_channels != 2 * how.context_slices + 1:
            return []
        axes = ["channel", *axes]
    return [("zero_mean_unit_variance", {"axes": axes})]


def _preprocessing(settings: ModelSettings, v: Any) -> list[Any]:
    return [
        v.ZeroMeanUnitVarianceDescr(kwargs=v.ZeroMeanUnitVarianceKwargs(axes=[v.AxisId(axis) for axis in how["axes"]]))
        for _, how in _declared(settings)
    ]


def is_package(folder: Path) -> bool:
    """Return whether a folder is a package of bioimage.io."""
    return any((folder / name).is_file() for name in _NAMES)


def read_package(folder: Path, name: str, compute: ResolvedCompute) -> Checkpoint:
    """Read a package of bioimage.io; its own test is run first, with what it declares before and after the network.

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
        It is not sound, its network is not ONNX, or it takes or gives what this program cannot, or does not say what.
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
    taken, given = _tensors(described, folder)
    if CARD.encode() in data:
        model, activation = from_onnx_bytes(data, "the package"), ""
    else:
        activation, declared = _activation(described, given)
        graph = _as_logits(data, "" if declared else activation)
        model = Checkpoint.of_graph(graph, _card(described, name, activation))
    try:
        (tensor,) = described["inputs"]
        prepared = _prepared(_steps(tensor, "preprocessing"), _ids(tensor), taken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(_NOT_UNDERSTOOD) from error
    _run_test(model, prepared, given, activation, compute)
    return model


def _tensors(described: Any, folder: Path) -> tuple[Input, Input]:
    """Return the test tensors: what is taken, before it is prepared, and what is given."""
    try:
        found = [described[side][0]["test_tensor"]["source"] for side in ("inputs", "outputs")]
    except (KeyError, TypeError, IndexError) as error:
        raise ModelError("The package has no test tensors: nobody can tell whether it is sound.") from error
    taken, given = (_tensor(folder, each) for each in found)
    if taken.shape[2:] != given.shape[2:]:
        raise ModelError("The package's output has not the size of its input: it cannot be met here.")
    return taken, given


def _ids(tensor: Any) -> list[str]:
    return [str(axis.get("id", axis.get("type"))) for axis in tensor["axes"]]


def _channel_names(tensor: Any) -> list[str]:
    return [str(each) for axis in tensor["axes"] if axis["type"] == "channel" for each in axis["channel_names"]]


def _steps(tensor: Any, which: str) -> list[_Step]:
    """Return what is declared to be done to a tensor; all is computed in floating point anyway."""
    found = []
    for each in tensor.get(which) or ():
        options = (each.get("kwargs") or {}).items()
        found.append((str(each["id"]), {key: value for key, value in options if value is not None}))
    return [(do, how) for do, how in found if do != "ensure_dtype" or not str(how.get("dtype")).startswith("float")]


def _activation(described: Any, given: Input) -> tuple[str, bool]:
    """Return what makes probabilities of the network's answer, and whether it is declared or within the network.

    A wrong guess would turn masks inside out: what is neither declared nor plain to see is refused.
    """
    try:
        (tensor,) = described["outputs"]
        after, names = _steps(tensor, "postprocessing"), _channel_names(tensor)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(_NOT_UNDERSTOOD) from error
    if given.ndim < 2 or given.shape[1] != len(names):
        raise ModelError("The package's output is not (batch, channel, ..., y, x): it cannot be met here.")
    declared = bool(after)
    if after in ([("softmax", {})], [("softmax", {"axis": "channel"})]) and len(names) > 1:
        found = "softmax"
    elif after == [("sigmoid", {})]:
        found = "sigmoid"
    elif after:
        raise ModelError("The package does things to the output that this program does not.")
    elif given.min() < 0 or given.max() > 1:
        raise ModelError(
            "The package does not say what its output means: if it is a segmentation, add softmax or sigmoid as "
            "postprocessing to its description."
        )
    else:
        found = "softmax" if len(names) > 1 and np.allclose(given.sum(1), 1, atol=_SUM) else "sigmoid"
    if found == "softmax" and "background" in [each.lower() for each in names[1:]]:
        raise ModelError("The package's background is not its first channel: it cannot be met here.")
    return found, declared


def _as_logits(data: bytes, activation: str) -> bytes:
    """Return a graph that takes ``image``, and gives logits where an activation is within it.

    Probabilities are led back to logits (the logarithm of a softmax, the logit of a sigmoid), of which they are made
    again here.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper

        model = onnx.load_from_string(data)
    except ModuleNotFoundError as error:
        raise ModelError("Packages need the package onnx: run pip install 'napari-unet[onnx]'.") from error
    except Exception as error:  # protobuf's own
        raise ModelError("The package's weights cannot be read as ONNX.") from error
    graph = model.graph
    weights = {each.name for each in graph.initializer}
    taken = [each for each in graph.input if each.name not in weights]
    if len(taken) != 1 or len(graph.output) != 1:
        raise ModelError("The package's network takes or gives several tensors: it cannot be met here.")
    if taken[0].name != "image":
        graph.node.insert(0, helper.make_node("Identity", ["image"], [taken[0].name]))
        taken[0].name = "image"
    if activation:
        found, made = graph.output[0].name, "napari_unet_"

        def add(kind: str, inputs: Sequence[str], output: str) -> str:
            graph.node.append(helper.make_node(kind, inputs, [made + output]))
            return made + output

        for each, value in (("least", _LEAST), ("most", 1 - _LEAST), ("one", 1.0)):
            array = numpy_helper.from_array(np.array(value, np.float32))
            graph.node.append(helper.make_node("Constant", [], [made + each], value=array))
        sure = add("Min", [add("Max", [found, f"{made}least"], "above"), f"{made}most"], "between")
        logits = add("Log", [sure], "log")
        if activation == "sigmoid":
            other = add("Log", [add("Sub", [f"{made}one", sure], "other")], "log_other")
            logits = add("Sub", [logits, other], "logits")
        graph.output[0].name = logits
    return bytes(model.SerializeToString())


def _card(described: Any, name: str, activation: str) -> ModelCard:
    """Return a card for another program's network, where its description says that scans are made into its input."""
    try:
        (taken,), (given,) = described["inputs"], described["outputs"]
        ids, sizes = _ids(taken), dict(zip(_ids(taken), taken["axes"], strict=True))
        spatial = [axis for axis in ids if axis in "zyx"]
        for each in (ids, _ids(given)):
            if "".join(each).replace("batch", "b").replace("channel", "c") not in ("bcyx", "bczyx"):
                raise ModelError("The package's tensors are not (batch, channel, ..., y, x): it cannot be met here.")
        steps = [sizes[axis]["size"].get("step", 1) if isinstance(sizes[axis]["size"], dict) else 0 for axis in spatial]
        fixed = [sizes[axis]["size"] if isinstance(sizes[axis]["size"], int) else None for axis in spatial]
        channels, maps = len(_channel_names(taken)), _channel_names(given)
        preparation = _preparation(_steps(taken, "preprocessing"), spatial, channels)
        schema = LabelSchema.of(*(each[:80] for each in (maps[1:] if activation == "softmax" else maps)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(_NOT_UNDERSTOOD) from error
    if any(size is not None for size in fixed) and not all(size is not None for size in fixed):
        raise ModelError("The package's input has sizes of which only some are fixed: it cannot be met here.")
    strides = tuple(size or step for size, step in zip(fixed, steps, strict=True))
    values = {
        "network.dimensions": len(spatial),
        "network.in_channels": channels,
        "network.out_channels": schema.n_outputs,
        "network.head": activation,
        "network.strides": (strides,),
        **preparation,
        "preparation.colour": "rgb" if channels == 3 else "grey",
        "inference.tile": strides if fixed[0] is not None else None,
    }
    notes = f"From a package of bioimage.io: {str(described.get('name', ''))[:80]}, {described.get('license', '')}."
    if activation == "sigmoid" and len(maps) > 1:
        notes += " Its maps may overlap: a voxel gets the class of the likeliest one."
    settings = ModelSettings(preset="bioimageio").with_values(values)
    return ModelCard(name=name, settings=settings, label_schema=schema, steps=1, notes=notes)


def _preparation(steps: Sequence[_Step], spatial: Sequence[str], channels: int) -> dict[str, Any]:
    """Return the settings under which scans are prepared as a package says.

    Raises
    ------
    ModelError
        They cannot be: nothing is left out or taken to be something else.
    """
    refused = ModelError(_OTHER_PREPARATION.format(", ".join(do for do, _ in steps)[:80]))
    unknown = [key for do, how in steps for key in how if key not in _KNOWN.get(do, ())]
    if unknown or tuple(do for do, _ in steps) not in _ORDERS:
        raise refused
    clip: tuple[float, float] | None = None
    for do, how in steps:
        if do == "clip":
            if (how.get("min"), how.get("max")) != (0, 1):
                raise refused
            continue
        together = set(how.get("axes", ("channel", *spatial))) - {"batch"}
        # One channel by itself is all of them.
        if (together - {"channel"} if channels == 1 else together) != set(spatial):
            raise refused
        if do == "scale_range":
            clip = (float(how.get("min_percentile", 0)), float(how.get("max_percentile", 100)))
    # What lies outside of the percentiles is clipped here, so that it must be clipped there.
    if clip is not None and clip != (0, 100) and steps[-1][0] != "clip":
        raise refused
    normalisation = {"zero_mean_unit_variance": "zscore", "scale_range": "unit"}[steps[0][0]] if steps else "none"
    return {
        "preparation.normalisation": normalisation,
        "preparation.clip_percentiles": None if clip == (0, 100) else clip,
    }


def _prepared(steps: Sequence[_Step], ids: Sequence[str], x: Input) -> Input:
    """Return a tensor with axes ``ids`` as it is shown to the network after some steps."""
    for do, how in steps:
        axes = tuple(ids.index(str(axis)) for axis in how["axes"]) if "axes" in how else None
        eps = float(how.get("eps", _EPS))
        if do == "zero_mean_unit_variance":
            x = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + eps)
        elif do == "scale_range":
            percentiles = how.get("min_percentile", 0), how.get("max_percentile", 100)
            low, high = np.percentile(x, percentiles, axes, keepdims=True)
            x = (x - low) / (high - low + eps)
        elif do == "clip":
            x = np.clip(x, how.get("min"), how.get("max"))
        else:
            raise ModelError(_OTHER_PREPARATION.format(do[:80]))
    return np.ascontiguousarray(x, np.float32)


def _run_test(model: Checkpoint, taken: Input, given: Input, activation: str, compute: ResolvedCompute) -> None:
    """Run the package's own test.

    Raises
    ------
    ModelError
        The network cannot take its input, or gives something else than the package says.
    """
    import torch

    try:
        found = runner_of(model, compute)(torch.from_numpy(taken))
    except RuntimeError as error:
        raise ModelError("The package's network cannot run its own test: it was not imported.") from error
    if activation:
        found = found.softmax(1) if activation == "softmax" else found.sigmoid()
    if found.shape != given.shape or not np.allclose(found.numpy(), given, rtol=1e-3, atol=1e-2):
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
