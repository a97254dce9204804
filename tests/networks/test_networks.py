"""Networks from their description, whatever parts it asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from napari_unet.domain.errors import ModelError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.networks.unet import UNet
from napari_unet.training.plan import plan

SMALL = {"base_channels": 4, "max_channels": 16}
VOLUME = {**SMALL, "dimensions": 3}
VARIANTS = {
    "one level": NetworkSettings(**SMALL, strides=((2, 2),)),
    "three levels": NetworkSettings(**SMALL, strides=((2, 2), (2, 2), (2, 2)), in_channels=3, out_channels=5),
    "classic": NetworkSettings(
        **SMALL, strides=((2, 1), (3, 2)), norm="batch", activation="relu", activation_first=True
    ),
    "no level": NetworkSettings(**SMALL, strides=()),
    "3D": NetworkSettings(**VOLUME, strides=((1, 2, 2), (2, 2, 2))),
    "3D batch": NetworkSettings(**VOLUME, strides=((2, 2, 2),), norm="batch", in_channels=2, out_channels=4),
    "residual": NetworkSettings(**SMALL, strides=((2, 2), (3, 1)), encoder="residual", kernels=((5, 3),) * 3),
    "residual, activation first": NetworkSettings(
        **SMALL, strides=((2, 2),), encoder="residual", norm="batch", activation_first=True, upsampling="transposed"
    ),
    "3D residual": NetworkSettings(
        **VOLUME, strides=((1, 2, 2), (3, 2, 2)), encoder="residual", kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3))
    ),
    "gates": NetworkSettings(**SMALL, strides=((2, 2), (2, 3)), attention_gates=True),
    "3D gates": NetworkSettings(**VOLUME, strides=((1, 2, 2), (2, 2, 2)), attention_gates=True),
    "deep": NetworkSettings(**SMALL, strides=((2, 2), (2, 1), (1, 3)), deep_supervision=True),
    "3D deep": NetworkSettings(**VOLUME, strides=((1, 2, 2), (2, 2, 2)), deep_supervision=True),
    "TransUNet": NetworkSettings(
        **SMALL, strides=((2, 2), (2, 2)), bottleneck="transformer", transformer_layers=2, encoder="residual"
    ),
    "3D TransUNet": NetworkSettings(
        **VOLUME, strides=((1, 2, 2), (2, 2, 2)), bottleneck="transformer", transformer_layers=1
    ),
    "regions": NetworkSettings(**SMALL, strides=((2, 2),), out_channels=4, head="sigmoid", regions=((1, 2, 3), (2, 3))),
    "pretrained": NetworkSettings(
        **SMALL, strides=((2, 2),) * 3, encoder="pretrained", backbone="resnet10", in_channels=2, norm="batch"
    ),
    "3D pretrained": NetworkSettings(
        **VOLUME, strides=((2, 2, 2),) * 2, encoder="pretrained", backbone="resnet10", attention_gates=True
    ),
    "everything": NetworkSettings(
        **SMALL,
        strides=((2, 2),) * 2,
        encoder="pretrained",
        backbone="resnet10",
        bottleneck="transformer",
        transformer_layers=1,
        attention_gates=True,
        deep_supervision=True,
    ),
}
each_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def picture(settings: NetworkSettings, network: UNet, batch: int = 2) -> torch.Tensor:
    """A random image of twice the smallest size."""
    spatial = tuple(2 * d if d > 1 else 5 for d in network.divisor)
    return torch.randn(batch, settings.in_channels, *spatial, generator=torch.Generator().manual_seed(0))


def stirred(settings: NetworkSettings) -> UNet:
    """A network of which no weight is 0 any more, as after a step of training."""
    network = build(settings, seed=0)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=chance)
    return network


def all_of(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@each_variant
def test_logits_have_the_shape_of_the_image(settings):
    network = build(settings, seed=0)
    x = picture(settings, network)
    for out in (all_of(network(x))[0], network.eval()(x)):
        assert out.shape == (2, settings.n_logits, *x.shape[2:])
        assert out.isfinite().all()
        assert (out < 0).any()  # logits, not probabilities
        assert not torch.allclose(out.sum(1), torch.ones(()))


@each_variant
def test_every_weight_learns(settings):
    network = stirred(settings)
    sum(out.square().mean() for out in all_of(network(picture(settings, network)))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@each_variant
def test_half_precision_is_nearly_the_same(settings):
    network = build(settings, seed=0).eval()
    x = picture(settings, network)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x)
        half.float().square().mean().backward()
    whole = network(x)
    assert (half.float() - whole).square().mean().sqrt() < 0.1 * whole.std()
    assert all(p.grad.isfinite().all() for name, p in network.named_parameters() if "coarse_heads" not in name)


@each_variant
def test_every_voxel_of_a_batch_is_for_itself(settings):
    """What one patch shows does not reach another when the network predicts."""
    network = build(settings, seed=0).eval()
    x = picture(settings, network)
    with torch.inference_mode():
        torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-4, rtol=1e-4)


@each_variant
def test_equal_seeds_make_equal_weights_and_leave_the_global_chance_alone(settings):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = weights_of(build(settings, seed=3))
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(99)
    two, three = weights_of(build(settings, seed=3)), weights_of(build(settings, seed=4))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], three[name]) for name in one)


@each_variant
def test_weights_go_into_a_network_of_the_same_description(settings):
    source, target = build(settings, seed=0), build(settings, seed=1)
    weights = weights_of(source)
    before = {name: array.copy() for name, array in weights.items()}
    for array in weights.values():
        array.setflags(write=False)  # as they come out of a file
    load_weights(target, weights)
    after = weights_of(target)
    assert all(np.array_equal(after[name], weights[name]) for name in weights)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    assert all(np.array_equal(weights[name], before[name]) for name in weights)


def test_weights_are_a_copy():
    network = build(VARIANTS["one level"], seed=0)
    weights = weights_of(network)
    for array in weights.values():
        array[...] = 0
    assert any(p.abs().sum() > 0 for p in network.parameters())


def test_foreign_weights_are_refused_and_change_nothing():
    network = build(VARIANTS["one level"], seed=0)
    before = weights_of(network)
    name = next(iter(before))
    broken = [
        {},
        {k: v for k, v in before.items() if k != name},
        before | {"other": np.zeros(3, np.float32)},
        before | {name: before[name][:1]},
        weights_of(build(VARIANTS["three levels"], seed=0)),
    ]
    for weights in broken:
        with pytest.raises(ModelError, match="damaged or was made by another program"):
            load_weights(network, weights)
    after = weights_of(network)
    assert all(np.array_equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("shape", [(40, 40), (6, 40, 40)])
def test_the_classic_preset_is_the_guides_network(shape):
    """Each level 2 x (3x3 convolution, ReLU, BatchNorm); max pooling; transposed convolution; 1x1 head; logits."""
    scan = Scan(np.zeros(shape, np.float32), "zyx"[-len(shape) :], Geometry(None), 0 if len(shape) == 3 else None)
    settings = plan([scan], 1, "classic")
    assert settings.network.base_channels == 64
    assert settings.training.optimiser == "adam"
    assert settings.training.learning_rate == 1e-4
    network = build(settings.network.model_copy(update={"base_channels": 4}), seed=0)
    for block in (*network.encoder, *network.decoder):
        assert [type(layer) for layer in block] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] * 2
        assert all(layer.kernel_size == (3, 3) for layer in block if isinstance(layer, nn.Conv2d))
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.MaxPool2d) == kinds.count(nn.ConvTranspose2d) == len(network.decoder)
    assert network.head.kernel_size == (1, 1)
    assert not {nn.Sigmoid, nn.Softmax} & set(kinds)
