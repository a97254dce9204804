"""Tiles in, proposal out: how a scan is cut up must not show in the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import AugmentationSettings, InferenceSettings, ModelSettings, NetworkSettings
from napari_unet.inference.predict import predict, predict_slab
from napari_unet.inference.slabs import Slab, plan_slabs
from napari_unet.networks.factory import build

CPU = ResolvedCompute("cpu", "float32", 1)


def settings_for(dimensions=2, mirror=(), classes=3, strides=None, **inference):
    strides = strides or (((1, 2, 2), (2, 2, 2)) if dimensions == 3 else ((2, 2), (2, 2)))
    return ModelSettings(
        network=NetworkSettings(
            dimensions=dimensions, base_channels=4, strides=strides, out_channels=classes, norm="batch"
        ),
        augmentation=AugmentationSettings(mirror=mirror),
        inference=InferenceSettings(**inference),
    )


def image_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)


def local_network(settings):
    """A network whose output at a voxel depends on that voxel alone: every cut must give the same result."""
    network = build(settings.network, seed=0).eval()

    class Local(torch.nn.Module):
        divisor = network.divisor

        def forward(self, x):
            return torch.cat([x * (k + 1) - 0.3 * k for k in range(settings.network.out_channels)], 1)

    return Local()


def whole(network, image, settings, slabs=None):
    """Classes and confidence of a whole scan, assembled from slabs."""
    slabs = slabs or plan_slabs(image.shape[1:], settings)
    classes = np.full(image.shape[1:], 255, np.uint8)
    confidence = np.zeros(image.shape[1:], np.uint8)
    for result in predict(network, image, settings, CPU, slabs):
        classes[result.slab.start : result.slab.stop] = result.classes
        confidence[result.slab.start : result.slab.stop] = result.confidence
    return classes, confidence


class TestTiles:
    @pytest.mark.parametrize("shape", [(2, 32, 32), (1, 33, 45), (3, 5, 40), (1, 3, 3), (2, 1, 1)])
    @pytest.mark.parametrize("tile", [None, (16, 16), (8, 24), (64, 64), (1, 1)])
    @pytest.mark.parametrize("overlap", [0.0, 0.5])
    def test_tiling_does_not_show_in_2d(self, shape, tile, overlap):
        settings = settings_for(tile=tile, overlap=overlap)
        network, image = local_network(settings), image_of(shape)
        expected = network(torch.from_numpy(image).movedim(1, 0)).softmax(1).movedim(1, 0)
        found = predict_slab(network, image, settings, CPU, Slab(0, shape[0]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(8, 16, 16), (5, 9, 21), (1, 12, 12), (1, 1, 1)])
    @pytest.mark.parametrize("tile", [None, (4, 8, 8), (16, 32, 32)])
    def test_tiling_does_not_show_in_3d(self, shape, tile):
        settings = settings_for(3, tile=tile)
        network, image = local_network(settings), image_of(shape)
        expected = network(torch.from_numpy(image)[None]).softmax(1)[0]
        found = predict_slab(network, image, settings, CPU, Slab(0, shape[0]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_a_tile_that_covers_the_plane_is_the_plane(self):
        image = image_of((2, 32, 32))
        network = build(settings_for().network, seed=0)
        one, two = (whole(network, image, settings_for(tile=tile)) for tile in (None, (32, 32)))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])

    def test_probabilities_add_up_everywhere(self):
        settings = settings_for(tile=(16, 16), mirror=(0, 1))
        found = predict_slab(build(settings.network, seed=0).eval(), image_of((1, 40, 37)), settings, CPU, Slab(0, 1))
        torch.testing.assert_close(found.sum(0), torch.ones(1, 40, 37), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("dimensions", [2, 3])
    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_scans_smaller_than_one_deepest_feature_can_be_predicted(self, dimensions, norm):
        strides = ((2, 2, 2),) * 3 if dimensions == 3 else ((2, 2),) * 4
        settings = settings_for(dimensions, strides=strides).with_values({"network.norm": norm})
        for shape in ((1, 1, 1), (2, 5, 16), (1, 16, 16)):
            classes, _ = whole(build(settings.network, seed=0), image_of(shape), settings)
            assert classes.shape == shape
            assert classes.max() <= 2


class TestFlips:
    def test_they_are_averaged_over_the_mirrored_axes_only(self):
        image = image_of((1, 16, 16))
        flipped = np.ascontiguousarray(image[..., ::-1])
        for mirror, same in (((1,), True), ((0,), False), ((), False)):
            settings = settings_for(mirror=mirror)
            network = build(settings.network, seed=0).eval()
            one = predict_slab(network, image, settings, CPU, Slab(0, 1))
            two = predict_slab(network, flipped, settings, CPU, Slab(0, 1)).flip(-1)
            assert torch.allclose(one, two, atol=1e-5) == same

    def test_they_can_be_left_out(self):
        image, network = image_of((1, 16, 16)), build(settings_for().network, seed=0).eval()
        plain = predict_slab(network, image, settings_for(), CPU, Slab(0, 1))
        off = predict_slab(
            network, image, settings_for(mirror=(0, 1)).with_values({"inference.mirror": False}), CPU, Slab(0, 1)
        )
        assert torch.equal(plain, off)


class TestSlabs:
    @given(
        st.tuples(st.integers(1, 200), st.integers(1, 600), st.integers(1, 600)),
        st.sampled_from([2, 3]),
        st.one_of(st.none(), st.integers(-5, 400)),
    )
    def test_they_cover_every_slice_and_begin_where_one_looks(self, shape, dimensions, first):
        slabs = plan_slabs(shape, settings_for(dimensions), first)
        assert all(0 <= slab.start < slab.stop <= shape[0] for slab in slabs)
        assert set().union(*(range(slab.start, slab.stop) for slab in slabs)) == set(range(shape[0]))
        if first is not None:
            wanted = min(max(first, 0), shape[0] - 1)
            assert slabs[0].start <= wanted < slabs[0].stop
            away = [slab.distance(wanted) for slab in slabs]
            assert away == sorted(away)
        else:
            assert [slab.start for slab in slabs] == sorted(slab.start for slab in slabs)

    def test_the_slice_on_screen_comes_by_itself_in_2d(self):
        assert plan_slabs((50, 64, 64), settings_for(), 20)[0] == Slab(20, 21)

    def test_their_order_changes_nothing(self):
        settings = settings_for(tile=(16, 16))
        network, image = build(settings.network, seed=0), image_of((7, 24, 24))
        slabs = [Slab(0, 3), Slab(3, 4), Slab(4, 7)]
        one, two = whole(network, image, settings, slabs), whole(network, image, settings, slabs[::-1])
        alone = whole(network, image, settings, [Slab(i, i + 1) for i in range(7)])
        for part in (0, 1):
            np.testing.assert_array_equal(one[part], two[part])
            np.testing.assert_array_equal(one[part], alone[part])

    def test_slabs_of_a_volume_agree_with_the_whole_of_it(self):
        """The neighbours beyond a slab are seen too."""
        settings = settings_for(3)
        network, image = build(settings.network, seed=0).eval(), image_of((48, 12, 12))
        one = predict_slab(network, image, settings, CPU, Slab(0, 48))
        parts = [predict_slab(network, image, settings, CPU, Slab(a, a + 16)) for a in (0, 16, 32)]
        torch.testing.assert_close(torch.cat(parts, 1), one, atol=1e-3, rtol=1e-3)


class TestResults:
    def test_classes_are_the_likeliest_and_confidence_says_how_likely(self):
        settings = settings_for()
        network, image = build(settings.network, seed=0), image_of((3, 16, 16))
        probability = predict_slab(network.eval(), image, settings, CPU, Slab(0, 3)).numpy()
        classes, confidence = whole(network, image, settings)
        assert (classes.dtype, confidence.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(classes, probability.argmax(0))
        np.testing.assert_allclose(confidence / 255, probability.max(0), atol=0.5 / 255 + 1e-6)

    def test_a_network_that_is_sure_of_one_class_proposes_it_everywhere(self):
        settings = settings_for(tile=(16, 16))
        network = build(settings.network, seed=0)
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
        classes, confidence = whole(network, image_of((2, 37, 41)), settings)
        assert (classes == 1).all()
        assert (confidence == 255).all()

    def test_a_network_in_training_mode_is_set_to_predict(self):
        settings = settings_for()
        network, image = build(settings.network, seed=0), image_of((2, 16, 16))
        first = whole(network.train(), image, settings)
        np.testing.assert_array_equal(first[1], whole(network.train(), image, settings)[1])
        assert not network.training
