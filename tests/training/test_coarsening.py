"""Seeing wide structures coarser: when it is planned, and that masks stay where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.inference.predict import predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build
from napari_unet.patches.prepare import prepare
from napari_unet.patches.spacing import zoom_of
from napari_unet.session.predicting import predict_scan
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.fingerprint import fingerprint
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import plan
from napari_unet.training.words import in_words
from tests.training.lessons import CPU, SCHEMA, run


def disc(shape=(256, 256), radius=24.0, centre=(100.0, 150.0), seed=0, spacing=None):
    """A bright disc in noise, and its truth."""
    rows, columns = np.indices(shape)
    truth = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).astype(np.uint8)
    picture = np.random.default_rng(seed).normal(0, 5, shape) + 60 * truth
    return Lesson(Scan(picture.astype(np.float32), "yx", Geometry(spacing)), truth)


def planned(lesson, **options):
    return plan([lesson.scan], 1, labels=[lesson.labels], **options)


@pytest.mark.parametrize(
    ("shape", "radius", "ratio"),
    [
        ((256, 256), 24, 2.0),  # as far as the whole plane fits into a patch
        ((512, 512), 90, 4.0),
        ((512, 512), 20, 2.5),  # as far as the structure stays wide
        ((512, 512), 8, 1.0),
        ((120, 120), 40, 1.0),  # it fits already
    ],
)
def test_wide_structures_are_seen_coarser(shape, radius, ratio):
    assert planned(disc(shape, radius)).preparation.coarsen == pytest.approx(ratio, rel=0.07)


def test_a_patch_then_shows_the_whole_plane():
    settings = planned(disc((200, 256)))
    assert settings.training.patch_size == (112, 128)
    assert settings.network.strides == ((2, 2),) * 4


def test_thin_structures_are_seen_as_they_are():
    """Vessels and membranes, however much of the picture they fill."""
    lesson = disc()
    lesson.labels[...] = 0
    lesson.labels[::12] = lesson.labels[1::12] = lesson.labels[2::12] = 1
    assert planned(lesson).preparation.coarsen == 1


def test_the_narrowest_class_decides():
    lesson = disc(radius=60.0)
    lesson.labels[10:18, 10:18] = 2
    settings = plan([lesson.scan], 2, labels=[lesson.labels])
    assert settings.preparation.coarsen == 1


def test_it_can_be_wished_otherwise_and_is_said_in_words():
    lesson = disc()
    assert planned(lesson, overrides={"preparation.coarsen": 1}).training.patch_size == (128, 128)
    words = " ".join(in_words(planned(lesson), fingerprint([lesson.scan], [lesson.labels])))
    assert "2 times coarser" in words
    assert "preparation.coarsen" in words


@pytest.mark.parametrize("spacing", [None, pytest.param((0.5, 0.7), marks=pytest.mark.slow)])
def test_masks_are_on_the_acquired_grid_and_in_the_right_place(spacing):
    settings = planned(disc(spacing=spacing)).with_values(
        {
            **{"training.steps": 90, "training.budget_seconds": None, "training.first_proposals": False},
            **{"network.base_channels": 4, "training.patch_size": (128, 128), "network.strides": ((2, 2),) * 2},
        }
    )
    assert settings.preparation.coarsen == 2
    lessons = [disc(seed=s, centre=c, spacing=spacing) for s, c in enumerate([(90, 150), (160, 80), (60.5, 61)])]
    model = run(fine_tune(lessons, settings, SCHEMA, CPU))[1].checkpoint
    unseen = disc(seed=9, centre=(141, 97), spacing=spacing)
    found = predict_scan(model, unseen.scan, CPU, average=False)
    assert found.shape == unseen.labels.shape
    assert pooled_dice([found], [unseen.labels], 1) > 0.9
    places = [np.argwhere(mask > 0).mean(0) for mask in (found, unseen.labels)]
    assert np.abs(places[0] - places[1]).max() < 0.5


def test_where_nothing_stands_upright_a_turned_scan_gives_the_turned_mask():
    """Averaging over the eight poses of a square; without it a random network does not know of turns."""
    lesson = disc((64, 64), 9)
    settings = planned(lesson).with_values({"network.base_channels": 4})
    network = build(settings.network, seed=1)

    def classes(picture, chosen):
        scan = Scan(np.ascontiguousarray(picture), "yx", Geometry(None))
        image = prepare(scan, chosen.preparation)
        results = predict(network, image, chosen, CPU, plan_slabs(image.shape[1:], chosen), zoom_of(scan, chosen))
        return next(results).confidence[0].astype(int)

    for wished, most in ((settings, 1), (settings.with_values({"inference.turns": False}), 255)):
        turned = np.rot90(classes(lesson.scan.data, wished))
        differ = np.abs(classes(np.rot90(lesson.scan.data), wished) - turned).max()
        assert differ <= most
        assert (differ > 1) == (most > 1)
