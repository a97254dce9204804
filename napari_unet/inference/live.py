"""Live refit: after a stroke the slice is labelled anew from what the model knows of it and what was painted on it.

The model stays as it is. What its head sees of each pixel, with a few filters beside it, is found once per slice; after
each stroke a small correction on top of the model's own answer is fitted to the painted pixels. No jobs, no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.settings import ModelSettings
from napari_unet.patches.prepare import PreparedScan

if TYPE_CHECKING:
    from torch import Tensor

    from napari_unet.inference.slabs import SlabResult
    from napari_unet.networks.unet import UNet

# Longest side of what is fitted at once, by the network's dimensions: a large picture or a 3D network would take
# seconds, and a stroke says little about what is far away.
_LARGEST_SIDE = {2: 768, 3: 160}
# Windows begin at multiples of this, so that the next stroke finds the features of the last one.
_SNAP = 64
# Planes on each side that a 3D network sees.
_HALO = 8
_LEAST_PROBABILITY = 1e-3
_FARTHEST = 5.0
# How far a stroke reaches, as a share of the window's mean side. Reach, agreement and penalty were chosen on slices of
# five sets (EM, ultrasound, cardiac and brain MR, computed CT) by the Dice after one to eight strokes: reaching further
# turned over what was right.
_REACH = 0.045
# Beyond so many reaches nothing changes.
_END = 3.0
# Of agreeing with the model around a stroke, where what is painted weighs 1: who repaints one pixel tells little about
# those beside it that were left, and a stroke without any of that floods its surroundings.
_AGREEMENT = 1.0
_PENALTY = 0.03
_ITERATIONS = 40
# Pixels in the fit: painted ones of each class, and others.
_MOST_PAINTED, _MOST_FREE = 1000, 3000

#: In arrays of painted classes: not painted.
FREE = -1


@dataclass(frozen=True)
class Window:
    """The part of a slice that is fitted: first row and column, height and width, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Index of the window in a slice."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, eq=False)
class Features:
    """What is known of the pixels of a window before anything is painted.

    Parameters
    ----------
    values : (h * w, F) float32 array
        Of mean 0 and deviation 1 over the window.
    prior : (h * w, K) float32 array or None
        Logarithm of the model's probabilities; None without a model.
    shape : (h, w)
    """

    values: NDArray[np.float32]
    prior: NDArray[np.float32] | None
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Painted:
    """What was painted on a slice.

    Parameters
    ----------
    indices : (n,) int64 array
        Flat (C order) indices in the slice.
    values : (n,) array
        Labels there.
    focus : (row, column) or None
        Middle of the last stroke; None: no new one.
    """

    indices: NDArray[np.int64]
    values: NDArray
    focus: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Refitted:
    """Labels ``(h, w)`` of a window, and where the strokes had a say in them (bool, same shape)."""

    window: Window
    labels: NDArray
    reached: NDArray[np.bool_]


def window_around(shape: tuple[int, int], focus: tuple[int, int], dimensions: int) -> Window:
    """Return the window about a pixel: the whole slice, unless that would take too long.

    Parameters
    ----------
    shape : (h, w)
        Of the slice.
    focus : (row, column)
        Where the hand is.
    dimensions : int
        Of the network; 2 without one.
    """
    starts, sizes = [], []
    for side, middle in zip(shape, focus, strict=True):
        size = min(side, _LARGEST_SIDE[dimensions])
        wished = (middle - size // 2) // _SNAP * _SNAP
        starts.append(int(np.clip(wished, 0, side - size)))
        sizes.append(size)
    return Window(*starts, *sizes)


def filtered(image: NDArray[np.float32] | PreparedScan, index: int, window: Window) -> Features:
    """Return features that need no model: intensity, edges and texture at several scales.

    Parameters
    ----------
    image : (C, S, H, W) float32 array, or PreparedScan
    index : int
        Plane.
    window : Window
    """
    from napari_unet.patches.filters import filter_features

    found = filter_features(np.ascontiguousarray(image[:, index][:, *window.box]))
    return Features(_standardised(found), None, (window.height, window.width))


def seen_by_head(
    network: UNet,
    image: NDArray[np.float32] | PreparedScan,
    settings: ModelSettings,
    compute: ResolvedCompute,
    index: int,
    window: Window,
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
    answer: SlabResult | None = None,
) -> Features:
    """Return what a model says about a plane, and the features that its head says it from.

    Parameters
    ----------
    network : UNet
        Its weights are not changed; it is moved to the device and set to evaluation.
    image : (C, S, H, W) float32 array, or PreparedScan
    settings, compute, zoom
        As for :func:`napari_unet.inference.predict.predict`.
    index : int
        Plane.
    window : Window
        What of it. A 3D network also sees some planes on each side.
    answer : SlabResult, optional
        What was proposed for a slab with this plane: averaged over poses, or mixed with a classifier of pixels, that
        can differ from what the network says in the one pass here.
    """
    import torch

    network.to(compute.device).eval()
    solid = settings.network.dimensions == 3
    halo = round(_HALO * zoom[0]) if solid else 0
    first = max(0, index - halo)
    part = np.ascontiguousarray(image[:, first : index + halo + 1, *window.box])
    x = torch.from_numpy(part if solid else part[:, 0])[None].to(compute.device)
    with torch.inference_mode():
        both = [
            each[0, :, index - first] if solid else each[0] for each in _both_sides_of_head(network, x, compute, zoom)
        ]
    values, probability = (each.cpu().numpy() for each in both)
    said = probability.reshape(len(probability), -1).T
    if answer is not None:
        where = (index - answer.slab.start, *window.box)
        said = _as_answered(said, answer.classes[where].reshape(-1), answer.confidence[where].reshape(-1))
    prior = np.log(np.maximum(said, _LEAST_PROBABILITY))
    return Features(_standardised(values), prior.astype(np.float32), (window.height, window.width))


def _as_answered(
    said: NDArray[np.float32], classes: NDArray[np.uint8], confidence: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return (n, K) probabilities that agree with an answer, the rest shared out as the network would."""
    rows = np.arange(len(said))
    sure = confidence.astype(np.float32) / 255
    rest = np.maximum(said, _LEAST_PROBABILITY)
    rest[rows, classes] = 0
    rest *= ((1 - sure) / rest.sum(axis=1))[:, np.newaxis]
    rest = np.minimum(rest, 0.99 * sure[:, np.newaxis])
    rest[rows, classes] = sure
    return rest


def refit(
    features: Features, painted: NDArray[np.integer], n_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the classes of a window, corrected by what was painted.

    Logistic regression with an offset: the logits are the model's own plus a linear function of the features that
    fades with the distance to the strokes (a Gaussian). It is fitted to the painted pixels, to what the model says of
    the others around them, and to small coefficients, so that without strokes the answer is the model's.

    Parameters
    ----------
    features : Features
        Without a model's answer the function does not fade, and is fitted to the painted pixels alone.
    painted : (h, w) int array
        Class of each painted pixel, :data:`FREE` elsewhere.
    n_classes : int
        Background included. Those behind the model's own are new to it.

    Returns
    -------
    classes : (h, w) uint8 array
        Painted pixels are as painted. Without a model and with fewer than two classes painted there is nothing to
        tell apart, and the others are background.
    reached : (h, w) bool array
        Where the strokes had a say: painted pixels and what is near them; everywhere without a model.
    """
    given = painted.reshape(-1)
    marked = given != FREE
    if features.prior is None:
        prior = np.zeros((len(given), n_classes), np.float32)
        near, zone = np.ones(len(given), np.float32), np.arange(len(given))
        fitted = len(np.unique(given[marked])) > 1
    else:
        prior = _with_new_classes(features.prior, n_classes)
        near, zone = _surroundings(painted)
        fitted = bool(marked.any())
    classes = prior.argmax(1).astype(np.uint8)
    if fitted:
        rows, weights = _chosen(given, zone, features.prior is not None, _END * _reach(features.shape))
        coefficients = _fit(_design(features.values, near, rows), prior[rows], given[rows], weights)
        classes[zone] = (prior[zone] + _design(features.values, near, zone) @ coefficients).argmax(1)
    classes[marked] = given[marked]
    reached = marked.copy()
    reached[zone if fitted else []] = True
    return classes.reshape(features.shape), reached.reshape(features.shape)


def _reach(shape: tuple[int, int]) -> float:
    return _REACH * float(np.sqrt(shape[0] * shape[1]))


def _surroundings(painted: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return how near each pixel is to a stroke, 1 on it and 0 far away, and the indices of those it reaches."""
    from scipy.ndimage import distance_transform_edt

    if not (painted != FREE).any():
        return np.zeros(painted.size, np.float32), np.zeros(0, np.int64)
    reach = _reach((painted.shape[0], painted.shape[1]))
    distance = distance_transform_edt(painted == FREE).reshape(-1) / reach
    return np.exp(-0.5 * distance**2).astype(np.float32), np.flatnonzero(distance < _END)


def _with_new_classes(prior: NDArray[np.float32], n_classes: int) -> NDArray[np.float32]:
    missing = n_classes - prior.shape[1]
    return np.pad(prior, ((0, 0), (0, missing)), constant_values=np.log(_LEAST_PROBABILITY)) if missing else prior


def _design(values: NDArray[np.float32], near: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return features and a constant, fading with the distance, of some pixels."""
    return np.concatenate([values[rows], np.ones((len(rows), 1), np.float32)], axis=1) * near[rows, np.newaxis]


def _chosen(
    given: NDArray[np.integer], zone: NDArray[np.int64], has_model: bool, radius: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return pixels to fit to and their weights: painted ones weigh 1 together, the others by how many there are."""
    random = np.random.default_rng(0)
    rows, weights = [], []
    for value in np.unique(given[given != FREE]):
        found = np.flatnonzero(given == value)
        kept = random.permutation(found)[:_MOST_PAINTED]
        rows.append(kept)
        # Without a model all classes weigh the same: how much was painted of each says nothing about how much there is.
        weights.append(np.full(len(kept), (len(found) if has_model else 1) / len(kept)))
    total = sum(each.sum() for each in weights)
    weights = [each / total for each in weights]
    free = zone[given[zone] == FREE]
    if has_model and len(free):
        rows.append(random.permutation(free)[:_MOST_FREE])
        weights.append(np.full(len(rows[-1]), _AGREEMENT * len(free) / (np.pi * radius**2) / len(rows[-1])))
    return np.concatenate(rows), np.concatenate(weights)


def _fit(
    design: NDArray[np.float32], offset: NDArray[np.float32], given: NDArray[np.integer], weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the coefficients (features, classes) of a weighted multinomial logistic regression, by L-BFGS.

    Where nothing was painted, the wanted probabilities are those of the offset.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    x, n_classes = design.astype(np.float64), offset.shape[1]
    wanted = np.exp(log_softmax(offset.astype(np.float64), axis=1))
    wanted[given != FREE] = np.eye(n_classes)[given[given != FREE]]
    weighted = weights[:, np.newaxis] * wanted
    own = weighted.sum(axis=1, keepdims=True)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        b = flat.reshape(-1, n_classes)
        logs = log_softmax(offset + x @ b, axis=1)
        gradient = x.T @ (own * np.exp(logs) - weighted) + _PENALTY * b
        return float(_PENALTY / 2 * (b * b).sum() - (weighted * logs).sum()), gradient.ravel()

    start = np.zeros(x.shape[1] * n_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    return found.x.reshape(-1, n_classes).astype(np.float32)


def _both_sides_of_head(
    network: UNet, x: Tensor, compute: ResolvedCompute, zoom: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return what enters the head ``(1, F, *spatial)`` and the probabilities ``(1, K, *spatial)``, on the grid of x."""
    import torch
    import torch.nn.functional as F

    from napari_unet.inference.predict import on_network_grid
    from napari_unet.networks.heads import class_logits

    shape = tuple(x.shape[2:])
    seen = on_network_grid(x, zoom[-len(shape) :])
    inner = tuple(seen.shape[2:])
    # Two deepest features at least: one alone has no deviation to normalise by.
    missing = [max(2, -(-n // d)) * d - n for n, d in zip(inner, network.divisor, strict=True)]
    padded = F.pad(seen, [v for m in reversed(missing) for v in (0, m)], mode="replicate")
    caught: list[Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(compute.precision)
    try:
        with torch.autocast(torch.device(compute.device).type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = network(padded)
    finally:
        hook.remove()
    cut: tuple[Any, ...] = (..., *(slice(n) for n in inner))
    values, probability = caught[0].float()[cut], class_logits(logits.float(), network.settings).softmax(1)[cut]
    if inner != shape:
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        values, probability = (F.interpolate(each, shape, mode=mode) for each in (values, probability))
    return values, probability


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (F, h, w) features as (h * w, F), of mean 0 and deviation 1."""
    table = values.reshape(len(values), -1).T
    deviation = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    # A few glaring pixels shall not decide.
    return np.clip(table, -_FARTHEST, _FARTHEST).astype(np.float32)
