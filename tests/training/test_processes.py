"""Several processes that train together do what one does with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_unet.domain.errors import TrainingError
from napari_unet.domain.settings import AugmentationSettings
from napari_unet.patches.augment import change_intensities
from napari_unet.patches.sampling import PatchSampler
from napari_unet.storage.checkpoint_file import read_checkpoint
from napari_unet.training.examples import prepare_lesson
from napari_unet.training.processes import ALONE, Processes
from tests.training.lessons import SCHEMA, lesson, small_settings

EVERYTHING = AugmentationSettings(
    probability=0.7, rotation_degrees=180, elastic=0.5, shift=0.2, blur=1.0, low_resolution=0.5, noise=0.2
)


class TestShares:
    @settings(max_examples=15)
    @given(world=st.sampled_from((1, 2, 3, 6)), dimensions=st.sampled_from((2, 3)), seed=st.integers(0, 99))
    def test_together_they_draw_the_batch_of_one(self, world, dimensions, seed):
        wanted = small_settings(dimensions, batch_size=6, rare_class_fraction=0.3, seed=seed)
        examples = [prepare_lesson(lesson((5, 24, 24), seed=n), wanted, SCHEMA) for n in range(2)]

        def sampler(processes):
            seats = processes.seats(6)
            return PatchSampler(examples, wanted.training.patch_size, wanted.training, EVERYTHING, seed, seats)

        alone, shared = sampler(ALONE), [sampler(Processes(rank, world)) for rank in range(world)]
        for _ in range(3):
            whole, parts = alone.draw(), [one.draw() for one in shared]
            for name in ("image", "labels", "reviewed"):
                together = torch.cat([getattr(part, name) for part in parts])
                torch.testing.assert_close(together, getattr(whole, name), rtol=0, atol=1e-5)

    def test_intensities_of_a_part_are_those_of_the_whole(self):
        image = torch.randn(8, 2, 12, 12, generator=torch.Generator().manual_seed(0))
        whole = change_intensities(image, EVERYTHING, torch.Generator().manual_seed(3))
        part = change_intensities(image[2:5], EVERYTHING, torch.Generator().manual_seed(3), (8, range(2, 5)))
        torch.testing.assert_close(part, whole[2:5])

    def test_what_cannot_be_shared_out_is_refused(self):
        with pytest.raises(TrainingError, match="multiple of 3"):
            Processes(0, 3).seats(4)


@pytest.fixture
def folders(tmp_path):
    """Five scans and their masks, so that one judges."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(5):
        one = lesson((5, 24, 24), seed=number)
        for name, array in (("images", one.scan.data), ("masks", one.labels)):
            nib.save(nib.Nifti1Image(array.T, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / name / f"{number}.nii.gz")
    return tmp_path


def fine_tuned(folders, out, *launcher, settings=()):
    words = ["fine-tune", "--images", "images", "--masks", "masks", "--out", out, "--model", "scratch", "--steps", "8"]
    values = ("network.base_channels=4", "training.batch_size=4", "training.warmup_steps=2", *settings)
    words += [word for value in values for word in ("--set", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "napari_unet", *words, "--device", "cpu", "--json", f"{out}.json"],
        cwd=folders,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_processes_come_to_the_model_of_one(folders):
    alone = fine_tuned(folders, "alone.safetensors")
    assert alone.returncode == 0, alone.stderr
    together = fine_tuned(folders, "together.safetensors", *TORCHRUN)
    assert together.returncode == 0, together.stderr
    assert together.stderr.count("wrote together.safetensors") == 1, "one writes, and says so"
    one, two = (read_checkpoint(folders / f"{name}.safetensors") for name in ("alone", "together"))
    assert two.card.steps == 8
    for name, weights in one.weights.items():
        np.testing.assert_allclose(weights, two.weights[name], atol=2e-4, err_msg=name)
    for case, score in one.card.scores.items():
        assert two.card.scores[case] == pytest.approx(score, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.batch_size=3", "multiple of 2"),
        ("network.norm=batch", "needs GPUs"),
        ("training.accumulate=2", "accumulate"),
    ],
)
def test_what_several_processes_cannot_do_is_said(folders, setting, says):
    refused = fine_tuned(folders, "model.safetensors", *TORCHRUN, settings=(setting,))
    assert refused.returncode != 0
    assert says in refused.stderr
    assert not (folders / "model.safetensors").exists()
