"""What the person sets by hand: on top of the plan, never against the model, and in the next checkpoint's card."""

from __future__ import annotations

import time

import numpy as np
import pytest

from napari_unet.compute.engine import Engine
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import SessionError, SettingsError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings
from napari_unet.networks.factory import build, weights_of
from napari_unet.session.setting_fields import setting_fields, value_of
from napari_unet.training.presets import PRESETS
from tests.training.lessons import SCHEMA, lesson

BATCH = "training.batch_size"


class EngineWithAGpu(Engine):
    """Starts nothing, and says that there is a GPU: most computers that run the tests have none."""

    def start(self):
        pass

    def submit(self, function, /, *args, on_result, **more):
        on_result(ResolvedCompute("cuda", "bfloat16", 1))


def open_scan(session, shape=(8, 32, 32), seed=5, accepted=()):
    one = lesson(shape, seed=seed)
    state = session.add_scan(one.scan, one.labels)
    if accepted:
        session.accept_slices(state, accepted)
    return state


def use(session, checkpoint):
    session.set_schema(checkpoint.card.label_schema)
    session.models.use(checkpoint)


class TestThePlan:
    def test_there_is_none_without_a_scan(self, session):
        with pytest.raises(SessionError, match="No scan is open"):
            session.planning.settings()
        with pytest.raises(SessionError, match="No scan is open"):
            session.planning.set_value(BATCH, 3)

    def test_it_is_said_in_words_and_so_is_what_was_set_by_hand(self, session):
        open_scan(session)
        before = session.planning.in_words()
        assert any("8 x 32 x 32" in line for line in before)
        session.planning.set_value("training.patch_size", [16, 16])
        after = session.planning.in_words()
        assert any("16 x 16 pixels" in line for line in after)
        assert "training.patch_size = (16, 16)" in after[-1]

    def test_it_follows_scans_and_classes(self, session):
        open_scan(session)
        assert session.planning.settings().network.out_channels == 3
        assert len(session.scans) == 1
        flat = lesson((64, 96), seed=1)
        session.remove_scan(session.scans[0])
        session.add_scan(flat.scan)
        assert any("64 x 96" in line for line in session.planning.in_words())

    def test_proposals_are_nothing_to_plan_by(self, session):
        state = open_scan(session)
        proposed = session.planning.settings()
        state.annotation.labels[...] = 0
        session.planning._forget()
        assert session.planning.settings() == proposed

    def test_looking_aside_gives_the_same_plan_and_never_an_outdated_one(self, session):
        first = open_scan(session, accepted=[0, 1])
        while not session.planning.prepare():
            time.sleep(0.005)
        aside = session.planning.settings()
        session.planning._forget()
        assert session.planning.settings() == aside
        session.planning._forget()
        session.planning.prepare()
        session.remove_scan(first)  # while the other thread looks at it
        flat = lesson((64, 96), seed=1)
        session.add_scan(flat.scan)
        while not session.planning.prepare():
            time.sleep(0.005)
        assert session.planning.settings().network.dimensions == 2
        assert any("64 x 96" in line for line in session.planning.in_words())

    def test_it_is_for_the_device_and_is_told_anew_once_that_is_known(self, open_session):
        session = open_session(engine=EngineWithAGpu())
        open_scan(session, (24, 64, 64))
        session.planning.set_preset("thorough")
        before = session.planning.settings()
        heard = []
        session.planning.changed.connect(lambda: heard.append(session.planning.settings()))
        session.start()
        assert (before.network.dimensions, heard[0].network.dimensions) == (2, 3)
        assert heard[0].network.base_channels > before.network.base_channels

    def test_what_is_free_in_this_computer_limits_a_cpu_but_not_a_gpu(self, open_session):
        session = open_session(engine=EngineWithAGpu())
        open_scan(session, (4, 64, 64))
        session.planning.set_preset("thorough")
        session.planning.settings()
        session.planning._free_memory = 1
        assert session.planning.settings().training.activation_checkpointing
        session.start()
        assert not session.planning.settings().training.activation_checkpointing


class TestByHand:
    def test_only_what_differs_is_kept_and_can_be_taken_back_one_by_one_or_all(self, session):
        open_scan(session)
        planned = session.planning.settings()
        heard = []
        session.planning.changed.connect(lambda: heard.append(1))
        session.planning.set_value(BATCH, "3")
        session.planning.set_value("augmentation.noise", 0.3)
        session.planning.set_value("training.optimiser", planned.training.optimiser)
        assert session.planning.overrides == {BATCH: 3, "augmentation.noise": 0.3}
        assert session.planning.settings() == planned.with_values(session.planning.overrides)
        session.planning.clear(BATCH)
        assert session.planning.overrides == {"augmentation.noise": 0.3}
        session.planning.set_value("augmentation.noise", planned.augmentation.noise)
        assert session.planning.overrides == {}
        session.planning.set_value(BATCH, 3)
        session.planning.clear()
        assert session.planning.settings() == planned
        assert len(heard) == 7

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("training.batchsize", 3, "training.batchsize"),
            (BATCH, 0, "cannot be 0"),
            (BATCH, "many", "many"),
            ("training.patch_size", [16], "training.patch_size wants 2"),
            ("network.out_channels", 9, "follows from the classes"),
            ("training.budget_seconds", 9, "beside the Fine-tune button"),
        ],
    )
    def test_what_cannot_be_is_refused_in_a_sentence_and_changes_nothing(self, session, key, value, message):
        open_scan(session)
        session.planning.set_value("augmentation.noise", 0.3)
        before = session.planning.settings()
        with pytest.raises(SettingsError, match=message):
            session.planning.set_value(key, value)
        assert session.planning.settings() == before
        assert session.planning.overrides == {"augmentation.noise": 0.3}

    def test_what_depends_on_a_wish_is_planned_to_fit(self, session):
        open_scan(session)
        session.planning.set_value("network.dimensions", 3)
        settings = session.planning.settings()
        assert {len(stride) for stride in settings.network.strides} == {3}
        assert len(settings.training.patch_size) == 3
        session.planning.set_value("network.dimensions", 2)
        session.planning.set_value("preparation.context_slices", 2)
        assert session.planning.settings().network.in_channels == 5

    def test_a_wish_that_no_longer_fits_is_said_and_can_be_taken_back(self, session):
        open_scan(session)
        session.planning.set_value("network.dimensions", 3)
        session.planning.set_value("training.patch_size", [8, 16, 16])
        session.planning.clear("network.dimensions")
        with pytest.raises(SettingsError, match=r"training\.patch_size.*go back to the plan"):
            session.planning.settings()
        session.planning.clear()
        assert session.planning.settings().network.dimensions == 2

    def test_a_preset_brings_the_time_that_it_is_made_for(self, session):
        open_scan(session)
        assert session.planning.budget_seconds == 60
        session.planning.set_preset("thorough")
        assert session.planning.settings().preset == "thorough"
        assert session.planning.settings().training.budget_seconds == session.planning.budget_seconds > 60
        session.planning.set_budget(5)
        assert session.planning.settings().training.budget_seconds == 5
        with pytest.raises(SettingsError, match=PRESETS[1]):
            session.planning.set_preset("best")
        assert session.planning.preset == "thorough"


class TestWithAModel:
    def test_its_settings_are_the_plan_and_what_it_was_made_with_stays(self, session, trained):
        use(session, trained)
        open_scan(session)
        made = trained.card.settings
        settings = session.planning.settings()
        assert (settings.network, settings.preparation) == (made.network, made.preparation)
        assert (settings.training.steps, settings.training.seed) == (None, trained.card.steps)
        with pytest.raises(SettingsError, match="was set when the model was made"):
            session.planning.set_value("network.base_channels", 8)
        session.planning.set_value("training.learning_rate", 1e-3)
        assert session.planning.settings().training.learning_rate == 1e-3

    def test_wishes_for_a_new_network_wait_until_there_is_no_model(self, session, trained):
        open_scan(session)
        session.planning.set_value("network.base_channels", 8)
        use(session, trained)
        assert session.planning.settings().network == trained.card.settings.network
        session.models.use(None)
        assert session.planning.settings().network.base_channels == 8


class TestWithABody:
    """Weights that a new model begins with."""

    @pytest.fixture
    def body(self):
        settings = ModelSettings().with_values(
            {"network.base_channels": 6, "network.strides": ((2, 2), (2, 2)), "network.in_channels": 3}
            | {"preparation.context_slices": 1}
        )
        card = ModelCard(
            name="starter", settings=settings, label_schema=LabelSchema.of("anything"), seen=("elsewhere",)
        )
        return Checkpoint(weights_of(build(settings.network, seed=9)), card)

    def test_the_plan_is_for_it_and_says_so(self, session, body):
        open_scan(session, (64, 64))
        without = session.planning.settings()
        session.models.begin_anew(body)
        network = session.planning.settings().network
        assert (network.base_channels, network.strides) == (6, ((2, 2), (2, 2)))
        assert len(without.network.strides) > 2
        assert session.planning.body() is body
        assert "The network begins with the weights called starter." in session.planning.in_words()
        session.models.begin_anew(None)
        assert session.planning.settings() == without

    @pytest.mark.parametrize("own", ["preset", "wish", "model", "neighbours"])
    def test_who_asks_for_another_network_begins_at_random(self, session, body, trained, own):
        open_scan(session, (6, 32, 32) if own == "neighbours" else (64, 64))
        session.models.begin_anew(body)
        if own == "preset":
            session.planning.set_preset("classic")
        elif own == "wish":
            session.planning.set_value("network.base_channels", 12)
            assert session.planning.settings().network.base_channels == 12
        elif own == "model":
            use(session, trained)
        assert session.planning.body() is None
        said = [line for line in session.planning.in_words() if "begins with" in line]
        assert [line.startswith("The network begins with random weights") for line in said] == [True] * (own != "model")

    def test_the_first_fine_tune_goes_on_from_its_weights(self, computing, body):
        open_scan(computing, (32, 32), accepted=[0])
        computing.models.begin_anew(body)
        computing.planning.set_value("training.learning_rate", 1e-7)
        computing.learning.begin(steps=1)
        computing.wait(120)
        assert computing.heard.notices == []
        verdict = computing.learning.verdict
        assert all(case.before is None for case in verdict.cases)
        made = verdict.checkpoint
        assert (made.card.parent, made.card.steps) == (body.id, 1)
        assert "elsewhere" in made.card.seen
        assert made.card.label_schema == SCHEMA
        name = "decoder.0.0.weight" if "decoder.0.0.weight" in body.weights else sorted(body.weights)[0]
        np.testing.assert_allclose(made.weights[name], body.weights[name], atol=1e-5)


def test_the_next_checkpoint_is_made_as_wished(computing):
    open_scan(computing, (6, 32, 32), accepted=range(4))
    computing.planning.set_value("network.base_channels", 4)
    computing.planning.set_value("augmentation.noise", 0.3)
    computing.planning.set_value("training.seed", 7)
    wished = computing.planning.settings()
    computing.learning.begin(steps=2)
    computing.wait(120)
    assert computing.heard.notices == []
    settings = computing.learning.verdict.checkpoint.card.settings
    assert settings == wished.with_values({"training.steps": 2, "training.budget_seconds": None})
    assert (settings.network.base_channels, settings.augmentation.noise, settings.training.seed) == (4, 0.3, 7)


def test_a_mean_teacher_looks_at_the_open_scans_that_nobody_has_labelled(computing):
    known = open_scan(computing, (6, 32, 32), seed=1, accepted=range(3))
    other = open_scan(computing, (6, 32, 32), seed=2)
    seen = []
    for weight in (0.0, 1.0):
        computing.planning.set_value("training.consistency_weight", weight)
        computing.learning.begin(steps=2)
        computing.wait(120)
        card = computing.learning.verdict.checkpoint.card
        seen.append((card.seen, card.looked_at))
    assert computing.heard.notices == []
    taught = (known.scan.fingerprint,)
    assert seen == [(taught, ()), (taught, (other.scan.fingerprint,))]


class TestFields:
    def test_there_is_one_for_each_setting_and_it_reads_back_what_it_writes(self):
        fields = {field.key: field for field in setting_fields()}
        assert set(fields) == set(ModelSettings.keys()) - {"preset"}
        settings = ModelSettings()
        for key, field in fields.items():
            value = value_of(settings, key)
            text = field.to_text(value)
            if field.kind in ("whole", "number", "figures", "text"):
                assert settings.with_values({key: field.from_text(text)}) == settings, key
            assert field.optional or value is not None

    @pytest.mark.parametrize(
        ("key", "text", "message"),
        [
            ("training.learning_rate", "fast", "a number"),
            ("training.patch_size", "32, 32", "square brackets"),
            ("training.patch_size", "32", "square brackets"),
            ("training.steps", "1.5", "a whole number"),
        ],
    )
    def test_what_cannot_be_read_is_answered_with_an_example(self, key, text, message):
        field = next(field for field in setting_fields() if field.key == key)
        with pytest.raises(SettingsError, match=message):
            field.from_text(text)

    def test_limits_and_the_meaning_of_nothing_are_in_words(self):
        fields = {field.key: field for field in setting_fields()}
        assert fields["training.ema_decay"].limits == "from 0 below 1"
        assert fields["training.learning_rate"].limits == "above 0 to 1"
        assert fields["preparation.spacing"].none_means == "as acquired"
        assert np.all([field.least is not None for field in fields.values() if field.kind == "whole"])
