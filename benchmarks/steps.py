"""Equal tasks for training.py and memory.py: the networks, the computed scans, and this product's optimiser steps.

Peers do not appear here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import AugmentationSettings, ModelSettings, NetworkSettings, TrainingSettings

N_CLASSES = 2
N_SCANS = 4


@dataclass(frozen=True)
class Case:
    """A network and the batch of one optimiser step.

    Parameters
    ----------
    patch : tuple of int
        ``(height, width)`` or ``(slices, height, width)``; its length is the network's dimension.
    batch : int
        Patches per step.
    features : tuple of int
        Per level; down-sampling halves every axis between two levels.
    scan : (S, H, W)
        Size of the computed scans.
    """

    patch: tuple[int, ...]
    batch: int
    features: tuple[int, ...]
    scan: tuple[int, int, int]

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """From each level to the next."""
        return ((2,) * len(self.patch),) * (len(self.features) - 1)


#: Depth and width as nnU-Net plans them for such patches: to a feature edge of 4 to 7, at most 512 or 320 features.
CASES = {
    "2d": Case((192, 192), 12, (32, 64, 128, 256, 512, 512), (16, 256, 256)),
    "3d": Case((64, 64, 64), 2, (32, 64, 128, 256, 320), (96, 96, 96)),
}
QUICK_CASES = {
    "2d": Case((64, 64), 4, (16, 32, 64, 128), (8, 96, 96)),
    "3d": Case((24, 24, 24), 2, (16, 32, 64), (48, 48, 48)),
}


def computed_scans(
    shape: tuple[int, int, int], seed: int, n: int = N_SCANS
) -> list[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Return scans ``(S, H, W)``, of mean 0 and deviation 1, with labels 0 to 2: two ellipsoids in noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    found = []
    for _ in range(n):
        labels = np.zeros(shape, np.uint8)
        for value in range(1, N_CLASSES + 1):
            centre, radius = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.3, 0.5, 3)
            inside = (((grid - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0) < 1
            labels[inside] = value
        image = labels + rng.normal(0, 0.5, shape)
        found.append((((image - image.mean()) / image.std()).astype(np.float32), labels))
    return found


def settings_for(case: Case, training: dict[str, Any], deep_supervision: bool) -> ModelSettings:
    """Return the default recipe on the case's network, with the kinds of random change that nnU-Net makes.

    The decoder enlarges by transposed convolutions, as the peers' do; the plan's own default does not.
    """
    n = len(case.patch)
    return ModelSettings(
        network=NetworkSettings(
            dimensions=n,
            out_channels=N_CLASSES + 1,
            base_channels=case.features[0],
            max_channels=max(case.features),
            strides=case.strides,
            upsampling="transposed",
            deep_supervision=deep_supervision,
        ),
        augmentation=AugmentationSettings(
            rotation_degrees=180 if n == 2 else 30,
            scale=0.25,
            mirror=tuple(range(n)),
            gamma=0.3,
            noise=0.1,
            blur=1.0,
            low_resolution=0.5,
        ),
        training=TrainingSettings(patch_size=case.patch, batch_size=case.batch, budget_seconds=None, **training),
    )


def product_compute(device: str) -> ResolvedCompute:
    """Return device, precision and threads as this product chooses them, with torch set to them."""
    import torch

    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings

    compute = resolve(ComputeSettings(device=device))
    torch.set_num_threads(compute.threads)
    return compute


def product_sampler(case: Case, settings: ModelSettings, seed: int, device: str) -> Callable[[], Any]:
    """Return what draws this product's batches from the computed scans, which an accelerator holds as in training."""
    import torch

    from napari_unet.patches.sampling import Example, PatchSampler

    examples = [
        Example(torch.from_numpy(image[None]), torch.from_numpy(labels))
        for image, labels in computed_scans(case.scan, seed)
    ]
    for example in examples if device == "cuda" else ():
        example.move_to(device)
    return PatchSampler(examples, case.patch, settings.training, settings.augmentation, seed).draw


def seconds_each(
    steps: Iterator[Any] | Callable[[], Any],
    warmup: int,
    count: int,
    device: str,
    settle: Callable[[], None] = lambda: None,
) -> list[float]:
    """Return the wall seconds of each of ``count`` steps after ``warmup`` unmeasured ones and a pause to settle."""
    iterator = steps if isinstance(steps, Iterator) else (steps() for _ in itertools.count())
    for _ in range(warmup):
        next(iterator)
    settle()
    times: list[float] = []
    wait(device)
    before = time.perf_counter()
    for number in range(count):
        next(iterator)
        if number == count - 1:
            wait(device)
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times


def wait(device: str) -> None:
    """Wait until an accelerator has done what it was told."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def n_parameters(network: Any) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in network.parameters())
