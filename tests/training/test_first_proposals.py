"""What proposes while a network has seen too little: filters and a classifier of single pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_unet.domain.errors import ModelError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.effort import correction_effort
from napari_unet.inference.predict import PixelShare, predict
from napari_unet.inference.slabs import plan_slabs
from napari_unet.networks.factory import build, load_weights
from napari_unet.networks.pixel_head import pixel_head_of
from napari_unet.patches.prepare import prepare
from napari_unet.patches.spacing import zoom_of
from napari_unet.session.predicting import predict_scan
from napari_unet.storage.checkpoint_file import from_bytes, to_bytes
from napari_unet.training.examples import prepare_lesson
from napari_unet.training.fine_tune import fine_tune
from napari_unet.training.first_proposals import (
    SHARES,
    choose_share,
    collect_pixels,
    draw_pixels,
    fit_pixels,
    try_on_new,
)
from napari_unet.training.lesson import Lesson
from napari_unet.training.plan import plan
from tests.training.lessons import CPU, SCHEMA, run


def texture(seed, size=72, reviewed=None):
    """A picture whose discs are grainy and as bright as the rest, which is smooth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    truth = np.zeros((size, size), np.uint8)
    for row, column in rng.integers(12, size - 12, (3, 2)):
        truth[(rows - row) ** 2 + (columns - column) ** 2 < 100] = 1
    picture = 100 + rng.normal(0, 2, truth.shape) + truth * rng.normal(0, 25, truth.shape)
    return Lesson(Scan(picture.astype(np.float32), "yx", Geometry((1.0, 1.0))), truth, reviewed)


def settings_for(lessons, **values):
    planned = plan([item.scan for item in lessons], 1, labels=[item.labels for item in lessons])
    return planned.with_values(
        {"training.steps": 2, "training.budget_seconds": None, "network.base_channels": 4, **values}
    )


def taught(lessons, settings=None, base=None):
    return run(fine_tune(lessons, settings or settings_for(lessons), SCHEMA, CPU, base=base))[1].checkpoint


def effort(checkpoint, lesson):
    found = predict_scan(checkpoint, lesson.scan, CPU, average=False)
    return correction_effort([found], [lesson.labels]) / np.count_nonzero(lesson.labels)


def test_after_one_picture_and_no_time_to_train_the_next_needs_little_painting():
    """The network has made two steps; what proposes is the classifier."""
    checkpoint = taught([texture(0)])
    assert checkpoint.card.pixel_share > 0
    assert effort(checkpoint, texture(1)) < 0.4


def test_the_next_scan_decides_who_has_the_say():
    """A network that knows nothing yields to the classifier; a classifier that knows nothing is dropped."""
    first, second = texture(0), texture(1)
    checkpoint = taught([first])
    again = taught([first, second], base=checkpoint)
    assert again.card.pixel_share >= 0.5
    assert len(again.card.pixel_errors) == len(SHARES)
    assert effort(again, texture(2)) < 0.3
    clueless = {**checkpoint.pixels, "layers.4.weight": np.zeros_like(checkpoint.pixels["layers.4.weight"])}
    clueless["layers.4.bias"] = np.array([-9.0, 9.0], np.float32)
    settings = settings_for([first], **{"training.steps": 60, "training.first_proposals": False})
    able = taught([first, texture(3)], settings)
    dropped = taught(
        [first, texture(3), second],
        settings.with_values({"training.first_proposals": True, "training.steps": 2}),
        base=type(able)(able.weights, able.card.model_copy(update={"pixel_share": 0.5}), clueless),
    )
    assert not dropped.pixels
    assert dropped.card.pixel_share == 0


def test_only_reviewed_pixels_are_learnt_from():
    """Here the truth of all others is wrong."""
    known = np.zeros((72, 72), bool)
    known[:, :36] = True
    half = texture(0, reviewed=known)
    half.labels[:, 36:] = 1 - half.labels[:, 36:]
    settings = settings_for([half])
    pixels = draw_pixels(prepare_lesson(half, settings, SCHEMA), settings)
    assert len(pixels) > 1000
    assert known.ravel()[pixels.places].all()
    assert np.array_equal(half.labels.ravel()[pixels.places], pixels.classes.numpy())
    # What was drawn stands for all there is.
    assert float(pixels.weights.sum()) == pytest.approx(known.sum(), rel=0.1)
    assert effort(taught([half]), texture(1)) < 0.5


def test_a_model_with_a_classifier_survives_its_file():
    checkpoint = taught([texture(0)])
    back = from_bytes(to_bytes(checkpoint))
    assert back.id == checkpoint.id
    assert back.pixels.keys() == checkpoint.pixels.keys()
    scan = texture(1).scan
    assert np.array_equal(predict_scan(back, scan, CPU, False), predict_scan(checkpoint, scan, CPU, False))
    # The network's own weights are apart from the classifier's.
    load_weights(build(back.card.settings.network), back.weights)


def test_a_damaged_classifier_is_named():
    with pytest.raises(ModelError, match="damaged"):
        pixel_head_of({"mean": np.zeros(3, np.float32)})


def test_who_has_all_the_say_is_asked_alone():
    """A network whose share is nothing is not even computed: here it would give NaN."""
    lesson = texture(0)
    settings = settings_for([lesson])
    found = collect_pixels([prepare_lesson(lesson, settings, SCHEMA)], settings, started=0.0)
    assert found is not None
    network = build(settings.network, seed=0)
    with torch.no_grad():
        network.head.weight.fill_(torch.nan)
    image = prepare(lesson.scan, settings.preparation)
    slabs = plan_slabs(image.shape[1:], settings)
    zoom = zoom_of(lesson.scan, settings)
    (result,) = predict(network, image, settings, CPU, slabs, zoom, PixelShare(fit_pixels(found, settings), 1.0))
    assert correction_effort([result.classes[0]], [lesson.labels]) / lesson.labels.sum() < 0.3


def test_the_share_that_left_least_is_chosen_and_the_newest_scan_counts_half():
    assert choose_share((), (0.9, 0.5, 0.4, 0.6, 0.7)) == (0.5, (0.9, 0.5, 0.4, 0.6, 0.7))
    share, errors = choose_share((0.2, 0.4, 0.6, 0.8, 1.0), (0.6, 0.5, 0.4, 0.3, 0.2))
    assert share == 0.0
    assert errors == pytest.approx((0.4, 0.45, 0.5, 0.55, 0.6))


def test_nothing_new_tells_nothing():
    lesson = texture(0)
    settings = settings_for([lesson])
    pixels = collect_pixels([prepare_lesson(lesson, settings, SCHEMA)], settings, started=0.0)
    assert pixels is not None
    assert try_on_new(build(settings.network), fit_pixels(pixels, settings), [], settings, CPU) == ()


def test_what_was_painted_because_it_was_wrong_says_nothing_of_the_rest():
    lesson = texture(0)
    settings = settings_for([lesson])
    pixels = collect_pixels([prepare_lesson(lesson, settings, SCHEMA)], settings, started=0.0)
    some = np.zeros(lesson.labels.shape, bool)
    some[:5] = True
    head = fit_pixels(pixels, settings)
    new = prepare_lesson(texture(1, reviewed=some), settings, SCHEMA)
    assert try_on_new(build(settings.network), head, [new], settings, CPU) == ()
    whole = prepare_lesson(texture(1), settings, SCHEMA)
    assert len(try_on_new(build(settings.network), head, [whole], settings, CPU)) > 1


@pytest.mark.parametrize("preset", ["classic", "thorough"])
def test_recipes_for_other_ends_go_without(preset):
    lesson = texture(0)
    planned = plan([lesson.scan], 1, preset, labels=[lesson.labels])
    assert not planned.training.first_proposals
