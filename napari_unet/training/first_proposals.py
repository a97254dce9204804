"""First proposals: a classifier of single pixels beside the U-Net, until the U-Net does better on the newest scans.

After one or two scans a network has had too few steps, while filters of several scales need no training. Both
are taught on the same reviewed pixels and their probabilities are mixed. How much each counts is decided by scans that
neither had seen: the newest ones, before they are learnt from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ModelSettings
from napari_unet.inference.predict import PixelShare, on_network_grid, tiled
from napari_unet.inference.runner import Runner
from napari_unet.networks.pixel_head import PixelHead, pixel_head_of
from napari_unet.networks.unet import UNet
from napari_unet.patches.filters import plane_features
from napari_unet.patches.sampling import Example
from napari_unet.training.lesson import Lesson

#: Shares of the pixel classifier that are tried.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Before any scan could tell.
_AT_FIRST = 0.5
# Where it leaves more than this share of the painting within the scan it learnt from, it has nothing to say.
_USEFUL = 0.8
_PIXELS_PER_SCAN = 6000
_PLANES_PER_SCAN, _PLANES_IN_ALL = 8, 32
_TRIED_PIXELS = 2**20
# Of the budget, for features and for learning each.
_SHARE_OF_BUDGET = 0.12
_STEPS, _BATCH, _RATE = 120, 2048, 1.5e-2
# Of what earlier scans said, against the newest.
_MEMORY = 0.5


@dataclass(frozen=True, eq=False)
class Pixels:
    """Some reviewed pixels of a scan.

    Parameters
    ----------
    features : (n, F) float32 tensor
    classes : (n,) int64 tensor
    weights : (n,) float32 tensor
        How many pixels each stands for: those of structures are drawn more often.
    planes : (n,) int64 array
        Which plane each lies in.
    places : (n,) int64 array
        Flat index within the plane on the network's grid.
    """

    features: Tensor
    classes: Tensor
    weights: Tensor
    planes: NDArray[np.int64]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes)

    def where(self, chosen: NDArray[np.bool_]) -> Pixels:
        """Return some of them."""
        at = torch.from_numpy(np.flatnonzero(chosen))
        return Pixels(self.features[at], self.classes[at], self.weights[at], self.planes[chosen], self.places[chosen])


_drawn: WeakKeyDictionary[Example, Pixels] = WeakKeyDictionary()


def draw_pixels(example: Example, settings: ModelSettings) -> Pixels:
    """Return reviewed pixels of some planes of a scan, half of them of structures; drawn once per scan."""
    if example not in _drawn:
        _drawn[example] = _draw(example, settings)
    return _drawn[example]


def _draw(example: Example, settings: ModelSettings) -> Pixels:
    rng = np.random.default_rng(settings.training.seed)
    reviewed = torch.ones_like(example.labels, dtype=torch.bool) if example.reviewed is None else example.reviewed
    known = np.flatnonzero(reviewed.flatten(1).any(1).numpy())
    filled = known[(example.labels[known] > 0).flatten(1).any(1).numpy()]
    empty = np.setdiff1d(known, filled)
    # Planes with structures say more; some without are needed to know what they are not in.
    kinds = ((filled, _PLANES_PER_SCAN - 2), (empty, 2))
    drawn = [(int(i), max(1.0, len(kind) / n)) for kind, n in kinds for i in rng.permutation(kind)[:n]]
    found = [_of_plane(example, reviewed, index, share, settings, rng) for index, share in sorted(drawn)]
    if not found:
        nothing = np.zeros(0, np.int64)
        return Pixels(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), torch.zeros(0), nothing, nothing)
    return _joined(found)


def _joined(parts: Sequence[Pixels]) -> Pixels:
    return Pixels(
        torch.cat([p.features for p in parts]),
        torch.cat([p.classes for p in parts]),
        torch.cat([p.weights for p in parts]),
        np.concatenate([p.planes for p in parts]),
        np.concatenate([p.places for p in parts]),
    )


def _of_plane(
    example: Example,
    reviewed: Tensor,
    index: int,
    stands_for: float,
    settings: ModelSettings,
    rng: np.random.Generator,
) -> Pixels:
    image = on_network_grid(example.image[:, index][None], example.zoom[1:])[0]
    shape = image.shape[1:]
    about = torch.stack((example.labels[index], reviewed[index])).float()[None]
    labels, known = (m.flatten().numpy() for m in F.interpolate(about, shape, mode="nearest-exact")[0])
    n = _PIXELS_PER_SCAN // _PLANES_PER_SCAN * (1 if example.labels.shape[0] > 1 else _PLANES_PER_SCAN)
    inside, anywhere = np.flatnonzero((labels > 0) & (known > 0)), np.flatnonzero(known > 0)
    # Every pixel is drawn with one chance, whichever way it came, so that its weight is one over that.
    chance = np.zeros(len(labels))
    chance[anywhere] += n / 2 / max(1, len(anywhere))
    chance[inside] += n / 2 / max(1, len(inside))
    chance = np.minimum(chance, 1)
    chosen = np.flatnonzero(rng.random(len(labels)) < chance)
    features = plane_features(image.numpy(), example.image.shape[1], index, settings)
    return Pixels(
        torch.from_numpy(np.ascontiguousarray(features.reshape(len(features), -1)[:, chosen].T)),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        torch.from_numpy((stands_for / chance[chosen]).astype(np.float32)),
        np.full(len(chosen), index),
        chosen,
    )


@dataclass(frozen=True, eq=False)
class FirstProposals:
    """The pixel classifier beside a network, and what is known of the two.

    Parameters
    ----------
    head : PixelHead or None
        None once the network needs no help.
    share : float
        Of the mixed probabilities; the rest is the network's.
    errors : tuple of float
        Share of the painting that each of :data:`SHARES` leaves to do, by the newest scans; empty before any.
    left_to_paint : tuple of float
        Share of the painting that the model of the time left to do, whenever there were new scans, the latest last.
    """

    head: PixelHead | None = None
    share: float = 0.0
    errors: tuple[float, ...] = ()
    left_to_paint: tuple[float, ...] = ()

    @property
    def say(self) -> PixelShare | None:
        """What :func:`napari_unet.inference.predict.predict` takes."""
        return PixelShare(self.head, self.share) if self.head is not None and self.share > 0 else None


def first_proposals(
    network: UNet,
    base: Checkpoint | None,
    examples: Sequence[Example],
    lessons: Sequence[Lesson],
    settings: ModelSettings,
    compute: ResolvedCompute,
    started: float,
) -> FirstProposals:
    """Teach the pixel classifier, and decide by scans that are new how much it has to say.

    Parameters
    ----------
    network : UNet
        With the base's weights, before it learns.
    base : Checkpoint or None
        Where training starts.
    examples, lessons : sequences
        In the same order.
    settings : ModelSettings
    compute : ResolvedCompute
    started : float
        ``time.perf_counter()`` when the budget began.
    """
    wanted = settings.training.first_proposals and settings.network.dimensions == 2
    share: float | None = None
    errors: tuple[float, ...] = ()
    left: tuple[float, ...] = ()
    if base is not None and base.card.steps > 0:
        known = {*base.card.seen, *base.card.looked_at}
        new = [e for e, lesson in zip(examples, lessons, strict=True) if lesson.scan.fingerprint not in known]
        head = _head_of(base, settings) if wanted else None
        now = try_on_new(network, head, new, settings, compute) if wanted else ()
        left = base.card.left_to_paint
        if now:
            left = (*left, now[int(np.argmin(np.abs(np.subtract(SHARES[: len(now)], base.card.pixel_share))))])
        if head is None:
            return FirstProposals(left_to_paint=left)
        if now:
            share, errors = choose_share(base.card.pixel_errors, now)
        else:
            # More of scans that were known already: the network comes to know them better than any filter.
            share, errors = base.card.pixel_share / 2, base.card.pixel_errors
        if share < min(s for s in SHARES if s > 0):
            return FirstProposals(errors=errors, left_to_paint=left)
    pixels = collect_pixels(examples, settings, started) if wanted else None
    if pixels is None:
        return FirstProposals(errors=errors, left_to_paint=left)
    if share is None:
        share = _AT_FIRST if left_within(pixels, settings) < _USEFUL else 0.0
    return FirstProposals(fit_pixels(pixels, settings), share, errors, left)


def _head_of(base: Checkpoint, settings: ModelSettings) -> PixelHead | None:
    """Return the base's classifier; None where it has none, or one that knows fewer classes."""
    if not base.pixels:
        return None
    head = pixel_head_of(base.pixels)
    return head if head.n_classes == settings.network.out_channels else None


def _probability(runner: Runner, example: Example, index: int) -> Tensor:
    """Return what a network says of a plane, on its own grid: ``(K, h, w)``."""
    seen = on_network_grid(example.image[:, index][None].to(runner.device), example.zoom[1:])
    return tiled(runner, seen)[0]


def try_on_new(
    network: UNet,
    head: PixelHead | None,
    examples: Sequence[Example],
    settings: ModelSettings,
    compute: ResolvedCompute,
) -> tuple[float, ...]:
    """Return for each of :data:`SHARES` how much of the painting would be left on scans that neither has learnt from.

    Only planes that are reviewed as a whole are asked: where a few voxels were painted they were painted because the
    model was wrong there.

    1 is as much as without a proposal; more counts as 1, since nobody corrects more than they would paint. Without a
    classifier only the network is tried, and the result has one entry; it is empty where there is nothing new.
    """
    shares = SHARES if head is not None else SHARES[:1]
    wrong, painted = np.zeros(len(shares)), 0.0
    # Averaging over poses is for proposals: here it would take time from learning.
    single = settings.with_values({"inference.mirror": False})
    runner = Runner(network, single, compute)
    left = _TRIED_PIXELS
    # The newest last; where time runs short it is the one to ask.
    for example in reversed(examples):
        pixels = draw_pixels(example, settings)
        pixels = pixels.where(_is_whole(example)[pixels.planes])
        size = int(np.prod(example.labels.shape[1:]) / np.prod(example.zoom[1:]))
        planes = np.unique(pixels.planes)[: max(1, left // size) if left > 0 else 0]
        left -= size * len(planes)
        pixels = pixels.where(np.isin(pixels.planes, planes))
        if not len(pixels):
            continue
        theirs = torch.zeros(len(pixels), settings.network.out_channels)
        for index in planes:
            with torch.inference_mode():
                probability = runner.attempt(partial(_probability, runner, example, int(index))).flatten(1).T.cpu()
            here = pixels.planes == index
            theirs[torch.from_numpy(here)] = probability[torch.from_numpy(pixels.places[here])]
        with torch.no_grad():
            own = theirs if head is None else head(pixels.features).softmax(1)
        for i, share in enumerate(shares):
            missed = ((1 - share) * theirs + share * own).argmax(1) != pixels.classes
            wrong[i] += float(pixels.weights[missed].sum())
        painted += float(pixels.weights[pixels.classes > 0].sum())
    return tuple(float(v) for v in np.minimum(wrong / painted, 1)) if painted else ()


def _is_whole(example: Example) -> NDArray[np.bool_]:
    """Return for each plane whether all of it is reviewed."""
    if example.reviewed is None:
        return np.ones(len(example.labels), bool)
    return example.reviewed.flatten(1).all(1).numpy()


def choose_share(before: Sequence[float], now: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """Return the share that left least to do, the newest scans counting half, and the errors to remember."""
    errors = tuple(now)
    if len(before) == len(now):
        errors = tuple(_MEMORY * b + (1 - _MEMORY) * n for b, n in zip(before, now, strict=True))
    return SHARES[int(np.argmin(errors))], errors


def collect_pixels(examples: Sequence[Example], settings: ModelSettings, started: float) -> Pixels | None:
    """Return reviewed pixels to teach a classifier, the newest scans' first.

    Parameters
    ----------
    examples : sequence of Example
        In order of arrival; the newest are sure to be looked at.
    settings : ModelSettings
        Budget, seed.
    started : float
        ``time.perf_counter()`` when the budget began.

    Returns
    -------
    Pixels or None
        None where nothing is labelled.
    """
    budget = settings.training.budget_seconds
    deadline = None if budget is None or settings.training.steps is not None else started + _SHARE_OF_BUDGET * budget
    found: list[Pixels] = []
    n_planes = 0
    for example in reversed(examples):
        if found and (n_planes >= _PLANES_IN_ALL or (deadline is not None and time.perf_counter() > deadline)):
            break
        if example.usable:
            found.append(draw_pixels(example, settings))
            n_planes += len(np.unique(found[-1].planes))
    pixels = [p for p in found if len(p)]
    return _joined(pixels) if any(bool((p.classes > 0).any()) for p in pixels) else None


def left_within(pixels: Pixels, settings: ModelSettings) -> float:
    """Return how much of the painting a classifier leaves in one half of the planes when it learns from the other.

    What lies beside what was learnt is an easy question; who fails it has nothing to say.
    """
    half = pixels.places < np.median(pixels.places)
    learnt, asked = pixels.where(half), pixels.where(~half)
    if not len(learnt) or not bool((asked.classes > 0).any()):
        return 1.0
    head = fit_pixels(learnt, settings)
    with torch.no_grad():
        missed = head(asked.features).argmax(1) != asked.classes
    painted = float(asked.weights[asked.classes > 0].sum())
    return min(1.0, float(asked.weights[missed].sum()) / painted)


def fit_pixels(pixels: Pixels, settings: ModelSettings) -> PixelHead:
    """Return a classifier of pixels, taught for a second or so."""
    features, classes, weights = pixels.features, pixels.classes, pixels.weights
    n_classes = settings.network.out_channels
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(settings.training.seed)
        head = PixelHead(features.shape[1], n_classes)
        head.mean.copy_(features.mean(0))
        head.deviation.copy_(features.std(0).clamp_min(1e-6))
        optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS)
        weights = weights / weights.mean()
        for _ in range(_STEPS):
            at = torch.randint(len(classes), (min(_BATCH, len(classes)),))
            loss = _loss(head(features[at]), classes[at], weights[at])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return head.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps this small take longer when they are shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy and soft Dice, as the network's, each pixel standing for as many as its weight says."""
    entropy = (F.cross_entropy(logits, classes, reduction="none") * weights).sum() / weights.sum()
    probability = logits.softmax(1)[:, 1:]
    truth = F.one_hot(classes, logits.shape[1])[:, 1:].float()
    w = weights[:, None]
    dice = (2 * (probability * truth * w).sum(0) + 1) / ((probability + truth) * w).sum(0).add(1)
    return entropy + (1 - dice).mean()
