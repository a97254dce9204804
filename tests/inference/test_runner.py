"""A network where it runs: memory that is short, a GPU that is lost, tiles of one value, small planes together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import EngineError
from napari_unet.domain.settings import AugmentationSettings, InferenceSettings, ModelSettings, NetworkSettings
from napari_unet.inference import runner as runner_module
from napari_unet.inference.predict import PixelShare, entropy, predict
from napari_unet.inference.runner import Runner
from napari_unet.inference.slabs import Slab, plan_slabs
from napari_unet.networks.factory import build
from napari_unet.networks.pixel_head import PixelHead
from napari_unet.patches.filters import plane_features

CPU = ResolvedCompute("cpu", "float32", 1)


def settings_for(dimensions=2, mirror=(), **inference):
    strides = ((1, 2, 2), (2, 2, 2)) if dimensions == 3 else ((2, 2), (2, 2))
    return ModelSettings(
        network=NetworkSettings(dimensions=dimensions, base_channels=4, strides=strides, out_channels=3),
        augmentation=AugmentationSettings(mirror=mirror),
        inference=InferenceSettings(**inference),
    )


def image_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)


def classes_of(runner, image, settings, slabs=None):
    found = np.full(image.shape[1:], 255, np.uint8)
    notes = []
    for result in predict(runner, image, settings, CPU, slabs or plan_slabs(image.shape[1:], settings)):
        found[result.slab.start : result.slab.stop] = result.classes
        notes += [result.note] if result.note else []
    return found, notes


def fails_above(runner, most, make_error):
    """Have the network fail, as a full memory would, for more voxels than this at once."""
    real, sizes = runner._run, []

    def run(x):
        size = x.shape[0] * int(np.prod(x.shape[2:]))
        if size > most:
            raise make_error()
        sizes.append(size)
        return real(x)

    runner._run = run
    return sizes


class TestMemory:
    @pytest.mark.parametrize(
        "make_error",
        [
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
            MemoryError,
        ],
    )
    def test_passes_are_halved_until_they_fit_and_the_mask_is_the_same(self, make_error):
        settings = settings_for()
        image = image_of((16, 32, 32))
        network = build(settings.network, seed=0)
        expected, _ = classes_of(Runner(network, settings, CPU), image, settings)
        runner = Runner(network, settings, CPU)
        sizes = fails_above(runner, 3 * 32 * 32, make_error)
        found, notes = classes_of(runner, image, settings)
        assert np.array_equal(found, expected)
        assert max(sizes) <= 3 * 32 * 32
        assert len(notes) == 1
        assert "smaller pieces" in notes[0]

    def test_then_tiles_are_halved(self):
        settings = settings_for()
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        sizes = fails_above(runner, 64 * 64, lambda: torch.OutOfMemoryError("out of memory"))
        found, notes = classes_of(runner, image_of((1, 128, 128)), settings)
        assert found.max() < 3
        assert max(sizes) <= 64 * 64
        assert len(notes) == 1
        # What was learnt holds for the next slab: it is not tried again.
        assert classes_of(runner, image_of((1, 128, 128)), settings)[1] == []

    def test_tiles_that_were_chosen_by_hand_are_halved_too(self):
        settings = settings_for(tile=(128, 128))
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        fails_above(runner, 64 * 64, lambda: torch.OutOfMemoryError("out of memory"))
        assert classes_of(runner, image_of((1, 128, 128)), settings)[0].max() < 3

    @pytest.mark.parametrize(
        ("dimensions", "shape", "tile"),
        [
            (2, (1, 264, 264), None),
            (2, (1, 1100, 1050), (1024, 1024)),
            (3, (35, 51, 35), None),
            (3, (9, 9, 9), None),
            (2, (1, 5, 700), None),
        ],
    )
    @pytest.mark.parametrize("share", [0.3, 0.01, 0])
    def test_whatever_the_shape_it_comes_to_an_end(self, dimensions, shape, tile, share):
        settings = settings_for(dimensions, tile=tile)
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        runner._run = lambda x: torch.zeros(len(x), 3, *x.shape[2:])
        sizes = fails_above(runner, share * np.prod(shape), lambda: torch.OutOfMemoryError("out of memory"))
        try:
            found, notes = classes_of(runner, image_of(shape), settings)
        except EngineError:
            assert share * np.prod(shape) < 32 * 32 * 2
        else:
            assert found.max() < 3
            assert len(notes) == 1
            assert max(sizes) <= share * np.prod(shape)

    def test_a_full_computer_is_not_taken_for_a_full_gpu(self, monkeypatch):
        settings = settings_for()
        runner = with_lost_gpu(settings, monkeypatch, fail_from=1000)
        monkeypatch.setattr(Runner, "put", lambda self, array: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(EngineError, match="computer's memory"):
            classes_of(runner, image_of((2, 48, 40)), settings)
        assert runner.device == "cuda"

    @pytest.mark.parametrize("wanted", [False, True])
    def test_what_another_runtime_cannot_run_is_run_by_torch(self, wanted):
        settings = settings_for()
        image = image_of((2, 32, 32))
        network = build(settings.network, seed=0)
        expected, _ = classes_of(Runner(network, settings, CPU), image, settings)
        runner = Runner(network, settings, CPU)
        runner._compute = ResolvedCompute("cpu", "float32", 1, runtime="openvino", runtime_wanted=wanted)
        fails_above(runner, 0, lambda: RuntimeError("Exception from src/plugins: not supported"))
        if wanted:
            with pytest.raises(RuntimeError, match="not supported"):
                classes_of(runner, image, settings)
        else:
            assert np.array_equal(classes_of(runner, image, settings)[0], expected)

    def test_in_the_end_one_sentence(self):
        settings = settings_for(3)
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        fails_above(runner, 0, lambda: torch.OutOfMemoryError("out of memory"))
        with pytest.raises(EngineError, match="memory is too full"):
            classes_of(runner, image_of((8, 32, 32)), settings)

    def test_other_errors_are_not_taken_for_it(self):
        settings = settings_for()
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        fails_above(runner, 0, lambda: RuntimeError("shapes do not match"))
        with pytest.raises(RuntimeError, match="shapes"):
            classes_of(runner, image_of((1, 32, 32)), settings)


def with_lost_gpu(settings, monkeypatch, fail_from=1):
    """A runner that believes to be on a GPU, which stops answering at its so-many-th pass."""
    network = build(settings.network, seed=0)
    monkeypatch.setattr(type(network), "to", lambda self, *_, **__: self)
    monkeypatch.setattr(Runner, "put", lambda self, array: torch.from_numpy(np.ascontiguousarray(array)))
    runner = Runner(network, settings, ResolvedCompute("cuda", "float32", 1))
    real, n = Runner._with_torch, iter(range(1000))

    def run(self, x):
        if self.device == "cuda":
            if next(n) >= fail_from:
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            with torch.autocast("cpu", enabled=False):
                return self._network(x)
        return real(self, x)

    monkeypatch.setattr(Runner, "_with_torch", run)
    runner._run = lambda x: Runner._with_torch(runner, x)
    return runner


def test_a_gpu_lost_before_the_first_slab_is_told_too(monkeypatch):
    settings = settings_for()
    network = build(settings.network, seed=0)

    def gone(self, device, **_):
        if device == "cuda":
            raise torch.AcceleratorError("CUDA error: device not ready")
        return self

    monkeypatch.setattr(type(network), "to", gone)
    runner = Runner(network, settings, ResolvedCompute("cuda", "float16", 1))
    _, notes = classes_of(runner, image_of((2, 48, 40)), settings)
    assert runner.device == "cpu"
    assert len(notes) == 1


def test_a_classifier_of_pixels_comes_along(monkeypatch):
    settings = settings_for()
    image = image_of((3, 24, 24))
    head = PixelHead(len(plane_features(image[:, 0], 3, 0, settings)), 3).eval()
    share = PixelShare(head, 0.5)
    alone = Runner(build(settings.network, seed=0), settings, CPU)
    slabs = [Slab(i, i + 1) for i in range(3)]
    expected = [r.classes for r in predict(alone, image, settings, CPU, slabs, pixels=share)]
    runner = with_lost_gpu(settings, monkeypatch)
    monkeypatch.setattr(runner, "beside", lambda given: given)
    found = [r.classes for r in predict(runner, image, settings, CPU, slabs, pixels=share)]
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_lost_gpu_leaves_the_work_to_the_cpu_and_it_is_said(dimensions, monkeypatch):
    settings = settings_for(dimensions)
    image = image_of((8, 48, 40))
    slabs = [Slab(a, a + 2) for a in range(0, 8, 2)]
    expected, _ = classes_of(Runner(build(settings.network, seed=0), settings, CPU), image, settings, slabs)
    runner = with_lost_gpu(settings, monkeypatch)
    found, notes = classes_of(runner, image, settings, slabs)
    assert np.array_equal(found, expected)
    assert runner.device == "cpu"
    assert len(notes) == 1
    assert "GPU stopped answering" in notes[0]


class TestConstantTiles:
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_the_mask_is_the_same_with_and_without(self, dimensions):
        tile = (16, 16) if dimensions == 2 else (4, 16, 16)
        on, off = (settings_for(dimensions, (0,), tile=tile, skip_constant=skip) for skip in (True, False))
        image = image_of((6, 64, 64))
        image[:, :, :32] = -1.5
        image[:, 2] = 0.25
        network = build(on.network, seed=0)
        runs = []
        runner = Runner(network, on, CPU)
        real = runner._run
        runner._run = lambda x: (runs.append(len(x)), real(x))[1]
        found, _ = classes_of(runner, image, on)
        expected, _ = classes_of(Runner(network, off, CPU), image, off)
        assert np.array_equal(found, expected)
        corners = 6 * 49 if dimensions == 2 else 3 * 49
        assert sum(runs) < 0.75 * 2 * corners

    def test_probabilities_are_equal_to_the_bit(self):
        settings = settings_for(skip_constant=True)
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        constant = torch.full((1, 1, 32, 32), 0.7)
        with torch.inference_mode():
            first, again = runner.probability(constant), runner.probability(constant.repeat(2, 1, 1, 1))
            runner.settings = settings_for(skip_constant=False)
            plain = runner.probability(constant)
        assert torch.equal(first, plain)
        assert torch.equal(again, plain.repeat(2, 1, 1, 1))

    def test_a_change_of_the_remembered_tile_does_not_reach_the_next(self):
        settings = settings_for()
        runner = Runner(build(settings.network, seed=0), settings, CPU)
        constant = torch.zeros(1, 1, 32, 32)
        with torch.inference_mode():
            first = runner.probability(constant)
            kept = first.clone()
            first.zero_()
            assert torch.equal(runner.probability(constant), kept)


def test_small_planes_share_a_pass_and_come_out_as_by_themselves():
    settings = settings_for(mirror=(1,))
    image = image_of((13, 24, 20))
    network = build(settings.network, seed=0)
    together, _ = classes_of(Runner(network, settings, CPU), image, settings, [Slab(0, 13)])
    single, _ = classes_of(Runner(network, settings, CPU), image, settings, [Slab(i, i + 1) for i in range(13)])
    assert np.array_equal(together, single)


class TestUncertainty:
    def test_it_is_nothing_where_one_class_is_certain_and_all_where_none_is(self):
        probability = torch.tensor([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]])
        found = entropy(probability).numpy()
        np.testing.assert_allclose(found, [0, 1, np.log(2) / np.log(3)], atol=1e-6)

    def test_it_comes_with_each_slab(self):
        settings = settings_for()
        image = image_of((3, 32, 32))
        (result,) = predict(build(settings.network, seed=0), image, settings, CPU, [Slab(0, 3)])
        assert (result.uncertainty.shape, result.uncertainty.dtype) == ((3, 32, 32), np.uint8)
        assert 0 < result.uncertainty.mean() <= 255


class TestThresholds:
    def test_a_class_is_proposed_from_its_probability_on(self):
        plain, bold = settings_for(), settings_for(thresholds=(0.2, 0.999))
        image = image_of((2, 32, 32))
        network = build(plain.network, seed=0)
        from napari_unet.inference.predict import predict_slab

        probability = predict_slab(network, image, plain, CPU, Slab(0, 2)).numpy()
        found, _ = classes_of(Runner(network, bold, CPU), image, bold)
        expected = np.where(probability[1] >= 0.2, 1, 0)
        expected[(probability[2] >= 0.999) & (probability[2] / 0.999 > probability[1] / 0.2)] = 2
        assert np.array_equal(found, expected)


@given(st.lists(st.integers(1, 3000), min_size=2, max_size=3))
def test_tiles_are_the_whole_where_it_fits_and_else_as_even_as_may_be(spatial):
    tile = runner_module._largest_tile(tuple(spatial))
    cap = runner_module._TILE_VOXELS[len(spatial)]
    assert np.prod(tile, dtype=np.int64) <= cap
    if np.prod(spatial, dtype=np.int64) <= cap:
        assert tile == tuple(spatial)
    else:
        longest = max(tile)
        assert all(t == min(n, longest) for t, n in zip(tile, spatial, strict=True))
        assert np.prod([min(n, longest + 1) for n in spatial], dtype=np.int64) > cap
