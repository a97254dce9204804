"""A stroke corrects its surroundings, and nothing else moves."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings, NetworkSettings
from napari_unet.evaluation.metrics import dice
from napari_unet.inference.live import FREE, Features, Window, filtered, refit, seen_by_head, window_around
from napari_unet.inference.predict import predict, predict_slab
from napari_unet.inference.slabs import Slab
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.patches.prepare import prepare
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.lesson import Lesson
from tests.real_data import REAL_DATA, needs_real_data
from tests.training.lessons import run, small_settings

CPU = ResolvedCompute("cpu", "float32", 1)


def hippocampus(number):
    """Both parts of a real hippocampus as one class, in coronal planes."""
    file = sorted((REAL_DATA / "hippocampus_mr" / "images").iterdir())[number]
    image, truth = (nib.load(REAL_DATA / "hippocampus_mr" / kind / file.name) for kind in ("images", "masks"))
    planes = np.ascontiguousarray(np.swapaxes(image.get_fdata(dtype=np.float32), 0, 1))
    labels = np.ascontiguousarray(np.swapaxes(np.asarray(truth.dataobj) > 0, 0, 1)).astype(np.uint8)
    return Scan(planes, "zyx", Geometry((1.0,) * 3), 0), labels


def stroke_into_mistake(labels, truth, painted):
    """Paint a disc within the largest mistake, in the true class."""
    parts, _ = ndimage.label((labels != truth) & (painted == FREE))
    mistake = parts == np.bincount(parts[parts > 0]).argmax()
    depth = ndimage.distance_transform_edt(mistake)
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    rows, columns = np.indices(labels.shape)
    brush = (rows - row) ** 2 + (columns - column) ** 2 <= min(2, depth.max()) ** 2
    value = truth[row, column]
    painted[brush & (truth == value)] = value


@needs_real_data
def test_strokes_raise_the_dice_of_real_slices_and_spare_the_model():
    settings = small_settings(steps=60, patch_size=(24, 24), batch_size=4)
    taught = [Lesson(*hippocampus(number)) for number in (0, 1)]
    checkpoint = run(fine_tune(taught, settings, LabelSchema.of("hippocampus"), CPU))[1].checkpoint
    network = build(settings.network)
    load_weights(network, checkpoint.weights)
    before, rows = weights_of(network), []
    for number in (50, 60, 70):
        scan, labels = hippocampus(number)
        image, n = prepare(scan, settings.preparation), len(labels)
        for index in (n // 3, n // 2, 2 * n // 3):
            truth = labels[index]
            features = seen_by_head(network, image, settings, CPU, index, Window(0, 0, *truth.shape))
            said, painted = features.prior.argmax(1).reshape(truth.shape), np.full(truth.shape, FREE)
            found, alone = said, said.copy()
            for _ in range(2):
                stroke_into_mistake(found, truth, painted)
                found, reached = refit(features, painted, 2)
                np.testing.assert_array_equal(found[painted != FREE], painted[painted != FREE])
                np.testing.assert_array_equal(found[~reached], said[~reached])
            alone[painted != FREE] = painted[painted != FREE]
            rows.append([dice(each == 1, truth == 1) for each in (said, alone, found)])
    said, alone, found = np.mean(rows, axis=0)
    assert found > alone + 0.01 > said + 0.01
    for name, array in weights_of(network).items():
        np.testing.assert_array_equal(array, before[name])


KINDS = {
    "2d": {},
    "sigmoid": {"head": "sigmoid"},
    "regions": {"head": "sigmoid", "regions": ((1, 2), (2,))},
    "deep": {"deep_supervision": True},
    "3d": {"dimensions": 3, "strides": ((1, 2, 2), (2, 2, 2))},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zoom", [(1.0, 1.0, 1.0), (1.0, 1.5, 2.0)])
def test_without_strokes_the_answer_is_the_models(kind, zoom):
    described = {"base_channels": 4, "out_channels": 3, "strides": ((2, 2), (2, 2)), **KINDS[kind]}
    settings = ModelSettings(network=NetworkSettings(**described))
    network = build(settings.network, seed=0).train()
    image = np.random.default_rng(0).standard_normal((1, 9, 37, 42)).astype(np.float32)
    window = Window(0, 0, 37, 42)
    features = seen_by_head(network, image, settings, CPU, 4, window, zoom)
    found, reached = refit(features, np.full((37, 42), FREE), 3)
    expected = predict_slab(network, image, settings, CPU, Slab(0, 9), zoom)[:, 4].numpy()
    assert np.mean(found == expected.argmax(0)) > 0.99
    np.testing.assert_allclose(np.exp(features.prior).T.reshape(3, 37, 42), expected, atol=0.01)
    assert not reached.any()
    assert features.values.shape == (37 * 42, 4)


def test_what_was_proposed_counts_and_a_stroke_stays_near():
    settings = ModelSettings(network=NetworkSettings(base_channels=4, out_channels=3, strides=((2, 2), (2, 2))))
    settings = settings.with_values({"augmentation.mirror": (0, 1)})
    network = build(settings.network, seed=0)
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    proposed = next(predict(network, image, settings, CPU, (Slab(0, 3),)))
    window = Window(0, 0, 96, 96)
    features = seen_by_head(network, image, settings, CPU, 1, window, answer=proposed)
    painted = np.full((96, 96), FREE)
    np.testing.assert_array_equal(refit(features, painted, 3)[0], proposed.classes[1])
    # The last class is one that the model does not know.
    for value in (0, 3):
        painted[10:14, 10:20] = value
        found, reached = refit(features, painted, 4)
        assert (found[10:14, 10:20] == value).all()
        np.testing.assert_array_equal(found[~reached], proposed.classes[1][~reached])
        assert reached[8:16, 8:22].all()
        assert not reached[40:, 40:].any()


def test_without_a_model_two_painted_classes_suffice():
    random = np.random.default_rng(0)
    rows, columns = np.indices((64, 64))
    truth = ((rows - 30) ** 2 + (columns - 34) ** 2 < 200).astype(int)
    image = (random.normal(0, 0.5, truth.shape) + 2 * truth).astype(np.float32)[None, None]
    features = filtered(image, 0, Window(0, 0, 64, 64))
    painted = np.full(truth.shape, FREE)
    painted[29:32, 30:38] = 1
    found, _ = refit(features, painted, 2)
    np.testing.assert_array_equal(found, (painted == 1).astype(int))
    painted[4:7, 5:15] = painted[50:53, 30:38] = 0
    painted[20:22, 30:38] = 1
    found, reached = refit(features, painted, 2)
    assert dice(found == 1, truth == 1) > 0.8
    assert reached.all()


def test_dead_features_and_certain_answers_are_no_trouble():
    prior = np.log(np.tile(np.float32([0.999, 0.001]), (400, 1)))
    features = Features(np.zeros((400, 5), np.float32), prior, (20, 20))
    painted = np.full((20, 20), FREE)
    painted[5, 5] = 1
    found, _ = refit(features, painted, 2)
    assert found[5, 5] == 1
    painted[:] = 1
    assert (refit(features, painted, 2)[0] == 1).all()


@given(
    shape=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    where=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    dimensions=st.sampled_from([2, 3]),
)
def test_a_window_lies_in_the_slice_and_about_the_hand(shape, where, dimensions):
    focus = (int(shape[0] * where[0]), int(shape[1] * where[1]))
    window = window_around(shape, focus, dimensions)
    for part, size, at in zip(window.box, shape, focus, strict=True):
        assert 0 <= part.start <= at < part.stop <= size
        assert min(at - part.start, part.stop - 1 - at) >= 16 or part.start == 0 or part.stop == size
