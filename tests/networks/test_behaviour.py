"""What each part of a network does that the others do not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.blocks import AttentionGate, ResidualBlock, frozen_statistics
from napari_unet.networks.factory import build
from napari_unet.networks.transformer import Transformer, n_heads, positions
from tests.networks.test_networks import SMALL, VARIANTS, VOLUME, all_of, each_variant, picture, stirred


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOCAL = {
    "plain": {},
    "residual": {"encoder": "residual"},
    "residual, activation first": {"encoder": "residual", "activation_first": True},
    "gates": {"attention_gates": True},
    "pretrained": {"encoder": "pretrained", "backbone": "resnet10"},
}


@pytest.mark.parametrize("parts", LOCAL.values(), ids=LOCAL)
def test_a_shifted_picture_has_a_shifted_mask(parts):
    """Shifted by a multiple of the divisor, and read where no border shows."""
    settings = NetworkSettings(**SMALL, strides=((2, 2),) * 2, norm="batch", **parts)
    network = stirred(settings).eval()
    picture = noise(1, 1, 136, 140)
    with torch.inference_mode():
        whole, part = network(picture), network(picture[..., 4:, 8:])
    torch.testing.assert_close(whole[..., 64:72, 68:76], part[..., 60:68, 60:68], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bottleneck", ["convolution", "transformer"])
def test_only_a_transformer_sees_the_far_corner(bottleneck):
    settings = NetworkSettings(**SMALL, strides=((2, 2),), norm="batch", bottleneck=bottleneck, transformer_layers=1)
    network = stirred(settings).eval()
    picture = noise(1, 1, 64, 64).requires_grad_()
    network(picture)[0, 1, 0, 0].backward()
    assert (picture.grad[..., -1, -1].abs().max() > 0) == (bottleneck == "transformer")


@pytest.mark.parametrize("sizes", [((32, 32), (48, 16)), ((8, 16, 16), (4, 32, 24))], ids=["2D", "3D"])
def test_a_transunet_takes_tiles_of_any_size(sizes):
    n = len(sizes[0])
    settings = NetworkSettings(
        **SMALL, dimensions=n, strides=((2,) * n,) * 2, bottleneck="transformer", transformer_layers=2
    )
    network = stirred(settings)
    for spatial in sizes:
        out = network(noise(1, 1, *spatial))
        assert out.shape == (1, 2, *spatial)
        assert out.isfinite().all()


@pytest.mark.parametrize("spatial", [(7, 5), (3, 4, 6), (40, 40)])
@pytest.mark.parametrize("width", [16, 30, 64])
def test_each_place_has_a_position_of_its_own_whatever_the_tile(spatial, width):
    here = torch.device("cpu")
    found = positions(torch.Size(spatial), width, here)
    assert found.shape == (torch.Size(spatial).numel(), width)
    assert len(found.unique(dim=0)) == len(found)
    larger = positions(torch.Size(n + 2 for n in spatial), width, here).unflatten(0, [n + 2 for n in spatial])
    torch.testing.assert_close(larger[tuple(slice(n) for n in spatial)].flatten(0, -2), found)


def test_a_transformer_knows_where_things_are():
    """Two places that change contents do not merely change results."""
    transformer = Transformer(16, layers=1)
    x = noise(1, 16, 4, 4)
    swapped = x[..., [1, 0, 2, 3]]
    with torch.inference_mode():
        assert not torch.allclose(transformer(swapped), transformer(x)[..., [1, 0, 2, 3]], atol=1e-3)


def test_heads_share_any_width_equally():
    for width in range(1, 1100):
        heads = n_heads(width)
        assert width % heads == 0
        assert width < 32 or width // heads >= 32
    assert n_heads(256) == 8
    assert n_heads(320) == 10


def test_slices_stay_apart_where_kernels_and_strides_are_flat():
    settings = NetworkSettings(
        **VOLUME, strides=((1, 2, 2),), kernels=((1, 3, 3), (1, 3, 3)), norm="batch", encoder="residual"
    )
    network = stirred(settings).eval()
    one = noise(1, 1, 5, 8, 8)
    other = one.clone()
    other[:, :, 2] += 1
    with torch.inference_mode():
        changed = (network(one) - network(other)).abs().amax((0, 1, 3, 4)) > 1e-4
    assert changed.tolist() == [False, False, True, False, False]


def test_each_level_has_the_kernel_asked_for():
    kernels = ((1, 3), (3, 5), (7, 3))
    network = build(NetworkSettings(**SMALL, strides=((2, 2), (2, 2)), kernels=kernels), seed=0)
    for level, kernel in enumerate(kernels):
        blocks = [network.encoder[level], *network.decoder[level : level + 1]]
        widths = {layer.kernel_size for block in blocks for layer in block if isinstance(layer, nn.Conv2d)}
        assert widths == {kernel}


@pytest.mark.parametrize("channels", [(4, 4), (4, 8)])
def test_a_residual_block_whose_branch_is_silent_passes_its_input_on(channels):
    block = ResidualBlock(*channels, NetworkSettings(), None)
    nn.init.zeros_(block.branch[-1].weight)
    x = noise(2, 4, 6, 6)
    expected = x if channels[0] == channels[1] else block.shortcut(x)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(expected, 0.01))


def test_a_gate_shuts_opens_and_looks_at_the_coarser_level():
    gate = AttentionGate(4, 6, NetworkSettings(), (2, 2))
    skip, coarse = noise(1, 4, 8, 8), noise(1, 6, 4, 4, seed=1)
    share = gate(skip, coarse) / skip
    assert ((share > 0) & (share < 1)).all()
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # the same for every channel
    assert share.std() > 1e-3  # but not for every place
    assert not torch.allclose(gate(skip, -coarse), gate(skip, coarse))
    for bias, expected in ((-50.0, torch.zeros_like(skip)), (50.0, skip)):
        nn.init.constant_(gate.score.bias, bias)
        torch.testing.assert_close(gate(skip, coarse), expected)


def test_shut_gates_keep_fine_detail_from_the_mask():
    """A pattern that pooling cannot see reaches the logits through the skips alone."""
    settings = NetworkSettings(**SMALL, strides=((2, 2),), norm="batch", attention_gates=True)
    network = stirred(settings).eval()
    # The coarse level is given the same whatever the picture.
    nn.init.zeros_(network.encoder[1][0].weight)
    one, other = noise(1, 1, 8, 8), noise(1, 1, 8, 8, seed=1)
    with torch.inference_mode():
        assert not torch.allclose(network(one), network(other), atol=1e-3)
        nn.init.constant_(network.gates[0].score.bias, -50.0)
        torch.testing.assert_close(network(one), network(other))


@pytest.mark.parametrize("name", ["deep", "3D deep"])
def test_deep_supervision_teaches_every_level_of_the_decoder(name):
    settings = VARIANTS[name]
    network = build(settings, seed=0)
    x = picture(settings, network)
    outputs = network(x)
    size, sizes = list(x.shape[2:]), []
    for stride in settings.strides:
        sizes.append(tuple(size))
        size = [n // s for n, s in zip(size, stride, strict=True)]
    assert [out.shape for out in outputs] == [(2, 2, *spatial) for spatial in sizes]
    only = network.eval()(x)
    torch.testing.assert_close(only, outputs[0])


@pytest.mark.parametrize("strides", [(), ((2, 2),)])
def test_deep_supervision_of_a_shallow_network_is_a_tuple_of_one(strides):
    network = build(NetworkSettings(**SMALL, strides=strides, deep_supervision=True), seed=0)
    assert [out.shape for out in network(noise(1, 1, 6, 6))] == [(1, 2, 6, 6)]


@each_variant
def test_activations_computed_again_give_the_same_step(settings):
    """Gradients, outputs and the statistics of batch normalisation, to the last bit."""
    found = []
    for again in (False, True):
        network = stirred(settings)
        network.checkpoint_activations = again
        outputs = all_of(network(picture(settings, network)))
        sum(out.square().mean() for out in outputs).backward()
        found.append(
            {
                **{f"output {i}": out for i, out in enumerate(outputs)},
                **{f"gradient {name}": p.grad for name, p in network.named_parameters()},
                **dict(network.named_buffers()),
            }
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("name", ["3D residual", "TransUNet", "pretrained"])
def test_activations_computed_again_keep_less(name):
    settings = VARIANTS[name].model_copy(update={"norm": "instance"})
    network = stirred(settings)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def kept() -> int:
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(picture(settings, network))
            return sum(storages.values()) if outputs is not None else 0

    everything = kept()
    network.checkpoint_activations = True
    # What a level is given stays with checkpoint itself, which no hook sees: skips and the decoder's levels, once each.
    assert kept() < everything / 4


def test_activations_are_computed_again_by_several_threads_at_once():
    settings = VARIANTS["3D TransUNet"]
    network = stirred(settings)
    x = picture(settings, network, batch=4)
    parameters = list(network.parameters())

    def gradients(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(network(part).square().sum(), parameters)

    expected = [gradients(part) for part in x.split(1)]
    network.checkpoint_activations = True
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradients, x.split(1)))
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_nothing_is_computed_again_where_nothing_is_learnt():
    network = build(VARIANTS["classic"], seed=0)
    network.checkpoint_activations = True
    x = picture(VARIANTS["classic"], network)
    with torch.no_grad():
        assert not network(x).requires_grad
    assert network.encoder[0][2].num_batches_tracked == 1


def test_frozen_statistics_stand_still_and_change_no_output():
    settings = VARIANTS["3D batch"]
    one, two = build(settings, seed=0), build(settings, seed=0)
    x = picture(settings, one)
    before = {name: buffer.clone() for name, buffer in one.named_buffers()}
    with frozen_statistics(one), frozen_statistics(one):
        frozen = one(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in one.named_buffers())
    assert torch.equal(frozen, two(x))
    one(x)
    assert all(torch.equal(buffer, dict(two.named_buffers())[name]) for name, buffer in one.named_buffers())
    with frozen_statistics(one.eval()):
        frozen = one(x)
    assert torch.equal(frozen, one(x))


@pytest.mark.slow
@each_variant
def test_a_network_can_be_exported_for_any_size(settings):
    network = stirred(settings).eval()
    x = picture(settings, network, batch=1)
    sizes = {
        axis + 2: d * torch.export.Dim(f"n{axis}", max=64) if d > 1 else torch.export.Dim(f"n{axis}", min=2, max=64)
        for axis, d in enumerate(network.divisor)
    }
    with torch.no_grad():
        exported = torch.export.export(network, (x,), dynamic_shapes=(sizes,)).module()
        other = noise(1, settings.in_channels, *(3 * d if d > 1 else 7 for d in network.divisor))
        torch.testing.assert_close(exported(other), network(other))
