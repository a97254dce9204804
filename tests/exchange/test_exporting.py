"""An exported model proposes what its checkpoint proposes, says what it costs, and is refused where it is not sound."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.exchange import measuring
from napari_unet.exchange.exporting import Judge, Scans, Wishes, export_model, write_export
from napari_unet.exchange.measuring import mean_dice
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.pruning import prune
from napari_unet.session.models import find_base, find_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = ResolvedCompute("cpu", "float32", 1)
BY_ONNX = ResolvedCompute("cpu", "float32", 1, runtime="onnx", runtime_wanted=True)
SMALL = {"network.base_channels": 8, "network.max_channels": 32, "network.strides": ((2, 2), (2, 2))}
NETWORKS = {
    "2d": SMALL,
    "2.5d": SMALL | {"preparation.context_slices": 1, "network.in_channels": 3},
    "3d": SMALL | {"network.dimensions": 3, "network.strides": ((1, 2, 2), (2, 2, 2))},
    "transunet": SMALL | {"network.bottleneck": "transformer", "network.transformer_layers": 1},
    "regions": SMALL | {"network.head": "sigmoid", "network.regions": ((1, 2), (2,))},
    "classic": SMALL | {"network.norm": "batch", "network.upsampling": "transposed", "network.activation_first": True},
}


def checkpoint_of(kind: str, **values: object) -> Checkpoint:
    settings = ModelSettings().with_values({"network.out_channels": 3, **NETWORKS[kind], **values})
    card = ModelCard(name=kind, settings=settings, label_schema=LabelSchema.of("one", "other"), steps=1)
    return Checkpoint(weights_of(build(settings.network, seed=1)), card)


def volume(seed: int = 0) -> Scan:
    """Return a volume of odd sizes with something to see in it."""
    shape = (7, 37, 45)
    z, y, x = np.indices(shape)
    data = 100.0 * ((y - 18) ** 2 + (x - 20 - seed) ** 2 < 120) + 10 * z
    data = (data + np.random.default_rng(seed).normal(0, 8, shape)).astype(np.float32)
    return Scan(data, "zyx", Geometry((3.0, 1.0, 1.0), np.eye(4), AxisMap.identity(3)), slice_axis=0)


def judges(n: int) -> tuple[Judge, ...]:
    return tuple(Judge(volume(seed), None) for seed in range(n))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are told, not tested."""
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setattr(measuring, "_PASS_VOXELS", 1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_exported_model_gives_the_masks_of_its_checkpoint(kind: str, tmp_path: Path) -> None:
    checkpoint, path = checkpoint_of(kind), tmp_path / "model.onnx"
    scan = volume()
    exported = export_model(checkpoint, Wishes(), Scans((Judge(scan, None),)), CPU)
    assert exported.difference <= 1e-4
    write_export(exported, path)
    again = find_model(str(path))
    assert again is not None
    assert again.card.settings == checkpoint.card.settings
    assert again.card.label_schema == checkpoint.card.label_schema
    assert again.card.parent == checkpoint.id
    one, other = (Predictor(c, w, {}).predict(scan).labels for c, w in ((checkpoint, CPU), (again, BY_ONNX)))
    assert one.any()
    assert (one != other).mean() < 1e-3


def test_the_classifier_of_pixels_goes_along(tmp_path: Path) -> None:
    from napari_unet.networks.pixel_head import PixelHead
    from napari_unet.patches.filters import filter_features

    plain = checkpoint_of("2d")
    head = PixelHead(len(filter_features(np.zeros((1, 16, 16), np.float32))), 3)
    card = plain.card.model_copy(update={"pixel_share": 0.5})
    checkpoint = Checkpoint(plain.weights, card, weights_of(head))
    write_export(export_model(checkpoint, Wishes(), Scans(), CPU), tmp_path / "m.onnx")
    again = find_model(str(tmp_path / "m.onnx"))
    assert again is not None
    masks = [Predictor(c, w, {}).predict(volume()).labels for c, w in ((checkpoint, CPU), (again, BY_ONNX))]
    assert (masks[0] != masks[1]).mean() < 1e-3


def test_other_programs_can_run_it_and_read_what_it_means(tmp_path: Path) -> None:
    import onnxruntime

    checkpoint = checkpoint_of("2.5d")
    write_export(export_model(checkpoint, Wishes(), Scans(), CPU), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch, size in ((1, (8, 16)), (3, (32, 24))):
        (logits,) = session.run(["logits"], {"image": np.zeros((batch, 3, *size), np.float32)})
        assert logits.shape == (batch, 3, *size)
    card = json.loads(session.get_modelmeta().custom_metadata_map["napari_unet_card"])
    assert card["settings"]["preparation"]["context_slices"] == 1
    assert [each["name"] for each in card["label_schema"]["classes"]] == ["one", "other"]


def test_what_is_not_sound_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_export(export_model(checkpoint_of("2d"), Wishes(), Scans(), CPU), path)
    sound = path.read_bytes()
    with pytest.raises(ModelError, match="only predicts"):
        find_base(str(path))
    exported = find_model(str(path))
    assert exported is not None
    with pytest.raises(ModelError, match="only predicts"):
        load_weights(build(exported.card.settings.network, seed=0), exported.weights)
    for scans in (Scans(), Scans(judges(1))):
        with pytest.raises(ModelError, match="graph already"):
            export_model(exported, Wishes(), scans, CPU)
    middle = len(sound) // 3
    for damaged, words in (
        (b"nothing of the kind", "not a readable ONNX file"),
        (sound[: len(sound) // 2], "not a readable ONNX file|no napari-unet card"),
        (sound[:middle] + bytes([sound[middle] ^ 255]) + sound[middle + 1 :], "changed after|not a readable"),
        (exported.graph, "no napari-unet card"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=words):
            find_model(str(path))


def test_the_gate_is_closed_where_nobody_can_tell_and_where_too_much_is_lost() -> None:
    checkpoint = checkpoint_of("2d")
    with pytest.raises(ModelError, match="INT8 needs scans"):
        export_model(checkpoint, Wishes("int8"), Scans(), CPU)
    with pytest.raises(ExportError, match="Nobody can tell"):
        export_model(checkpoint, Wishes(prune=0.5), Scans(), CPU)
    scans = Scans(judges(1), judges(1))
    lines: list[str] = []
    with pytest.raises(ExportError, match=r"more than 0\.01: nothing was written"):
        export_model(checkpoint, Wishes(prune=0.5), scans, CPU, lines.append)
    assert any("lost" in line for line in lines)
    exported = export_model(checkpoint, Wishes(prune=0.5, force=True), scans, CPU)
    assert exported.rows[1].lost is not None
    assert exported.rows[1].lost > 0.01
    assert exported.rows[1].size < exported.rows[0].size / 2
    assert exported.model.card.settings.network.base_channels == 4


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_eight_bits_are_small_and_close(kind: str) -> None:
    checkpoint = checkpoint_of(kind)
    scans = Scans(judges(2), judges(1))
    exported = export_model(checkpoint, Wishes("int8", most_lost=0.5), scans, CPU)
    plain, small = exported.rows
    assert small.size < 0.7 * plain.size
    assert small.dice is not None
    assert small.dice > 0.8  # weights drawn at random leave little room between the classes
    assert {speed.runtime for speed in small.speeds} <= {"onnx", "openvino"}
    assert "int8" in exported.model.card.notes


def test_half_precision_needs_no_scans_where_nothing_moves() -> None:
    checkpoint = checkpoint_of("2d")
    rounded = {name: array.astype(np.float16).astype(array.dtype) for name, array in checkpoint.weights.items()}
    exported = export_model(Checkpoint(rounded, checkpoint.card), Wishes("fp16"), Scans(), CPU)
    assert exported.rows[1].size < 0.7 * exported.rows[0].size


def test_only_the_weights_that_were_judged_carry_the_scores() -> None:
    plain = checkpoint_of("2d")
    checkpoint = Checkpoint(plain.weights, plain.card.model_copy(update={"scores": {"a case": 0.9}}))
    assert export_model(checkpoint, Wishes(), Scans(), CPU).model.card.scores == {"a case": 0.9}
    for wishes in (Wishes("fp16", force=True), Wishes(prune=0.5, force=True)):
        assert export_model(checkpoint, wishes, Scans(), CPU).model.card.scores == {}


def test_new_false_positives_on_a_scan_that_holds_nothing_count_as_lost() -> None:
    nothing, something = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    truths = [something, nothing]
    assert mean_dice([something, nothing], truths, (1,)) == 1
    assert mean_dice([something, something], truths, (1,)) == 0.5
    assert mean_dice([nothing, nothing], [nothing, nothing], (1,)) is None


@pytest.mark.parametrize("kind", ["2d", "3d", "regions", "classic"])
def test_pruning_leaves_out_the_channels_that_say_nothing(kind: str) -> None:
    """Half of the channels of each normalisation are silenced: without them the network says the same."""
    import torch

    checkpoint = checkpoint_of(kind, **{"network.deep_supervision": True})
    chance, weights = np.random.default_rng(0), dict(checkpoint.weights)
    settings = checkpoint.card.settings.network
    norms = {
        name.removesuffix(".weight") for name, array in weights.items() if name.endswith("weight") and array.ndim == 1
    }
    for norm in norms:
        n = len(weights[f"{norm}.weight"])
        silent = chance.permutation(n)[: n // 2]
        for key in ("weight", "bias"):
            weights[f"{norm}.{key}"] = weights[f"{norm}.{key}"].copy()
            weights[f"{norm}.{key}"][silent] = 0
    # What is enlarged has no norm: it is silenced where it is made.
    for level in range(len(settings.strides)):
        array = weights[f"up.{level}.up.weight"].copy()
        made = np.moveaxis(array, int(settings.upsampling == "transposed"), 0)
        made[chance.permutation(len(made))[: len(made) // 2]] = 0
        weights[f"up.{level}.up.weight"] = array
    whole = Checkpoint(weights, checkpoint.card)
    pruned = prune(whole, 0.5)
    assert pruned.card.parent == whole.id
    x = torch.randn(2, 1, *(4 * factor for factor in settings.divisor), generator=torch.Generator().manual_seed(0))
    said = []
    for each in (whole, pruned):
        network = build(each.card.settings.network, seed=0)
        load_weights(network, each.weights)
        with torch.inference_mode():
            said.append(network.eval()(x))
    np.testing.assert_allclose(said[1].numpy(), said[0].numpy(), atol=1e-3)


def test_what_cannot_be_pruned_says_so() -> None:
    with pytest.raises(ModelError, match="Only a plain U-Net"):
        prune(checkpoint_of("transunet"), 0.5)
    with pytest.raises(ModelError, match="cannot be pruned from 8 features"):
        prune(checkpoint_of("2d"), 0.9)


def test_without_the_libraries_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    exported = export_model(checkpoint_of("2d"), Wishes(), Scans(), CPU)
    write_export(exported, path)
    for name in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match="pip install 'napari-unet\\[onnx\\]'"):
        find_model(str(path))
    with pytest.raises(ModelError, match="pip install 'napari-unet\\[onnx\\]'"):
        export_model(checkpoint_of("2d"), Wishes(), Scans(), CPU)
    with pytest.raises(ModelError, match="pip install 'napari-unet\\[openvino\\]'"):
        write_export(exported, tmp_path / "m.xml")


def test_openvino_reads_what_was_written_for_it(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from napari_unet.inference.runtimes import import_openvino

    checkpoint = checkpoint_of("2d")
    write_export(export_model(checkpoint, Wishes(), Scans(), CPU), tmp_path / "m.xml")
    read = import_openvino().Core().read_model(tmp_path / "m.xml")
    card = ModelCard.model_validate_json(read.get_rt_info("napari_unet_card").astype(str))
    assert card.label_schema == checkpoint.card.label_schema
