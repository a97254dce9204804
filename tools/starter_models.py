"""What is cut from a trained body to be shipped: ``starter``, and one model per real set, each with its card."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from starter_tasks import Task, Taught, settings_of

from napari_unet import __version__
from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.settings import ModelSettings, PreparationSettings
from napari_unet.evaluation.effort import pooled_dice
from napari_unet.io.pairs import LabelledScan, scale_down
from napari_unet.networks.adapting import adapt_weights
from napari_unet.networks.factory import weights_of
from napari_unet.networks.unet import UNet
from napari_unet.session.models import STARTER
from napari_unet.session.predicting import predict_scan

#: ``--max-side`` where the benchmark has one.
_BENCHMARK_SIDE = 256


@dataclass(frozen=True)
class Origin:
    """What a training learnt from and how: for the cards.

    Parameters
    ----------
    seen : tuple of str
        Fingerprints of the scans that taught.
    credits : str
        Sources, licences, and what follows from them.
    steps, seed : int
    compute : str
        Device, precision, threads.
    """

    seen: tuple[str, ...]
    credits: str
    steps: int
    seed: int
    compute: str

    @classmethod
    def of(
        cls, tasks: Sequence[Task], taught: dict[str, Taught], steps: int, seed: int, compute: ResolvedCompute
    ) -> Origin:
        """Describe a training that has done so many steps."""
        return cls(
            seen=tuple(dict.fromkeys(mark for each in taught.values() for mark in _fingerprints(each.teaching))),
            credits=_credits(tasks, steps, seed),
            steps=steps,
            seed=seed,
            compute=f"{compute.device}, {compute.precision}, {compute.threads} threads",
        )

    def card(self, name: str, settings: ModelSettings, schema: LabelSchema, **more: Any) -> ModelCard:
        """Return a card of one of its models."""
        return ModelCard(
            name=name,
            settings=settings,
            label_schema=schema,
            seen=self.seen,
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            versions={
                "napari-unet": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            compute=self.compute,
            notes=self.credits,
            **more,
        )


def _fingerprints(items: Sequence[LabelledScan]) -> Iterator[str]:
    """Yield those of scans, and of the smaller copies that the benchmark makes of them, whose voxels differ."""
    for item in items:
        yield item.scan.fingerprint
        yield scale_down(item.scan, item.labels, _BENCHMARK_SIDE)[0].fingerprint


def _credits(tasks: Sequence[Task], steps: int, seed: int) -> str:
    sets = [task.real for task in tasks if task.real is not None]
    sources = "; ".join([*(f"{real.source}, {real.licence}" for real in sets), "and drawn pictures"])
    share_alike = any("SA" in real.licence for real in sets)
    offered = "CC BY-SA 4.0, as one of these sets asks" if share_alike else "CC BY 4.0"
    return (
        f"For research use only. Trained for {steps} steps (seed {seed}) on: {sources}. Scans were normalised, scaled, "
        f"turned and otherwise changed on the way. These weights are offered under {offered}: keep these credits with "
        "whatever is made from them."
    )


def _half(weights: dict[str, NDArray]) -> dict[str, NDArray]:
    return {name: array.astype(np.float16) for name, array in weights.items()}


def starter(whole: UNet, origin: Origin) -> Checkpoint:
    """Return a body with a head that knows nothing; its card counts no steps, so that it predicts nothing."""
    own = ModelSettings(network=whole.settings, preparation=PreparationSettings(context_slices=1))
    fresh = own.with_values({"network.out_channels": 2})
    weights = adapt_weights(weights_of(whole), own, fresh, origin.seed)
    return Checkpoint(_half(weights), origin.card(STARTER, fresh, LabelSchema.of("foreground")))


def task_model(network: UNet, task: Task, origin: Origin) -> Checkpoint:
    """Return a real set's own model: body and head, with one channel where it was taught on pictures."""
    assert task.real is not None
    view = task.views[0]
    taught = settings_of(task, view)
    values: dict[str, Any] = {"training.patch_size": (view.patch, view.patch), "training.batch_size": view.batch}
    if task.real.volumes:
        values["augmentation.rotation_degrees"] = 15
    else:
        values |= {"augmentation.mirror": (0, 1), "network.in_channels": 1, "preparation.context_slices": 0}
    settings = ModelSettings(network=taught.network, preparation=taught.preparation).with_values(values)
    whole = weights_of(network)
    head = {name: array for name, array in whole.items() if name.startswith("head.")}
    weights = adapt_weights(whole, taught, settings, origin.seed) | head
    card = origin.card(task.real.model, settings, task.schema, steps=origin.steps, modality=task.real.modality)
    return Checkpoint(_half(weights), card)


def scored(model: Checkpoint, judging: Sequence[LabelledScan], compute: ResolvedCompute) -> tuple[Checkpoint, float]:
    """Return a model with the Dice of scans that never taught in its card, and their mean."""
    n = len(model.card.label_schema.classes)
    scores = {
        item.scan.fingerprint: pooled_dice([predict_scan(model, item.scan, compute, True)], [item.labels], n)
        for item in judging
    }
    known = [dice for dice in scores.values() if dice is not None]
    mean = float(np.mean(known)) if known else float("nan")
    notes = f"{model.card.notes} Mean Dice of {len(known)} pictures or volumes that never taught: {mean:.3f}."
    return Checkpoint(model.weights, model.card.model_copy(update={"scores": scores, "notes": notes})), mean
