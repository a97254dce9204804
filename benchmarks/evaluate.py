"""`evaluate` on 200 volumes of 64 x 64 x 64 against MONAI and scipy-based references, and equality on random masks.

All score Dice, IoU, HD95 and NSD of the same arrays, one case at a time, in one process and on one thread, in turns, so
that all meet the same load; the product finds the Hausdorff distance, the lesion-wise F1 and the volumes as well. The
references are MONAI's functions as its documentation calls them, and scipy's erosion and distance transform, on the
whole volume (the usual recipe) and cropped to the box around both masks. Then thousands of small random masks are
compared: specks, holes, shifts, planes and volumes, unequal spacings. Last, the whole command on folders of NIfTI files
(read, checked, scored) against nibabel with the references::

    python benchmarks/evaluate.py --json benchmarks/results/evaluate/evaluate.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import circumstances, write
from scipy import ndimage

from napari_unet.evaluation import metrics
from napari_unet.evaluation.metrics import score_case

_PACKAGES = ("napari-unet", "numpy", "scipy", "monai", "torch")
_SPACING = (2.0, 0.8, 0.8)
# No distance between grid points is exactly this, so that rounding decides nothing.
_TOLERANCE = 1.2345

#: Dice, IoU, HD95, NSD.
Scores = tuple[float, float, float, float]
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def by_product(prediction: NDArray, truth: NDArray, spacing: tuple[float, ...]) -> Scores:
    """Score as ``evaluate`` does."""
    found = score_case(prediction, truth, [1], spacing, _TOLERANCE)
    return found.dice[1], found.iou[1], found.hd95_mm[1], found.nsd[1]


def by_monai(prediction: NDArray, truth: NDArray, spacing: tuple[float, ...]) -> Scores:
    """Score with MONAI's functions."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

    p, t = (torch.as_tensor(mask)[None, None].float() for mask in (prediction, truth))
    how: dict[str, Any] = {"include_background": True, "spacing": spacing}
    found = (
        compute_dice(p, t),
        compute_iou(p, t),
        compute_hausdorff_distance(p, t, percentile=95, **how),
        compute_surface_dice(p, t, [_TOLERANCE], **how),
    )
    return tuple(float(value) for value in found)  # type: ignore[return-value]


def by_scipy(prediction: NDArray, truth: NDArray, spacing: tuple[float, ...]) -> Scores:
    """Score with scipy's erosion and Euclidean distance transform of the whole volume."""
    p, t = prediction.astype(bool), truth.astype(bool)
    both, either = (p & t).sum(), (p | t).sum()
    p_edge, t_edge = p & ~ndimage.binary_erosion(p), t & ~ndimage.binary_erosion(t)
    forth = ndimage.distance_transform_edt(~t_edge, sampling=spacing)[p_edge]
    back = ndimage.distance_transform_edt(~p_edge, sampling=spacing)[t_edge]
    near = (forth <= _TOLERANCE).sum() + (back <= _TOLERANCE).sum()
    return (
        float(2 * both / (p.sum() + t.sum())),
        float(both / either),
        float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        float(near / (len(forth) + len(back))),
    )


def by_scipy_in_a_box(prediction: NDArray, truth: NDArray, spacing: tuple[float, ...]) -> Scores:
    """Do the same, cropped to the box around both masks."""
    box = ndimage.find_objects(((prediction > 0) | (truth > 0)).view(np.uint8))[0]
    return by_scipy(prediction[box], truth[box], spacing)


_WAYS: dict[str, Callable[[NDArray, NDArray, tuple[float, ...]], Scores]] = {
    "napari-unet": by_product,
    "monai": by_monai,
    "scipy": by_scipy,
    "scipy, cropped": by_scipy_in_a_box,
}


def _organ(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Return a bumpy ellipsoid of 20 to 60 % of the side and, somewhere near, a lesion."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side),) * 3, indexing="ij"))
    bumps = ndimage.zoom(rng.normal(size=(5, 5, 5)), side / 5, order=1)
    axes, centre = rng.uniform(0.2, 0.6, 3), rng.uniform(-0.3, 0.3, 3)
    radius = np.sqrt((((grid - centre[:, None, None, None]) / axes[:, None, None, None]) ** 2).sum(0))
    far = np.sqrt(((grid - rng.uniform(-0.8, 0.8, 3)[:, None, None, None]) ** 2).sum(0))
    return ((radius + 0.15 * bumps < 1) | (far < 0.08)).astype(np.uint8)


def _volumes(n: int, side: int, seed: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return truths with predictions like a network's: the outline a little off, here and there a speck."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        truth = _organ(rng, side)
        blurred = ndimage.gaussian_filter(truth.astype(np.float32), 1.0)
        noise = ndimage.gaussian_filter(rng.normal(size=truth.shape).astype(np.float32), 2.0)
        found.append(((blurred + 1.5 * noise > 0.5).astype(np.uint8), truth))
    return found


def measure_speed(n: int, side: int, rounds: int) -> dict[str, Any]:
    """Return the seconds that each way takes for all volumes: the median of rounds, in turns."""
    volumes = _volumes(n, side, seed=0)
    for way in _WAYS.values():
        way(*volumes[0], _SPACING)
    seconds: dict[str, list[float]] = {name: [] for name in _WAYS}
    scores: dict[str, list[Scores]] = {}
    for _ in range(rounds):
        for name, way in _WAYS.items():
            started = time.process_time()
            scores[name] = [way(*pair, _SPACING) for pair in volumes]
            seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    fastest = min((name for name in _WAYS if name != "napari-unet"), key=lambda name: medians[name])
    ours = np.array(scores["napari-unet"])
    return {
        "volumes": n,
        "side": side,
        "rounds": rounds,
        "cpu_seconds": medians,
        "fastest_reference": fastest,
        "ratio": medians["napari-unet"] / medians[fastest],
        "largest_difference": {
            name: float(np.abs(np.array(found) - ours).max()) for name, found in scores.items() if name != "napari-unet"
        },
    }


def measure_folders(n: int, side: int, rounds: int) -> dict[str, Any]:
    """Return the seconds for folders of ``.nii.gz`` masks, reading included, by the product and by references."""
    import nibabel as nib

    from napari_unet.io.masks import TruthRule
    from napari_unet.session.batch import evaluate_folders

    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("predictions", "truth")]
        for folder in folders:
            folder.mkdir()
        for number, pair in enumerate(_volumes(n, side, seed=0)):
            for folder, mask in zip(folders, pair, strict=True):
                image = nib.Nifti1Image(mask.transpose(), np.diag([*_SPACING[::-1], 1.0]))
                nib.save(image, folder / f"case-{number:03d}.nii.gz")

        def reference(way: str) -> None:
            for path in sorted(folders[0].iterdir()):
                pair = [np.asarray(nib.load(f / path.name).dataobj).transpose() for f in folders]
                _WAYS[way](pair[0], pair[1], _SPACING)

        ways: dict[str, Callable[[], Any]] = {
            "napari-unet": lambda: list(evaluate_folders(*folders, TruthRule(), _TOLERANCE)),
            "nibabel, monai": lambda: reference("monai"),
            "nibabel, scipy, cropped": lambda: reference("scipy, cropped"),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                started = time.process_time()
                run()
                seconds[way].append(time.process_time() - started)
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    return {
        "volumes": n,
        "cpu_seconds": medians,
        "ratio": medians["napari-unet"] / min(medians[way] for way in ways if way != "napari-unet"),
    }


def _random_pairs(n: int, seed: int) -> Iterator[tuple[Masks, tuple[float, ...]]]:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        shape = tuple(rng.integers(3, 14, rng.integers(2, 4)))
        masks = []
        for _ in range(2):
            noise = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2))
            masks.append(noise > np.quantile(noise, rng.uniform(0.4, 0.98)))
        if rng.random() < 0.3:
            masks[1] = np.roll(masks[0], 1, rng.integers(0, len(shape)))
        yield (masks[0], masks[1]), tuple(rng.uniform(0.3, 4, len(shape)))


def measure_equality(n: int) -> dict[str, Any]:
    """Return the largest difference from each reference over random masks that are not empty."""
    largest: dict[str, list[float]] = {name: [] for name in ("monai", "scipy")}
    hausdorff, f1 = [], []
    compared = 0
    for (p, t), spacing in _random_pairs(n, seed=1):
        if not (p.any() and t.any()):
            continue
        compared += 1
        ours = np.array(by_product(p.astype(np.uint8), t.astype(np.uint8), spacing))
        for name in largest:
            largest[name].append(float(np.abs(ours - _WAYS[name](p, t, spacing)).max()))
        forth, back = (
            ndimage.distance_transform_edt(~(b & ~ndimage.binary_erosion(b)), sampling=spacing)[a].max()
            for a, b in ((p & ~ndimage.binary_erosion(p), t), (t & ~ndimage.binary_erosion(t), p))
        )
        hausdorff.append(abs(metrics.hd(p, t, spacing) - max(forth, back)))
        f1.append(abs(metrics.lesion_f1(p, t) - _f1_by_skimage(p, t)))
    return {
        "masks": compared,
        "largest_difference": {name: max(each) for name, each in largest.items()},
        "beyond_1e-6": {name: sum(value > 1e-6 for value in each) for name, each in largest.items()},
        "hausdorff_against_scipy": float(max(hausdorff)),
        "lesion_f1_against_skimage": max(f1),
    }


def _f1_by_skimage(p: NDArray[np.bool_], t: NDArray[np.bool_]) -> float:
    from skimage.measure import label, regionprops

    def touched(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> list[bool]:
        parts = regionprops(label(mask, connectivity=mask.ndim))
        return [bool(other[tuple(part.coords.T)].any()) for part in parts]

    found, right = touched(t, p), touched(p, t)
    return 2 * sum(found) / (2 * sum(found) + found.count(False) + right.count(False))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 volumes of 32 x 32 x 32, 50 random masks")
    parser.add_argument("--json", default="-", help="where the figures go; - for standard output")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    before = circumstances(_PACKAGES)
    size = (8, 32, 1) if given.quick else (200, 64, 3)
    speed, folders = measure_speed(*size), measure_folders(*size)
    equality = measure_equality(50 if given.quick else 5000)
    for figures in (speed, folders):
        print(f"{figures['cpu_seconds']}, ratio {figures['ratio']:.2f}", file=sys.stderr)
    print(equality, file=sys.stderr)
    write({**before, "speed": speed, "folders": folders, "equality": equality}, given.json)


if __name__ == "__main__":
    main()
