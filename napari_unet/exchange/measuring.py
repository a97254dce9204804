"""What a compressed model costs and what it brings: Dice on scans that judge, bytes, milliseconds on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.scan import Scan

if TYPE_CHECKING:
    from napari_unet.exchange.graphs import Input

_ROUNDS = 7
# As much as the runner gives a CPU at once.
_PASS_VOXELS = 2**16


@dataclass(frozen=True, eq=False)
class Judge:
    """A scan with its true labels (values of the schema); None where only the models' masks can be compared."""

    scan: Scan
    labels: NDArray | None


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of one pass, of a model in a runtime."""

    runtime: str
    milliseconds: float


def speeds(
    models: Mapping[str, Checkpoint], inputs: Sequence[Input], compute: ResolvedCompute
) -> dict[str, tuple[Speed, ...]]:
    """Return how fast models run here, the fastest runtime of each first.

    All run in turns, so that what else the computer does slows all of them alike. Runtimes that cannot run a model are
    left out.

    Parameters
    ----------
    models : mapping of str to Checkpoint
    inputs : sequence of arrays
        The largest is shown, as often as fits into one pass.
    compute : ResolvedCompute
        Threads; all run on the CPU, in float32.
    """
    import torch

    torch.set_num_threads(compute.threads)
    largest = max(inputs, key=lambda given: given[0, 0].size)[:1]
    x = torch.from_numpy(np.repeat(largest, max(1, _PASS_VOXELS // largest[0, 0].size), axis=0))
    runs = {(name, runtime): run for name, model in models.items() for runtime, run in _runs(model, compute).items()}
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for run in runs.values():
            run(x)
        for _ in range(_ROUNDS):
            for key, run in runs.items():
                started = time.perf_counter()
                run(x)
                taken[key].append(time.perf_counter() - started)
    found = {key: Speed(key[1], 1000 * statistics.median(seconds)) for key, seconds in taken.items()}
    return {
        name: tuple(sorted((s for key, s in found.items() if key[0] == name), key=lambda speed: speed.milliseconds))
        for name in models
    }


def _runs(model: Checkpoint, compute: ResolvedCompute) -> dict[str, Callable[[Any], Any]]:
    from napari_unet.domain.errors import ModelError
    from napari_unet.inference.runtimes import converted, installed_runtimes, network_of

    network = network_of(model).eval()
    runs: dict[str, Callable[[Any], Any]] = {} if model.graph is not None else {"torch": network}
    for runtime in installed_runtimes():
        where = ResolvedCompute("cpu", "float32", compute.threads, runtime=runtime, runtime_wanted=True)
        try:
            runs[runtime] = converted(network, model.card.settings.network, where)
        except ModelError:
            continue
    return runs


def masks_of(
    model: Checkpoint, judges: Sequence[Judge], compute: ResolvedCompute, runtime: str = "torch"
) -> list[NDArray]:
    """Return the masks that a model proposes, in one pose, as it does at first."""
    from napari_unet.compute.predictor import Predictor

    where = replace(compute, device="cpu", precision="float32", runtime=runtime, runtime_3d="")
    predictor = Predictor(model, where, {"inference.mirror": False, "inference.turns": False})
    return [predictor.predict(judge.scan).labels for judge in judges]


def mean_dice(masks: Sequence[NDArray], truths: Sequence[NDArray], ids: Sequence[int]) -> float | None:
    """Return the mean over scans of the Dice over the classes present; None where no truth holds any.

    A scan whose truth holds none counts 1 where its mask is empty too, else 0, as in :mod:`evaluation.metrics`.

    Parameters
    ----------
    masks, truths : sequences of integer arrays
        Values of the schema, pair by pair of one shape.
    ids : sequence of int
        The schema's values.
    """
    from napari_unet.evaluation.effort import pooled_dice

    each = [pooled_dice([mask], [truth], max(ids)) for mask, truth in zip(masks, truths, strict=True)]
    if all(value is None for value in each):
        return None
    pairs = zip(each, masks, strict=True)
    return float(np.mean([float(not mask.any()) if value is None else value for value, mask in pairs]))
