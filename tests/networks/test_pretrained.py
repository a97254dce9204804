"""Encoders whose weights come from elsewhere."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from napari_unet.domain.errors import ModelError, SettingsError
from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.pretrained import adapt_channels
from napari_unet.networks.unet import UNet

PARTS = {"base_channels": 4, "max_channels": 16, "encoder": "pretrained"}
FLAT = {**PARTS, "strides": ((2, 2),) * 3}
DEEP = {**PARTS, "dimensions": 3, "strides": ((2, 2, 2),) * 3}


def resnet18(
    dimensions: int = 2, in_channels: int = 3, blocks: int = 2, shortcuts: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A state dict as torchvision writes it, without its last and largest layer; MedicalNet's have no shortcuts."""
    chance = torch.Generator().manual_seed(seed)
    found = {}

    def convolution(name: str, out: int, into: int, width: int) -> None:
        fan = into * width**dimensions
        found[f"{name}.weight"] = torch.randn(out, into, *[width] * dimensions, generator=chance) * (2 / fan) ** 0.5

    def norm(name: str, n: int) -> None:
        for part in ("weight", "running_var"):
            found[f"{name}.{part}"] = 0.5 + torch.rand(n, generator=chance)
        for part in ("bias", "running_mean"):
            found[f"{name}.{part}"] = 0.3 * torch.randn(n, generator=chance)
        found[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 64, in_channels, 7)
    norm("bn1", 64)
    for layer, (into, out) in enumerate([(64, 64), (64, 128), (128, 256)], start=1):
        for b in range(blocks):
            name = f"layer{layer}.{b}"
            convolution(f"{name}.conv1", out, out if b else into, 3)
            convolution(f"{name}.conv2", out, out, 3)
            norm(f"{name}.bn1", out)
            norm(f"{name}.bn2", out)
            if b == 0 and into != out and shortcuts:
                convolution(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
    found["fc.weight"], found["fc.bias"] = torch.zeros(10, 512), torch.zeros(10)
    return found


def reference(weights: dict[str, Tensor], image: Tensor, shortcut: str) -> list[Tensor]:
    """The features of MONAI's own ResNet, in stages, down to the second layer."""
    from monai.networks.nets.resnet import ResNet, get_inplanes

    body = ResNet(
        "basic",
        [2, 2, 2, 2],
        get_inplanes(),
        spatial_dims=image.ndim - 2,
        n_input_channels=image.shape[1],
        conv1_t_stride=2,
        shortcut_type=shortcut,
        bias_downsample=False,
        feed_forward=False,
    )
    missing, unexpected = body.load_state_dict(weights, strict=False)
    assert all(name.startswith("layer4.") for name in missing)
    assert set(unexpected) == {"fc.weight", "fc.bias"}
    body.eval()
    with torch.no_grad():
        stem = body.act(body.bn1(body.conv1(image)))
        one = body.layer1(body.maxpool(stem))
        return [stem.clone(), one.clone(), body.layer2(one)]


def features(network: UNet, image: Tensor) -> list[Tensor]:
    found, x = [], image
    with torch.no_grad():
        for stage in list(network.encoder)[1:]:
            x = stage(x)
            found.append(x.clone())
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return resnet18()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(weights, path)
    return path


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_grey_picture_has_the_features_it_had_in_colour(weights, file, caplog):
    settings = NetworkSettings(**FLAT, backbone_weights=str(file))
    with caplog.at_level(logging.INFO, "napari_unet"):
        network = build(settings, seed=0, pretrained=True)
    # conv1 and bn1; four blocks of two convolutions and norms; one shortcut; left out: layer3, fc, all the counts.
    assert "50 tensors of a pretrained resnet18 fitted" in caplog.text
    assert str(file) not in caplog.text
    grey = image(2, 1, 64, 48)
    expected = reference(weights, grey.expand(2, 3, 64, 48), "B")
    for mode in (True, False):  # tiny batches do not count: the same while learning as when used
        for found, feature in zip(features(network.train(mode), grey), expected, strict=True):
            torch.testing.assert_close(found, feature, atol=1e-4, rtol=1e-4)


def test_a_step_of_training_leaves_the_learnt_statistics_and_changes_the_rest(file):
    network = build(NetworkSettings(**FLAT, backbone_weights=str(file), norm="batch"), seed=0, pretrained=True)
    before = {name: tensor.clone() for name, tensor in network.encoder[1:].state_dict().items()}
    network(image(2, 1, 32, 32)).square().mean().backward()
    torch.optim.SGD(network.parameters(), lr=1e-2).step()
    for name, tensor in network.encoder[1:].state_dict().items():
        assert torch.equal(tensor, before[name]) == ("running" in name), name


def test_a_volume_uses_medicalnets_weights(tmp_path):
    weights = resnet18(3, in_channels=1, shortcuts=False)
    path = tmp_path / "resnet_18_23dataset.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    network = build(NetworkSettings(**DEEP, backbone_weights=str(path)), seed=0, pretrained=True)
    volume = image(1, 1, 16, 24, 32)
    expected = reference(weights, volume, "A")
    for found, feature in zip(features(network, volume), expected, strict=True):
        torch.testing.assert_close(found, feature, atol=1e-4, rtol=1e-4)


def test_a_shortcut_without_weights_lets_gradients_through():
    network = build(NetworkSettings(**DEEP), seed=0)
    second = network.encoder[3].layer2[0]
    x = image(1, 64, 4, 4, 4).requires_grad_()
    second(x).sum().backward()  # the branch's last scale is 0 at first
    assert x.grad[..., ::2, ::2, ::2].any()


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 6])
def test_the_first_convolution_is_shared_out_among_the_channels(in_channels, weights, file):
    settings = NetworkSettings(**FLAT, in_channels=in_channels, backbone_weights=str(file))
    first = build(settings, seed=0, pretrained=True).encoder[1].conv1.weight
    learnt = weights["conv1.weight"]
    expected = {
        1: [learnt.sum(1)],
        2: [learnt[:, 0] * 1.5, learnt[:, 1] * 1.5],
        3: [learnt[:, c] for c in range(3)],
        4: [learnt[:, c % 3] * 0.75 for c in range(4)],
        6: [learnt[:, c % 3] * 0.5 for c in range(6)],
    }[in_channels]
    torch.testing.assert_close(first.detach(), torch.stack(expected, dim=1))


def test_one_learnt_channel_becomes_several():
    learnt = image(5, 1, 3, 3, 3)
    torch.testing.assert_close(adapt_channels(learnt, 4), learnt.expand(5, 4, 3, 3, 3) / 4)


def test_without_being_asked_no_file_is_read():
    settings = NetworkSettings(**FLAT, backbone_weights="long/gone.pth")
    network, other = build(settings, seed=0), weights_of(build(settings, seed=1))
    load_weights(network, other)
    found = weights_of(network)
    assert all(np.array_equal(found[name], other[name]) for name in other)
    # Without a ResNet there are no weights for one, asked for or not.
    plain = NetworkSettings(backbone_weights="long/gone.pth")
    one, two = (weights_of(build(plain, seed=0, pretrained=asked)) for asked in (True, False))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_features_of_random_weights_stay_within_bounds(backbone):
    """Without weights the fixed norms hold nothing down."""
    settings = NetworkSettings(**{**FLAT, "strides": ((2, 2),) * 5}, backbone=backbone)
    found = features(build(settings, seed=0), image(1, 1, 64, 64))
    assert all(0.1 < feature.std() < 10 for feature in found)


class _Attack:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a foreign file has run')",))


def _write_foreign(directory: Path, weights: dict[str, Tensor]) -> dict[str, Path]:
    """Files that are no weights, or others', by what is wrong with them."""
    made = {
        name: directory / f"{name.replace(' ', '_')}.pth" for name in ("code", "whole model", "text", "cut", "list")
    }
    made["code"].write_bytes(pickle.dumps({"conv1.weight": _Attack()}))
    torch.save(nn.Conv2d(1, 1, 1), made["whole model"])
    made["text"].write_text("<html>404</html>")
    torch.save(weights, made["cut"])
    made["cut"].write_bytes(made["cut"].read_bytes()[:50_000])
    torch.save([1, 2, 3], made["list"])
    made["empty"] = directory / "empty.pt"
    made["empty"].touch()
    made["damaged"] = directory / "damaged.safetensors"
    made["damaged"].write_bytes(b"\xff" * 100)
    made["folder"] = directory
    made["missing"] = directory / "missing.safetensors"
    unlike = {
        "no tensors": {},
        "other names": {f"encoder.{name}": tensor for name, tensor in weights.items()},
        "one missing": {k: v for k, v in weights.items() if k != "layer2.1.conv2.weight"},
        "one other": weights | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
        "another stem": weights | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
        "volumes": resnet18(3, 1),
        "resnet10": resnet18(blocks=1),
    }
    for name, content in unlike.items():
        made[name] = directory / f"{name.replace(' ', '_')}.safetensors"
        save_file(content, made[name])
    return made


def test_files_that_do_not_fit_are_refused_in_a_sentence_and_run_no_code(weights, tmp_path):
    for name, path in _write_foreign(tmp_path, weights).items():
        with pytest.raises(ModelError) as caught:
            build(NetworkSettings(**FLAT, backbone_weights=str(path)), seed=0, pretrained=True)
        sentence = str(caught.value)
        assert str(path) in sentence, name
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert len(sentence) < 300 + len(str(path))


def test_what_does_not_fit_is_named(weights, tmp_path):
    path = tmp_path / "torso.safetensors"
    save_file({k: v for k, v in weights.items() if not k.startswith("layer2.1.")}, path)
    with pytest.raises(ModelError, match=r"40 of 50 tensors fit \('layer2\.1\.conv1\.weight' does not\)"):
        build(NetworkSettings(**FLAT, backbone_weights=str(path)), seed=0, pretrained=True)


@pytest.mark.parametrize("strides", [(), ((2, 1),), ((2, 2), (3, 2)), ((2, 2),) * 6])
def test_strides_that_a_resnet_does_not_have_are_refused(strides):
    with pytest.raises(SettingsError, match="halves every axis"):
        build(NetworkSettings(**{**FLAT, "strides": strides}), seed=0)


@pytest.mark.parametrize(
    ("source", "module"), [(None, "monai.networks.nets.resnet"), ("hub:someone/resnet18", "huggingface_hub")]
)
def test_what_is_not_installed_is_named(source, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=r"pip install napari-unet\[encoders\]"):
        build(NetworkSettings(**FLAT, backbone_weights=source), seed=0, pretrained=True)


@contextmanager
def _hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[list[tuple[str, str]]]:
    """A hub on this computer; gives what was asked of it, and as whom."""
    from huggingface_hub import constants

    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self, body: bool = False) -> None:
            asked.append((self.path, self.headers["User-Agent"]))
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_HEAD(body=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_weights_are_fetched_from_a_hub_once(weights, tmp_path, monkeypatch):
    settings = NetworkSettings(**FLAT, in_channels=3, backbone_weights="hub:timm/resnet18.a1_in1k")
    files = {"/timm/resnet18.a1_in1k/resolve/main/model.safetensors": save(weights)}
    with _hub(files, monkeypatch, tmp_path) as asked:
        network = build(settings, seed=0, pretrained=True)
        assert torch.equal(network.encoder[1].conv1.weight, weights["conv1.weight"])
        # Not told: what else is installed here.
        assert asked
        assert not any("torch" in agent for _, agent in asked)
        n = len(asked)
        build(settings, seed=0, pretrained=True)
        assert len(asked) == n


def test_a_hub_without_such_weights_is_said_so(tmp_path, monkeypatch):
    with _hub({}, monkeypatch, tmp_path) as asked:
        with pytest.raises(ModelError, match=r"someone/thing on the hub has no weights of a resnet18"):
            build(NetworkSettings(**FLAT, backbone_weights="hub:someone/thing"), seed=0, pretrained=True)
        assert {path.rsplit("/", 1)[1] for path, _ in asked} == {
            "model.safetensors",
            "resnet_18_23dataset.pth",
            "resnet_18.pth",
        }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("timm/resnet18", "cannot be reached"), ("not a name", "no such OWNER/NAME"), ("", "no such")],
)
def test_without_a_network_a_hub_is_a_sentence(name, sentence, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=sentence):
        build(NetworkSettings(**FLAT, backbone_weights=f"hub:{name}"), seed=0, pretrained=True)
