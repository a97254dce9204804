"""``models``: packages go out and come back as they were; what is not sound is refused in one sentence."""

from __future__ import annotations

import json
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from napari_unet.compute.predictor import Predictor
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.exchange.archives import opened
from napari_unet.exchange.importing import read_foreign
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


def test_another_programs_package_is_met_or_refused(tmp_path: Path) -> None:
    import yaml

    from napari_unet.exchange.graphs import as_graph, noise, runner_of

    model = as_graph(checkpoint_of("2d"), (), CPU)
    assert model.graph is not None
    given = noise(model.card.settings.network)[0]
    import torch

    (tmp_path / "net.onnx").write_bytes(model.graph)
    np.save(tmp_path / "in.npy", given)
    np.save(tmp_path / "out.npy", runner_of(model, CPU)(torch.from_numpy(given)).numpy())
    space = [{"type": "space", "id": a, "size": {"min": 16, "step": 4}} for a in "yx"]
    described = {
        "name": "other",
        "weights": {"onnx": {"source": "net.onnx"}},
        "inputs": [
            {
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["a"]}, *space],
                "test_tensor": {"source": "in.npy"},
            }
        ],
        "outputs": [
            {
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["a", "b", "c"]}, *space],
                "test_tensor": {"source": "out.npy"},
            }
        ],
    }

    def written() -> Path:
        (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(described))
        return tmp_path

    read = read_foreign(written(), "other", CPU)
    assert read.card.settings.network.out_channels == 3
    assert Predictor(read, BY_ONNX, {}).predict(volume()).labels.shape == volume().data.shape
    described["inputs"][0]["preprocessing"] = [{"id": "binarize"}]
    with pytest.raises(ModelError, match="ways that this program does not"):
        read_foreign(written(), "other", CPU)
    del described["inputs"][0]["preprocessing"]
    np.save(tmp_path / "out.npy", np.ones_like(given))
    with pytest.raises(ModelError, match="does not give what its test says"):
        read_foreign(written(), "other", CPU)
    described["weights"]["onnx"]["source"] = "../net.onnx"
    with pytest.raises(ModelError, match="outside of its folder"):
        read_foreign(written(), "other", CPU)
    described["weights"] = {"pytorch_state_dict": {"source": "x"}}
    with pytest.raises(ModelError, match="no weights as ONNX"):
        read_foreign(written(), "other", CPU)


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


@pytest.mark.parametrize("target", ["UNet", "BasicUNet"])
def test_a_monai_bundle_gives_its_networks_answer(target: str, tmp_path: Path) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    import torch

    from napari_unet.exchange.graphs import runner_of

    options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
    options |= {"channels": [4, 8, 16], "strides": [2, 2]} if target == "UNet" else {"features": [4, 4, 8, 8, 16, 4]}
    network = getattr(nets, target)(**options).eval()
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"name": "a bundle"}))
    inference = tmp_path / "configs" / "inference.json"
    inference.write_text(json.dumps({"network_def": {"_target_": target, **options}}))
    torch.save(network.state_dict(), tmp_path / "models" / "model.pt")
    model = read_foreign(tmp_path, "bundle", CPU)
    x = torch.randn(1, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.testing.assert_allclose(runner_of(model, CPU)(x).numpy(), network(x).numpy(), atol=1e-3)
    inference.write_text(json.dumps({"network_def": {"_target_": target, **options, "in_channels": "$1"}}))
    with pytest.raises(ModelError, match="described by code"):
        read_foreign(tmp_path, "bundle", CPU)
    assert from_bytes(to_bytes(model)).id == model.id


def test_a_monai_bundle_goes_out_and_runs_there(tmp_path: Path) -> None:
    parser = pytest.importorskip("monai.bundle")
    import torch

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
