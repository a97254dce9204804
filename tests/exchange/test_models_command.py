"""``models``: packages go out and come back as they were; what is not sound is refused in one sentence."""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.exchange.archives import opened
from napari_unet.exchange.importing import read_foreign
from napari_unet.io.registry import read_scan
from napari_unet.patches.prepare import prepare
from napari_unet.session.models import find_model
from napari_unet.storage.checkpoint_file import from_bytes, to_bytes, write_checkpoint
from tests.cli.test_contract import only_line, run
from tests.exchange.test_exporting import CPU, checkpoint_of, volume

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BY_ONNX = ResolvedCompute("cpu", "float32", 1, runtime="onnx", runtime_wanted=True)


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("something asked the network")


def test_list_and_info_tell_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_checkpoint(checkpoint_of("2d"), tmp_path / "mine.safetensors")
    assert run("models", "list", "--json", "-") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["hippocampus-mr"]["classes"] == ["anterior", "posterior"]
    assert rows["hippocampus-mr"]["dice"] > 0.8
    assert rows["starter"]["classes"] == []
    assert run("models", "list") == 0
    assert "hippocampus-mr" in capsys.readouterr().out
    assert run("models", "info", tmp_path / "mine.safetensors") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "checkpoint"
    assert told["card"]["label_schema"]["classes"][0]["name"] == "one"
    assert run("models", "info", "nobody") == 1
    assert "no model called 'nobody'" in only_line(capsys)


@pytest.mark.parametrize("kind", ["2.5d", "3d"])
def test_a_package_is_valid_and_comes_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pytest.importorskip("bioimageio.spec")
    from napari_unet.exchange.bioimageio import write_package

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    checkpoint, path = checkpoint_of(kind), tmp_path / "model.zip"
    write_package(checkpoint, path, CPU, licence="CC-BY-4.0", author="A. Nonymous")
    described = spec.load_description(path, perform_io_checks=True)
    assert isinstance(described, spec.model.v0_5.ModelDescr), described.validation_summary
    assert described.validation_summary.status in ("valid-format", "passed")
    assert str(described.license) == "CC-BY-4.0"
    model = read_foreign(path, "again", CPU)
    write_checkpoint(model, tmp_path / "again.safetensors")
    again = find_model(str(tmp_path / "again.safetensors"))
    assert again is not None
    assert again.card.settings == checkpoint.card.settings
    one, other = (Predictor(c, w, {}).predict(volume()).labels for c, w in ((checkpoint, CPU), (again, BY_ONNX)))
    assert (one != other).mean() < 1e-3


CONCAT = ("Concat", ["raw", "other"], {"axis": 1})
#: Networks of other programs: nodes from ``raw`` on; names of their maps; what is declared after them.
FOREIGN = {
    "a map of probabilities": ([("Sigmoid", ["raw"], {})], ["nuclei"], []),
    "maps that may overlap": ([("Neg", ["raw"], {}), CONCAT], ["foreground", "boundary"], [{"id": "sigmoid"}]),
    "probabilities of classes": ([("Neg", ["raw"], {}), CONCAT, ("Softmax", ["both"], {"axis": 1})], ["b", "a"], []),
    "logits of classes": ([("Neg", ["raw"], {}), CONCAT], ["b", "a"], [{"id": "softmax"}]),
}


def foreign_package(folder: Path, kind: str, given: np.ndarray, before: Sequence[dict[str, object]] = ()) -> dict:
    """Write another program's package, whose test is right; return its description."""
    import onnx
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    nodes, names, after = FOREIGN[kind]
    made = ["other", "both", "given"][: len(nodes)]
    written = [helper.make_node(op, taken, [out], **how) for (op, taken, how), out in zip(nodes, made, strict=True)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", n, "y", "x"])
        for name, n in (("raw", 1), (made[-1], len(names)))
    ]
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(written, "g", ends[:1], ends[1:]), opset_imports=opset, ir_version=8)
    onnx.save(model, str(folder / "net.onnx"))
    shown = given.astype(np.float64)
    for step in before:
        how = step.get("kwargs") or {}
        if step["id"] == "zero_mean_unit_variance":
            shown = (shown - shown.mean()) / shown.std()
        elif step["id"] == "scale_range":
            low, high = np.percentile(shown, [how.get("min_percentile", 0), how.get("max_percentile", 100)])
            shown = (shown - low) / (high - low)
        elif step["id"] == "clip":
            shown = shown.clip(how["min"], how["max"])
    (told,) = ReferenceEvaluator(model).run(None, {"raw": shown.astype(np.float32)})
    if after == [{"id": "softmax"}]:
        told = np.exp(told) / np.exp(told).sum(1, keepdims=True)
    elif after:
        told = 1 / (1 + np.exp(-told))
    np.save(folder / "in.npy", given)
    np.save(folder / "out.npy", told)
    space = [{"type": "space", "id": a, "size": {"min": 16, "step": 4}} for a in "yx"]
    axes = [[{"type": "batch"}, {"type": "channel", "channel_names": each}, *space] for each in (["grey"], names)]
    taken = {"axes": axes[0], "test_tensor": {"source": "in.npy"}, "preprocessing": list(before)}
    gives = {"axes": axes[1], "test_tensor": {"source": "out.npy"}, "postprocessing": after}
    weights = {"onnx": {"source": "net.onnx"}}
    return written_down(folder, {"name": "other", "weights": weights, "inputs": [taken], "outputs": [gives]})


def written_down(folder: Path, described: dict) -> dict:
    import yaml

    (folder / "rdf.yaml").write_text(yaml.safe_dump(described))
    return described


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_programs_masks_are_not_turned_inside_out(kind: str, tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(-1, 1, (1, 1, 32, 48)).astype(np.float32)
    foreign_package(tmp_path, kind, given)
    read = read_foreign(tmp_path, "other", CPU)
    labels = Predictor(read, BY_ONNX, {}).predict(Scan(given[0, 0], "yx", Geometry(None))).labels
    above = given[0, 0] > 0
    expected = {
        "a map of probabilities": above,
        "maps that may overlap": np.where(above, 1, 2),
        "probabilities of classes": ~above,
        "logits of classes": ~above,
    }[kind]
    np.testing.assert_array_equal(labels, expected)
    names = [each.name for each in read.card.label_schema.classes]
    assert names == {"a map of probabilities": ["nuclei"], "maps that may overlap": ["foreground", "boundary"]}.get(
        kind, ["a"]
    )


def test_another_program_prepares_its_input_as_it_says_or_is_refused(tmp_path: Path) -> None:
    given = np.random.default_rng(0).gamma(2, 1, (1, 1, 32, 48)).astype(np.float32)
    kind, axes = "a map of probabilities", ["channel", "y", "x"]
    percentiles = {"id": "scale_range", "kwargs": {"axes": ["y", "x"], "min_percentile": 1, "max_percentile": 90}}
    clip = {"id": "clip", "kwargs": {"min": 0, "max": 1}}
    zscore = {"id": "zero_mean_unit_variance", "kwargs": {"axes": axes}}
    for steps in ([zscore], [percentiles, clip]):
        foreign_package(tmp_path, kind, given, [*steps, {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}])
        read = read_foreign(tmp_path, "other", CPU)
        prepared = prepare(Scan(given[0, 0], "yx", Geometry(None)), read.card.settings.preparation)
        want = given[0, 0] - given.mean()
        want = want / given.std()
        if steps[0] is percentiles:
            low, high = np.percentile(given, (1, 90))
            want = ((given[0, 0] - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(prepared[0, 0], want, atol=1e-4)
    for steps in (
        [percentiles],
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x"]}}],
        [zscore | {"kwargs": {"axes": axes, "mode": "per_dataset"}}],
        [{"id": "binarize", "kwargs": {"threshold": 1}}],
    ):
        foreign_package(tmp_path, kind, given, steps)
        with pytest.raises(ModelError, match="ways that this program does not"):
            read_foreign(tmp_path, "other", CPU)


def test_another_programs_package_that_is_not_sound_is_refused(tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(0, 1, (1, 1, 32, 48)).astype(np.float32)
    described = foreign_package(tmp_path, "logits of classes", given, [{"id": "zero_mean_unit_variance"}])
    np.save(tmp_path / "out.npy", np.full((1, 2, 32, 48), 0.5, np.float32))
    with pytest.raises(ModelError, match="does not give what its test says"):
        read_foreign(tmp_path, "other", CPU)
    np.save(tmp_path / "in.npy", given[:, :, :, 0])
    with pytest.raises(ModelError, match="has not the size of its input"):
        read_foreign(tmp_path, "other", CPU)
    described = foreign_package(tmp_path, "logits of classes", given)
    described["outputs"][0]["axes"][1]["channel_names"] = ["a", "Background"]
    written_down(tmp_path, described)
    with pytest.raises(ModelError, match="background is not its first"):
        read_foreign(tmp_path, "other", CPU)
    described["outputs"][0]["postprocessing"] = []
    np.save(tmp_path / "out.npy", np.concatenate([given, -given], 1))
    written_down(tmp_path, described)
    with pytest.raises(ModelError, match="does not say what its output means"):
        read_foreign(tmp_path, "other", CPU)
    described["weights"]["onnx"]["source"] = "../net.onnx"
    written_down(tmp_path, described)
    with pytest.raises(ModelError, match="outside of its folder"):
        read_foreign(tmp_path, "other", CPU)
    described["weights"] = {"pytorch_state_dict": {"source": "x"}}
    written_down(tmp_path, described)
    with pytest.raises(ModelError, match="no weights as ONNX"):
        read_foreign(tmp_path, "other", CPU)


@pytest.mark.parametrize("kind", ["2d", "2.5d"])
def test_a_package_that_declares_how_it_prepares_passes_its_own_test(kind: str, tmp_path: Path) -> None:
    """Another program normalises the test tensor as the package says, runs the network and compares."""
    pytest.importorskip("bioimageio.spec")
    import onnxruntime
    import yaml

    from napari_unet.exchange.bioimageio import write_package
    from napari_unet.exchange.graphs import seen_inputs

    checkpoint = checkpoint_of(kind, **{"preparation.clip_percentiles": None})
    write_package(
        checkpoint,
        tmp_path / "m.zip",
        CPU,
        licence="CC-BY-4.0",
        author="A. Nonymous",
        inputs=seen_inputs(checkpoint, [volume()], CPU),
    )
    with opened(tmp_path / "m.zip") as folder:
        described = yaml.safe_load((folder / "rdf.yaml").read_text())
        (step,) = [each for each in described["inputs"][0]["preprocessing"] if each["id"] != "ensure_dtype"]
        assert step["id"] == "zero_mean_unit_variance"
        ids = [each.get("id", each["type"]) for each in described["inputs"][0]["axes"]]
        axes = tuple(ids.index(each) for each in step["kwargs"]["axes"])
        x = np.load(folder / "test_input.npy")
        x = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + step["kwargs"].get("eps", 1e-6))
        session = onnxruntime.InferenceSession(folder / "weights.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"image": x})
        np.testing.assert_allclose(found, np.load(folder / "test_output.npy"), rtol=1e-3, atol=1e-4)


def test_archives_cannot_write_elsewhere_or_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_unet.exchange import archives

    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(ModelError, match="outside of its folder"), opened(bad):
        pass
    assert not (tmp_path.parent / "outside.txt").exists()
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    monkeypatch.setattr(archives, "LARGEST_BYTES", 1 << 16)
    with pytest.raises(ModelError, match="too large"), opened(bad):
        pass
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"), opened(bad):
        pass


def test_what_is_no_package_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "import", "OWNER/NAME") == 1
    assert "not downloaded" in only_line(capsys)
    assert run("models", "import", tmp_path) == 1
    assert "no package that is known" in only_line(capsys)
    assert run("models", "export", "hippocampus-mr", "--to", tmp_path / "m.tar") == 1
    assert ".zip" in only_line(capsys)


def monai_bundle(folder: Path, target: str, dimensions: int, **configuration: object) -> torch.nn.Module:
    """Write a MONAI bundle with weights drawn at random; return its network."""
    nets = pytest.importorskip("monai.networks.nets")
    options = {"spatial_dims": dimensions, "in_channels": 1, "out_channels": 3}
    options |= {"channels": [4, 8, 16], "strides": [2, 2]} if target == "UNet" else {"features": [4, 4, 8, 8, 16, 4]}
    torch.manual_seed(0)
    network = getattr(nets, target)(**options).eval()
    for name in ("configs", "models"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "a bundle"}))
    inference = {"network_def": {"_target_": target, **options}, **configuration}
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return network


def preprocessing(*transforms: dict[str, object]) -> dict[str, object]:
    before = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    return {"_target_": "Compose", "transforms": [*before, *transforms]}


def as_monai_predicts(network: torch.nn.Module, image: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(((image - image.mean()) / image.std(correction=0))[None])[0].argmax(0).numpy()


@pytest.mark.parametrize("target", ["UNet", "BasicUNet"])
def test_a_monai_bundle_segments_pictures_as_monai_does(target: str, tmp_path: Path) -> None:
    transforms = pytest.importorskip("monai.transforms")
    from PIL import Image

    network = monai_bundle(tmp_path, target, 2)
    model = read_foreign(tmp_path, "bundle", CPU)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48), np.uint8)).save(tmp_path / "p.png")
    theirs = as_monai_predicts(network, transforms.LoadImage(ensure_channel_first=True)(tmp_path / "p.png").as_tensor())
    labels = Predictor(model, BY_ONNX, {}).predict(read_scan(tmp_path / "p.png")).labels
    assert (labels != theirs.T).mean() < 1e-3
    monai_bundle(tmp_path, target, 2, network_def={"_target_": target, "in_channels": "$1"})
    with pytest.raises(ModelError, match="described by code"):
        read_foreign(tmp_path, "bundle", CPU)
    assert from_bytes(to_bytes(model)).id == model.id


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_a_monai_bundle_sees_volumes_as_monai_turns_them(codes: str, tmp_path: Path) -> None:
    transforms = pytest.importorskip("monai.transforms")
    import nibabel

    turn = {"_target_": "monai.transforms.Orientationd", "keys": ["image"], "axcodes": codes}
    network = monai_bundle(tmp_path, "UNet", 3, preprocessing=preprocessing(turn))
    model = read_foreign(tmp_path, "bundle", CPU)
    data = np.random.default_rng(0).normal(0, 1, (16, 20, 24)).astype(np.float32)
    affine = np.array([[0, -1.0, 0, 5], [1, 0, 0, 7], [0, 0, 1.5, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "scan.nii.gz")
    image = transforms.LoadImage(ensure_channel_first=True)(tmp_path / "scan.nii.gz")
    turn_it = transforms.Orientation(codes, labels=(("L", "R"), ("P", "A"), ("I", "S")))
    seen = turn_it(image)
    # An answer is turned back by what MONAI itself has done to a picture of the voxels' numbers.
    numbers = turn_it(image.clone().set_array(torch.arange(data.size).reshape(image.shape))).as_tensor().long()
    theirs = np.empty(data.size, int)
    theirs[numbers.numpy().ravel()] = as_monai_predicts(network, seen.as_tensor()).ravel()
    scan = read_scan(tmp_path / "scan.nii.gz")
    assert scan.slice_axis == 0
    labels = scan.geometry.axis_map.to_source(Predictor(model, BY_ONNX, {}).predict(scan).labels)
    assert (labels != theirs.reshape(data.shape)).mean() < 1e-3


def test_a_monai_bundle_of_unknown_orientation_is_refused(tmp_path: Path) -> None:
    turn = {"_target_": "Orientationd", "keys": ["image"]}
    for transforms in (
        (),
        ({**turn, "axcodes": "@codes"},),
        ({**turn, "axcodes": "RAS"}, {**turn, "axcodes": "LPS"}),
        ({**turn, "axcodes": "RAS", "_disabled_": True},),
        ({**turn, "axcodes": "RAS", "labels": [["R", "L"], ["A", "P"], ["I", "S"]]},),
    ):
        monai_bundle(tmp_path, "UNet", 3, preprocessing=preprocessing(*transforms))
        with pytest.raises(ModelError, match="orientation that is not known"):
            read_foreign(tmp_path, "bundle", CPU)
    monai_bundle(tmp_path, "UNet", 2, preprocessing=preprocessing({**turn, "axcodes": "RAS"}))
    with pytest.raises(ModelError, match="planes of turned volumes"):
        read_foreign(tmp_path, "bundle", CPU)


def test_a_monai_bundle_goes_out_and_runs_there(tmp_path: Path) -> None:
    parser = pytest.importorskip("monai.bundle")
    from napari_unet.inference.runtimes import network_of

    checkpoint = checkpoint_of("2.5d")
    write_checkpoint(checkpoint, tmp_path / "m.safetensors")
    words = ("--to", tmp_path / "b.zip", "--format", "monai", "--licence", "CC-BY-4.0")
    assert run("models", "export", tmp_path / "m.safetensors", *words) == 0
    zipfile.ZipFile(tmp_path / "b.zip").extractall(tmp_path)
    config = parser.ConfigParser()
    config.read_config(tmp_path / "b" / "configs" / "inference.json")
    config.read_meta(tmp_path / "b" / "configs" / "metadata.json")
    config["bundle_root"] = str(tmp_path / "b")
    config["device"] = "cpu"
    theirs = config.get_parsed_content("network")
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), network_of(checkpoint).eval()(x), atol=1e-3, rtol=1e-3)
