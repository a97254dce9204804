"""Settings, label schemas, scans, checkpoints: values that say what is wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import SettingsError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.labels import LabelClass, LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings


class TestSettings:
    def test_words_of_the_command_line_become_values(self):
        changed = ModelSettings().with_values(
            {"training.batch_size": "5", "augmentation.mirror": [], "inference.tile": [32, 48]}
        )
        assert changed.training.batch_size == 5
        assert changed.augmentation.mirror == ()
        assert changed.inference.tile == (32, 48)

    def test_the_original_is_left_alone(self):
        original = ModelSettings()
        original.with_values({"training.seed": original.training.seed + 1})
        assert original == ModelSettings()

    def test_every_key_it_names_can_be_set_to_its_own_value(self):
        settings = ModelSettings()
        tree = settings.model_dump()
        for key in ModelSettings.keys():  # noqa: SIM118 - a class method, not a mapping
            value = tree
            for part in key.split("."):
                value = value[part]
            assert settings.with_values({key: value}) == settings

    @pytest.mark.parametrize(
        "key", ["training.batchsize", "nowhere.seed", "training", "", "preset.x", "training.seed.x"]
    )
    def test_an_unknown_key_is_named_with_the_keys_there_are(self, key):
        with pytest.raises(SettingsError, match=r"training\.batch_size") as caught:
            ModelSettings().with_values({key: 1})
        assert repr(key) in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("training.batch_size", 0),
            ("training.batch_size", "many"),
            ("training.batch_size", None),
            ("training.learning_rate", float("nan")),
            ("training.budget_seconds", float("inf")),
            ("training.gradient_clip", float("inf")),
            ("augmentation.elastic", -0.1),
            ("network.dimensions", 4),
            ("training.optimiser", "adamax"),
            ("training.patch_size", [16]),
            ("training.patch_size", [16, 0]),
            ("inference.tile", [16, 16, 16]),
            ("preparation.clip_percentiles", [99, 1]),
            ("preparation.clip_percentiles", [-1, 50]),
            ("preparation.window", [40, 40]),
            ("augmentation.mirror", [2]),
            ("augmentation.mirror", [0, 0]),
        ],
    )
    def test_a_value_out_of_range_is_one_sentence_that_names_the_setting(self, key, value):
        with pytest.raises(SettingsError) as caught:
            ModelSettings().with_values({key: value})
        message = str(caught.value)
        assert key in message
        assert "\n" not in message
        assert len(message) < 200

    def test_dimensions_and_strides_change_together(self):
        with pytest.raises(SettingsError, match=r"network\.strides"):
            ModelSettings().with_values({"network.dimensions": 3})
        changed = ModelSettings().with_values({"network.dimensions": 3, "network.strides": [[1, 2, 2]]})
        assert changed.network.strides == ((1, 2, 2),)

    def test_settings_survive_json(self):
        settings = ModelSettings().with_values({"training.patch_size": [16, 32], "preparation.clip_percentiles": None})
        assert ModelSettings.model_validate(json.loads(settings.model_dump_json())) == settings


class TestLabelSchema:
    def test_names_get_ids_and_colours_of_their_own(self):
        schema = LabelSchema.of("liver", "tumour")
        assert schema.ids == (1, 2)
        assert schema.n_outputs == 3
        assert len({c.colour for c in LabelSchema.numbered(7).classes}) == 7

    def test_there_are_always_classes_and_never_two_of_one_id(self):
        colour = (1.0, 0.0, 0.0)
        for classes in ((), tuple(LabelClass(id=2, name=n, colour=colour) for n in "ab")):
            with pytest.raises(ValidationError):
                LabelSchema(classes=classes)

    @pytest.mark.parametrize("number", [0, -1, 65536])
    def test_ids_fit_into_masks(self, number):
        with pytest.raises(ValidationError):
            LabelClass(id=number, name="a", colour=(0, 0, 0))

    def test_no_more_classes_than_a_network_class_can_count(self):
        assert LabelSchema.numbered(255).n_outputs == 256
        with pytest.raises(ValidationError):
            LabelSchema.numbered(256)


def checkpoint(**weights):
    card = ModelCard(name="v1", settings=ModelSettings(), label_schema=LabelSchema.of("a"))
    return Checkpoint({name: np.asarray(value) for name, value in weights.items()}, card)


class TestCheckpointId:
    def test_equal_weights_have_one_id_whatever_their_order_and_layout(self):
        a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1])
        assert checkpoint(a=a, b=b).id == checkpoint(b=b.copy(), a=np.asfortranarray(a)).id

    def test_any_difference_shows(self):
        a = np.arange(6, dtype=np.float32)
        ids = {
            checkpoint(a=a).id,
            checkpoint(b=a).id,
            checkpoint(a=a + 1).id,
            checkpoint(a=a.reshape(2, 3)).id,
            checkpoint(a=a.view(np.int32)).id,
            checkpoint(a=a[:0]).id,
            checkpoint(a=np.float32(0)).id,
            checkpoint(a=np.float32([0])).id,
        }
        assert len(ids) == 8


class TestScan:
    def test_the_fingerprint_is_of_voxels_shape_and_type_alone(self):
        data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        same = Scan(np.asfortranarray(data), "zyx", Geometry((1, 1, 1)), modality="MR", slice_axis=0)
        assert Scan(data, "zyx", Geometry(None), slice_axis=1).fingerprint == same.fingerprint
        for other in (data + 1, data.astype(np.uint16), data.reshape(3, 2, 4)):
            assert Scan(other, "zyx", Geometry(None)).fingerprint != same.fingerprint

    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_planes_stand_across_the_slice_axis_and_lead_back(self, slice_axis):
        data = np.arange(60).reshape(3, 4, 5)
        scan = Scan(data, "zyx", Geometry(None), slice_axis=slice_axis)
        planes = scan.to_planes(data)
        assert len(planes) == scan.n_slices == data.shape[slice_axis]
        np.testing.assert_array_equal(planes[1], np.take(data, 1, slice_axis))
        np.testing.assert_array_equal(scan.from_planes(planes), data)

    def test_a_picture_is_one_plane(self):
        data = np.arange(60).reshape(4, 5, 3)
        scan = Scan(data, "yxc", Geometry(None))
        assert scan.is_rgb
        assert (scan.spatial_shape, scan.n_slices, scan.n_channels) == ((4, 5), 1, 3)
        np.testing.assert_array_equal(scan.channels_first()[2], data[..., 2])
        np.testing.assert_array_equal(scan.from_planes(scan.to_planes(data[..., 0])), data[..., 0])

    def test_axes_describe_the_array(self):
        with pytest.raises(ValueError, match="zyx"):
            Scan(np.zeros((2, 2)), "zyx", Geometry(None))
