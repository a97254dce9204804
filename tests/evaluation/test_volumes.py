"""Volumes of classes against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.evaluation.metrics import score_case
from napari_unet.evaluation.quality import measure_mask
from napari_unet.evaluation.volumes import class_volumes


def test_volumes_and_pieces() -> None:
    labels = np.zeros((10, 20, 20), np.uint8)
    labels[2:5, 3:9, 4:14] = 1
    labels[5, 9, 14] = 1  # touches at a corner
    labels[8:, 18:, :2] = 1
    labels[0, 0, 0] = 3
    labels[9, 9, 9] = 7  # no class
    liver, none, dot = class_volumes(labels, LabelSchema.of("liver", "none", "dot"), 5.0 * 0.8 * 0.8)
    assert (liver.name, liver.voxels, liver.pieces) == ("liver", 3 * 6 * 10 + 1 + 8, 2)
    assert liver.ml == pytest.approx((labels == 1).sum() * 5 * 0.8 * 0.8 / 1000)
    assert (none.voxels, none.ml, none.pieces) == (0, 0.0, 0)
    assert (dot.voxels, dot.pieces) == (1, 1)
    assert dot.ml == pytest.approx(0.0032)


def test_without_a_spacing_or_a_third_axis_there_are_no_millilitres() -> None:
    schema = LabelSchema.of("one")
    assert class_volumes(np.ones((2, 2, 2), np.uint16), schema, None)[0].ml is None
    plane = class_volumes(np.eye(3, dtype=np.uint8), schema, 1.0)[0]
    assert (plane.ml, plane.voxels, plane.pieces) == (None, 3, 1)


def test_a_sheared_grid_holds_less_than_its_spacing_says() -> None:
    tilted = np.diag([1.0, 1.0, 2.0, 1.0])[:, [2, 1, 0, 3]]
    tilted[1, 0] = 1.0  # each slice a millimetre further: the spacing is then the root of 5
    grid = Geometry((5**0.5, 1.0, 1.0), tilted)
    assert grid.voxel_volume == pytest.approx(2.0)
    labels = np.ones((10, 10, 10), np.uint8)
    assert class_volumes(labels, LabelSchema.of("one"), grid.voxel_volume)[0].ml == pytest.approx(2.0)
    assert measure_mask(labels == 1, grid.spacing, grid.voxel_volume).volume == pytest.approx(2.0)
    scores = score_case(labels, labels, [1], grid.spacing, voxel_volume=grid.voxel_volume)
    assert scores.truth_ml[1] == pytest.approx(2.0)
    assert Geometry(None).voxel_volume is None
