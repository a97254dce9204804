"""Checkpoints as files: sound, or refused without running anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.errors import ExportError, ModelError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings, NetworkSettings
from napari_unet.networks.factory import build, load_weights, weights_of
from napari_unet.storage.checkpoint_file import from_bytes, read_checkpoint, to_bytes, write_checkpoint


def checkpoint_of(norm="batch", seed=0, **card):
    network = NetworkSettings(base_channels=4, strides=((2, 2),), norm=norm)
    card = {
        "name": "v3",
        "settings": ModelSettings(network=network).with_values({"training.patch_size": [16, 16]}),
        "label_schema": LabelSchema.of("Leber", "腫瘍"),
        "parent": "0" * 32,
        "seen": ("a" * 32, "b" * 32),
        "scores": {"a" * 32: 0.5, "b" * 32: None},
        "steps": 12,
        **card,
    }
    return Checkpoint(weights_of(build(network, seed=seed)), ModelCard(**card))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, norm):
    checkpoint = checkpoint_of(norm)
    path = tmp_path / "new folder" / "モデル with blanks.safetensors"
    write_checkpoint(checkpoint, path)
    back = read_checkpoint(path)
    assert back.card == checkpoint.card
    assert back.id == checkpoint.id
    assert back.weights.keys() == checkpoint.weights.keys()
    for name, array in checkpoint.weights.items():
        assert (back.weights[name].shape, back.weights[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(back.weights[name], array)
    load_weights(build(back.card.settings.network, seed=1), back.weights)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_one_that_colleagues_may_read(tmp_path):
    mask = os.umask(0o022)
    try:
        write_checkpoint(checkpoint_of(), tmp_path / "v1.safetensors")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "v1.safetensors").stat().st_mode) == 0o644


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "old pickle", "torch zip", "torch legacy"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, kind, suffix):
    trap = tmp_path / "it ran"
    buffer = io.BytesIO()
    if kind.startswith("torch"):
        torch.save({"weights": Bomb(trap)}, buffer, _use_new_zipfile_serialization=kind == "torch zip")
    else:
        pickle.dump(Bomb(trap), buffer, protocol=0 if kind == "old pickle" else 4)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=f"model{suffix}"):
        read_checkpoint(path)
    assert not trap.exists()


def test_any_flipped_bit_is_noticed():
    data = to_bytes(checkpoint_of())
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    places = {*range(16), *random.integers(0, header, 300), *random.integers(header, len(data), 300), len(data) - 1}
    for place in places:
        for bit in (0, 5, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(ModelError):
                from_bytes(bytes(damaged))


def test_a_file_cut_short_anywhere_is_noticed():
    data = to_bytes(checkpoint_of())
    for size in {0, 1, 7, 8, 9, *range(0, len(data), 499), len(data) - 1}:
        with pytest.raises(ModelError):
            from_bytes(data[:size])
    with pytest.raises(ModelError):
        from_bytes(data + b"\0")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"napari_unet_card": ""},
        {"napari_unet_card": "[]"},
        {"napari_unet_card": "null"},
        {"napari_unet_card": "{}"},
        {"napari_unet_card": '{"format_version": "one"}'},
        {"napari_unet_card": "[" * 100_000},
    ],
    ids=lambda m: str(m)[:40],
)
def test_weights_of_other_programs_are_refused(metadata):
    data = save({"weight": np.zeros(3, np.float32)}, metadata=metadata)
    with pytest.raises(ModelError):
        from_bytes(data)


def test_a_card_that_belongs_to_other_weights_is_refused():
    """Such as one whose list of seen scans was shortened to win a benchmark."""
    one, two = to_bytes(checkpoint_of()), checkpoint_of(seed=1)
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    data = save(dict(two.weights), metadata=header["__metadata__"])
    with pytest.raises(ModelError, match="not those"):
        from_bytes(data)


def test_a_newer_format_asks_for_a_newer_program():
    with pytest.raises(ModelError, match="newer napari-unet"):
        from_bytes(to_bytes(checkpoint_of(format_version=2)))


def test_what_is_not_there_or_is_a_folder_is_one_sentence(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(ModelError, match=path.name):
            read_checkpoint(path)


class TestWritingFails:
    def test_a_full_disk_leaves_the_old_model(self, tmp_path, full_disk):
        path = tmp_path / "v1.safetensors"
        old = checkpoint_of()
        write_checkpoint(old, path)
        with full_disk(), pytest.raises(ExportError, match=r"v1\.safetensors"):
            write_checkpoint(checkpoint_of(seed=1), path)
        assert read_checkpoint(path).id == old.id
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_cannot_be_made_is_one_sentence(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ExportError, match=r"v1\.safetensors"):
            write_checkpoint(checkpoint_of(), tmp_path / "file" / "v1.safetensors")

    def test_a_target_that_is_a_folder_is_one_sentence(self, tmp_path):
        target = tmp_path / "v1.safetensors"
        (target / "inside").mkdir(parents=True)
        with pytest.raises(ExportError):
            write_checkpoint(checkpoint_of(), target)
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
    def test_a_read_only_folder_is_one_sentence(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(ExportError, match="denied"):
            write_checkpoint(checkpoint_of(), tmp_path / "v1.safetensors")
        tmp_path.chmod(0o700)
