"""The correction tools against what is known and against plain painting, on real scans with their truth.

- Filling between every fifth slice, beside ITK's morphological contour interpolation (what 3D Slicer's and ITK-SNAP's
  tools use), linear interpolation of labels and the nearest slice.
- Strokes along the middle of structures, with the plain and the smart brush in several sizes; the same strokes, a
  third as wide, as seeds that grow, with and without a stroke of background around, beside a random walker and a
  watershed from the same seeds.

ITK comes with ``pip install itk-morphologicalcontourinterpolation``; without it its column is left out::

    .venv-bench/bin/python benchmarks/editing.py --json benchmarks/results/editing/editing.json
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from effort_sets import DATA
from numpy.typing import NDArray
from record import circumstances, write
from scipy import ndimage

from napari_unet.editing.between import fill_between
from napari_unet.editing.brushes import smart_stroke, stroke_mask
from napari_unet.editing.grow import grow_from_seeds
from napari_unet.evaluation.metrics import dice
from napari_unet.io.masks import read_mask
from napari_unet.io.registry import read_scan

_PACKAGES = ("napari-unet", "numpy", "scipy", "scikit-image", "itk", "itk-morphologicalcontourinterpolation")
_STEP = 5
_STROKES = 3
#: Brush radii over the structure's own, along its middle.
_SIZES = (0.8, 1.0, 1.3, 1.6)
_SETS = ("hippocampus_mr", "cardiac_cine_mr", "breast_ultrasound", "nuclei_fluorescence")

_Filled = Callable[[NDArray, NDArray], NDArray]


def hippocampus_masks(n: int) -> Iterator[NDArray]:
    """Return hippocampi as the product loads them, across their slice axis."""
    for path in _spread(sorted((DATA / "hippocampus_mr" / "masks").iterdir()), n):
        mask = read_mask(path)
        yield np.moveaxis(mask.data, mask.slice_axis or 0, 0)


def cardiac_stacks(n: int) -> Iterator[NDArray]:
    """Return stacks of one phase of one heart: frames of the set 20 apart, at least six of them without a gap."""
    frames: dict[tuple[str, int], list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted((DATA / "cardiac_cine_mr" / "masks").iterdir()):
        found = re.match(r"(.+)-IM-\d+-(\d+)$", path.stem)
        if found:
            number = int(found[2])
            frames[found[1], number % 20].append((number, path))
    stacks = [sorted(stack) for stack in frames.values() if len(stack) > _STEP]
    whole = [stack for stack in stacks if all(b[0] - a[0] == 20 for a, b in pairwise(stack))]
    for stack in _spread(whole, n):
        yield np.stack([(read_mask(path).data > 0).astype(np.uint8) for _, path in stack])


def _spread(items: list, n: int) -> list:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int))]


def _nearest(truth: NDArray, known: NDArray) -> NDArray:
    return truth[known[np.abs(np.arange(len(truth))[:, None] - known).argmin(axis=1)]]


def _linear(truth: NDArray, known: NDArray) -> NDArray:
    """Return the class whose share, linear between the given slices, is above a half."""
    found = np.zeros_like(truth)
    for value in np.unique(truth[known])[1:]:
        for low, high in pairwise(known):
            for k in range(low, high + 1):
                share = ((high - k) * (truth[low] == value) + (k - low) * (truth[high] == value)) / (high - low)
                found[k][share > 0.5] = value
    return found


def _ours(truth: NDArray, known: NDArray) -> NDArray:
    found = np.zeros_like(truth)
    slices, planes = fill_between(truth, 0, known)
    found[slices] = planes
    return found


def _itk() -> _Filled | None:
    try:
        import itk

        itk.MorphologicalContourInterpolator  # noqa: B018 - is it there?
    except (ImportError, AttributeError):
        return None
    # With several threads the process dies at its end ("malloc_consolidate", ITK 5.4.7).
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)

    def fill(truth: NDArray, known: NDArray) -> NDArray:
        sparse = np.zeros_like(truth)
        sparse[known] = truth[known]
        # ITK counts its axes from the fastest one.
        return itk.array_from_image(itk.morphological_contour_interpolator(itk.image_from_array(sparse), axis=2))

    return fill


def between(volumes: Iterator[NDArray]) -> dict[str, Any]:
    """Return the Dice of the slices left out, class by class and scan by scan, for each way to fill them.

    From slice 0 on every fifth is given, and again from the first slice of the structure to its last, that one too: as
    a person does who paints every fifth.
    """
    ways: dict[str, _Filled] = {"napari-unet": _ours, "linear": _linear, "nearest": _nearest}
    if (itk := _itk()) is not None:
        ways["itk"] = itk
    scores: dict[str, dict[str, list[float]]] = {"grid": defaultdict(list), "structure": defaultdict(list)}
    seconds: dict[str, list[float]] = defaultdict(list)
    n = 0
    for number, truth in enumerate(volumes):
        truth = np.ascontiguousarray(truth.astype(np.uint8))
        n += 1
        hit = np.flatnonzero(truth.any(axis=(1, 2)))
        known = {
            "grid": np.arange(0, len(truth), _STEP),
            "structure": np.unique([*range(hit[0], hit[-1], _STEP), hit[-1]]),
        }
        for name, fill in ways.items():
            if number == 0:
                fill(truth, known["grid"])  # what is only done once is not counted
            for kind, given in known.items():
                began = time.perf_counter()
                found = fill(truth, given)
                seconds[name].append(time.perf_counter() - began)
                left = np.setdiff1d(np.arange(given[0], given[-1]), given)
                scores[kind][name] += [dice(found[left] == c, truth[left] == c) for c in np.unique(truth[left]) if c]
    return {
        "scans": n,
        **{
            f"dice_{kind}": {name: round(statistics.mean(values), 4) for name, values in found.items()}
            for kind, found in scores.items()
        },
        "milliseconds": {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()},
    }


def pictures(name: str, n: int) -> Iterator[tuple[NDArray, NDArray[np.bool_]]]:
    """Return a grey plane and its largest structure: of a volume the plane that shows most of it."""
    folder = DATA / name
    paths = [p for p in sorted((folder / "masks").iterdir()) if not p.stem.startswith("normal")]
    for path in _spread(paths, n):
        mask, image = read_mask(path), read_scan(next((folder / "images").glob(path.name.split(".")[0] + ".*")))
        grey = np.asarray(image.data, np.float32)
        labels = mask.data
        if image.axes.endswith("c"):
            grey = grey[..., :3].mean(axis=-1)
        elif image.axes.startswith("c"):
            grey = grey[:3].mean(axis=0)
        if labels.ndim == 3:
            at = np.count_nonzero(labels, axis=(1, 2)).argmax()
            grey, labels = grey[at], labels[at]
        # The nuclei are numbered, and may touch.
        if name == "nuclei_fluorescence":
            structure = labels == np.bincount(labels[labels > 0]).argmax()
        else:
            pieces, _ = ndimage.label(labels > 0)
            structure = pieces == np.bincount(pieces[pieces > 0]).argmax() if pieces.any() else pieces > 0
        if np.count_nonzero(structure) >= 60:
            yield grey, structure


def planned(truth: NDArray[np.bool_], rng: np.random.Generator) -> list[tuple[NDArray, float]]:
    """Return strokes along the middle of a structure, and its half width there: the same for every tool.

    Each goes along the middle of the largest piece that a plain brush of that radius has left by then. The hand
    trembles by 15 % of the radius.
    """
    left, strokes = truth.copy(), []
    while left.any() and len(strokes) < _STROKES:
        pieces, _ = ndimage.label(left)
        piece = pieces == np.bincount(pieces[pieces > 0]).argmax()
        path, radius = middle_of(piece)
        tremble = rng.normal(size=path.shape)
        if len(path) > 5:
            tremble = ndimage.gaussian_filter1d(tremble, 5, axis=0)
        tremble *= 0.15 * radius / max(tremble.std(), 1e-9)
        strokes.append((path + tremble, radius))
        left &= ~stroke_mask(truth.shape, path, radius)
    return strokes


def middle_of(piece: NDArray[np.bool_]) -> tuple[NDArray, float]:
    """Return the longest way along the part of the skeleton that lies deep inside, and the median depth along it."""
    from skimage.graph import MCP_Geometric
    from skimage.morphology import skeletonize

    depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    skeleton = skeletonize(piece) & (depth >= 0.5 * depth.max())
    if not skeleton.any():
        skeleton = depth == depth.max()
    parts, _ = ndimage.label(skeleton, np.ones((3, 3)))
    own = parts == np.bincount(parts[parts > 0]).argmax()
    ways = MCP_Geometric(np.where(own, 1.0, -1.0))

    def farthest(start: tuple[int, ...]) -> tuple[int, ...]:
        costs, _ = ways.find_costs([start])
        place = np.unravel_index(np.where(np.isfinite(costs), costs, -1).argmax(), costs.shape)
        return tuple(int(at) for at in place)

    one = farthest(tuple(int(at) for at in np.argwhere(own)[0]))
    path = np.array(ways.traceback(farthest(one)))
    return path.astype(float), float(np.median(depth[tuple(path.T)]))


def strokes(name: str, n: int) -> dict[str, Any]:
    """Return the mean Dice after one, two and three strokes: brushes by their size, and what grows from the strokes."""
    rng = np.random.default_rng(0)
    scores: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in range(_STROKES)])
    seconds: dict[str, list[float]] = defaultdict(list)
    n_pictures = 0
    for image, truth in pictures(name, n):
        n_pictures += 1
        plan = planned(truth, rng)
        canvas: dict[str, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(truth.shape, bool))  # noqa: B023
        around, reach = _stroke_around(truth, plan[0][1]), 1.5 * plan[0][1]
        for at in range(_STROKES):
            if at < len(plan):
                path, radius = plan[at]
                for size in _SIZES:
                    canvas[f"plain {size}"] |= stroke_mask(truth.shape, path, size * radius)
                    began = time.perf_counter()
                    canvas[f"smart {size}"] |= smart_stroke(image, path, size * radius)
                    seconds["smart"].append(time.perf_counter() - began)
                canvas["seeds"] |= stroke_mask(truth.shape, path, radius / 3)
                seeds = canvas["seeds"].astype(np.uint8)
                ring = around & (seeds == 0)
                for which, grow in _GROWING.items():
                    began = time.perf_counter()
                    canvas[which] = grow(image, seeds, ring, reach) == 1
                    seconds[which].append(time.perf_counter() - began)
            for which, mask in canvas.items():
                scores[which][at].append(dice(mask, truth))
    return {
        "pictures": n_pictures,
        "dice_per_stroke": {
            which: [round(statistics.mean(values), 4) for values in found] for which, found in scores.items()
        },
        "milliseconds": {
            which: {"median": round(1000 * statistics.median(found), 1), "max": round(1000 * max(found), 1)}
            for which, found in seconds.items()
        },
    }


def random_walk(image: NDArray, seeds: NDArray, background: NDArray[np.bool_]) -> NDArray:
    """Return what scikit-image's random walker makes of seeds, inside the box of all of them; its usual beta."""
    from skimage.segmentation import random_walker

    box = ndimage.find_objects(((seeds > 0) | background).astype(np.uint8))[0]
    found = np.zeros_like(seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found[box] = random_walker(image[box], (seeds + 2 * background)[box].astype(np.int32), beta=130, mode="cg_j")
    return found


def flood(image: NDArray, seeds: NDArray, background: NDArray[np.bool_]) -> NDArray:
    """Return what a watershed on the gradient makes of seeds, inside the box of all of them."""
    from skimage.segmentation import watershed

    box = ndimage.find_objects(((seeds > 0) | background).astype(np.uint8))[0]
    found = np.zeros_like(seeds)
    steepness = ndimage.gaussian_gradient_magnitude(image[box], 0.7, mode="nearest")
    found[box] = watershed(steepness, (seeds + 2 * background)[box].astype(np.int32))
    return found


def _stroke_around(truth: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Return a stroke of background that goes once around a structure, at 0.6 of its half width or 3 pixels."""
    away = ndimage.distance_transform_edt(~truth)
    near = max(3.0, 0.6 * radius)
    return (away > near) & (away <= near + 1.5)


#: From an image, seeds, background and how far it may grow.
_GROWING: dict[str, Callable[[NDArray, NDArray, NDArray[np.bool_], float], NDArray]] = {
    "grown": lambda image, seeds, _, reach: grow_from_seeds(image, seeds, np.zeros(seeds.shape, bool), None, reach),
    "grown, ring": lambda image, seeds, ring, reach: grow_from_seeds(image, seeds, ring, None, reach),
    "random walker, ring": lambda image, seeds, ring, _: random_walk(image, seeds, ring),
    "watershed, ring": lambda image, seeds, ring, _: flood(image, seeds, ring),
}


def speed() -> dict[str, float]:
    """Return the median time in milliseconds of smart strokes over a plane of 512 x 512, by radius and length."""
    image = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    found = {}
    for radius in (5, 20):
        for length in (40, 200):
            path = np.stack([np.linspace(150, 150 + length, length // 5), np.full(length // 5, 250.0)], axis=1)
            taken = []
            for _ in range(11):
                began = time.perf_counter()
                smart_stroke(image, path, radius)
                taken.append(time.perf_counter() - began)
            found[f"radius {radius}, {length} pixels long"] = round(1000 * statistics.median(taken), 1)
    return found


def main() -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="no network is run")
    parser.add_argument("--quick", action="store_true", help="a few scans of each set")
    given = parser.parse_args()
    volumes, planes = (6, 4) if given.quick else (60, 30)
    record: dict[str, Any] = {**circumstances(_PACKAGES, given.device), "step": _STEP, "sizes": _SIZES}
    record["between"] = {
        "hippocampus_mr": between(hippocampus_masks(volumes)),
        "cardiac_cine_mr": between(cardiac_stacks(volumes)),
    }
    record["strokes"] = {name: strokes(name, planes) for name in _SETS}
    record["smart_stroke_512"] = speed()
    write(record, given.json)


if __name__ == "__main__":
    main()
