"""Starter weights: trained in sittings, cut into small files with their credits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import starter_models
import train_starter
from starter_tasks import View, all_tasks, examples_of, read_set, settings_of

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.io.pairs import scale_down
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.session.models import STARTER, WEIGHTS, find_model, find_task_model, has_learnt
from napari_unet.storage.checkpoint_file import read_checkpoint, to_bytes, write_checkpoint
from tests.real_data import REAL_DATA, needs_real_data

CPU = ResolvedCompute("cpu", "float32", 1)
SETS = ("hippocampus_mr", "cardiac_cine_mr", "nuclei_fluorescence", "breast_ultrasound")
needs_weights = pytest.mark.skipif(not (WEIGHTS / "starter.safetensors").exists(), reason="no shipped weights")


def origin(tasks=None) -> starter_models.Origin:
    return starter_models.Origin.of(tasks or all_tasks(), {}, 7, 0, CPU)


@pytest.fixture(scope="module")
def body() -> train_starter.Body:
    shown = [train_starter.Shown(task, view) for task in all_tasks() for view in task.views]
    return train_starter.Body(shown, 0)


def test_a_training_in_sittings_is_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (View(32, 2), View(32, 2, levels=3))
    tasks = [task.__class__(task.name, task.classes, task.share, small) for task in all_tasks(SETS)[-2:]]
    monkeypatch.setattr(train_starter, "_DRAWN_PER_ROUND", 1)
    monkeypatch.setattr(train_starter, "_DRAWN_EDGE", 64)

    def trainer(seed: int = 0) -> train_starter.Trainer:
        return train_starter.Trainer(tasks, {}, 4, seed, CPU)

    whole = trainer()
    whole.round(2)
    whole.save(tmp_path / "half.state")
    whole.round(2)
    assert whole.is_over
    rest = trainer()
    rest.load(tmp_path / "half.state")
    assert (rest.step, rest.is_over) == (2, False)
    rest.round(2)
    one, two = whole.averaged().state_dict(), rest.averaged().state_dict()
    assert all(one[name].equal(two[name]) for name in one)
    with pytest.raises(SystemExit, match="another training"):
        trainer(seed=1).load(tmp_path / "half.state")


def test_tasks_share_one_body_and_own_a_head(body):
    deep, shallow = body.of(("blobs", 4)), body.of(("blobs", 3))
    assert deep.encoder[0] is shallow.encoder[0] is body.whole.encoder[0]
    assert deep.head is shallow.head
    assert deep.head is not body.of(("seams", 4)).head
    assert len(shallow.encoder) == 4
    load_weights(build(settings_of(all_tasks()[0], View(48, 2, levels=3)).network), weights_of(body.of((SETS[0], 3))))


def test_all_files_together_are_small_and_credit_their_sources(body):
    models = [starter_models.starter(body.whole, origin())]
    models += [
        starter_models.task_model(body.of((task.name, task.views[0].levels)), task, origin())
        for task in all_tasks()
        if task.real is not None
    ]
    assert sum(len(to_bytes(model)) for model in models) <= 20e6
    for model in models:
        for word in ("Decathlon", "CC BY-SA 4.0", "Sunnybrook", "BBBC038", "CC0", "BUSI", "CC BY 4.0", "research"):
            assert word in model.card.notes
        load_weights(build(model.card.settings.network), model.weights)
    assert [has_learnt(model) for model in models] == [False, True, True, True, True]


def test_a_model_of_pictures_takes_one_channel_and_says_the_same(body):
    import torch

    task = all_tasks()[1]
    network = body.of((task.name, task.views[0].levels)).eval()
    model = starter_models.task_model(network, task, origin())
    own = build(model.card.settings.network).eval()
    load_weights(own, model.weights)
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Half precision of the file.
        torch.testing.assert_close(own(image), network(image.expand(-1, 3, -1, -1)), rtol=0.02, atol=0.02)


def test_what_is_left_out_is_neither_learnt_nor_credited():
    tasks = all_tasks(("hippocampus_mr",))
    assert "hippocampus_mr" not in {task.name for task in tasks}
    notes = origin(tasks).credits
    assert "Decathlon" not in notes
    assert "CC BY-SA" not in notes
    with pytest.raises(ValueError, match="em_membrane"):
        all_tasks(("em_membrane",))


def test_a_starter_has_learnt_no_task(body, tmp_path):
    path = tmp_path / "starter-without-x.safetensors"
    write_checkpoint(starter_models.starter(body.whole, origin()), path)
    assert not has_learnt(find_model(str(path)))
    with pytest.raises(ModelError, match="no task yet"):
        find_task_model(str(path))


@needs_real_data
def test_real_sets_are_divided_by_patient_and_shown_thrice():
    task = all_tasks()[1]
    found = read_set(task, REAL_DATA, most=40)
    patients = [{item.stem.split("-IM-")[0] for item in items} for items in (found.teaching, found.judging)]
    assert len(found.teaching) + len(found.judging) == 40
    assert not patients[0] & patients[1]
    example = examples_of(task, task.views[1], found.teaching[:1])[0]
    assert example.image.shape == (3, 1, 256, 256)
    assert example.zoom == (1, 2, 2)


@needs_real_data
def test_what_taught_is_recognised_in_the_benchmarks_size_too():
    task = all_tasks()[3]
    found = read_set(task, REAL_DATA, most=2)
    seen = starter_models.Origin.of([task], {task.name: found}, 1, 0, CPU).seen
    for item in found.teaching:
        small, _ = scale_down(item.scan, item.labels, 256)
        assert {item.scan.fingerprint, small.fingerprint} <= set(seen)


@needs_weights
class TestShipped:
    def test_they_are_small_and_sound(self):
        files = sorted(WEIGHTS.glob("*.safetensors"))
        assert sum(path.stat().st_size for path in files) <= 20e6
        for path in files:
            model = read_checkpoint(path)
            assert model.card.name == path.stem
            assert model.card.seen
            assert "CC BY-SA 4.0" in model.card.notes
            assert all(np.isfinite(array).all() for array in model.weights.values())

    def test_starter_is_what_new_tasks_begin_with(self):
        found = find_model(None)
        assert isinstance(found, Checkpoint)
        assert found.id == find_model(STARTER).id
