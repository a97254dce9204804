"""Makes the sheets of ``docs/augmentation.md`` in ``docs/images``, from a computed patient: what each setting does.

python docs/make_augmentation_sheets.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import AugmentationSettings, PreparationSettings
from napari_unet.io.samples import ct_phantom
from napari_unet.patches.augment import change_intensities, random_transform
from napari_unet.patches.prepare import prepare

IMAGES = Path(__file__).parent / "images"
_PATIENT, _PLANE = 3, 30
_PATCH = (96, 112)
_WINDOW = (-120.0, 240.0)
_OFF = AugmentationSettings(probability=1, rotation_degrees=0, scale=0, brightness=0, contrast=0, gamma=0, noise=0)
_COLOURS = ("#ff9f40", "#40d0ff", "#ff60c0", "#80ff60")
_VEIL = "#1a3399"
_DRAWS = 3
#: So many draws are searched for the ends of a range.
_SEARCHED = 600


class _End(np.random.Generator):
    """Chance that always draws one end of a range: 0 the lower, 1 the upper."""

    def __init__(self, end: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._end = end

    def uniform(self, low=0.0, high=1.0, size=None):
        drawn = low + self._end * (high - low)
        return drawn if size is None else np.full(size, drawn)

    def choice(self, options, size):
        return np.full(size, options[0])


Cell = tuple[str, NDArray, NDArray]


def _show(axes: Axes, title: str, image: NDArray, labels: NDArray, reviewed: NDArray | None = None) -> None:
    axes.imshow(image, cmap="gray", vmin=-2.2, vmax=2.2, interpolation="nearest")
    if reviewed is not None:
        # What is outside the scan is not known, and does not count.
        veil = np.zeros((*reviewed.shape, 4))
        veil[~reviewed] = mpl.colors.to_rgba(_VEIL, 0.55)
        axes.imshow(veil, interpolation="nearest")
    for value, colour in enumerate(_COLOURS, 1):
        if (labels == value).any():
            axes.contour(labels == value, [0.5], colors=colour, linewidths=1.1)
    axes.set_title(title, fontsize=7, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _sheet(rows: int, columns: int, height: float) -> tuple[Figure, NDArray]:
    figure, axes = plt.subplots(rows, columns, figsize=(1.45 * columns, height * rows), squeeze=False, dpi=100)
    figure.subplots_adjust(0.01, 0.005, 0.995, 0.975, wspace=0.03, hspace=0.16)
    return figure, axes


def _save(figure: Figure, name: str) -> None:
    path = IMAGES / name
    figure.savefig(path)
    plt.close(figure)
    with Image.open(path) as picture:
        fewer = picture.convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)
        fewer.save(path, optimize=True)


def _palette() -> Image.Image:
    """Return 44 greys, and the colours mixed with some: files of a third of the size, in which grey stays grey."""
    greys = np.linspace(0, 255, 44).round()[:, None].repeat(3, 1)
    colours = np.array([mpl.colors.to_rgb(c) for c in (*_COLOURS, _VEIL, "#4060a0")]) * 255
    mixed = [share * c + (1 - share) * g for c in colours for share in (0.35, 0.55, 0.8) for g in greys[::6]]
    entries = np.concatenate((greys, colours, mixed)).round().astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries.tobytes())
    return palette


def _cut(image: Tensor, labels: Tensor, grid: Tensor) -> tuple[NDArray, NDArray, NDArray]:
    """Return image, labels and what is known of one patch, as training cuts it."""
    known = torch.stack((labels.float(), torch.ones(labels.shape)))[None]
    seen = F.grid_sample(image[None, None], grid, padding_mode="border", align_corners=True)[0, 0]
    value, reviewed = F.grid_sample(known, grid, mode="nearest", padding_mode="zeros", align_corners=True)[0]
    return seen.numpy(), value.round().numpy().astype(int), reviewed.numpy() > 0.5


def _draw_geometry(image: Tensor, labels: Tensor) -> None:
    """One row per setting: unchanged, both ends, and some draws."""
    turn, all_on = {"rotation_degrees": 45}, {"rotation_degrees": 15, "scale": 0.15, "shift": 0.1, "elastic": 0.5}
    rows: list[tuple[dict, tuple[str, dict, float], tuple[str, dict, float]]] = [
        (turn, ("rotation -45", turn, 0), ("rotation +45", turn, 1)),
        ({"scale": 0.3}, ("scale 0.7: less is read", {"scale": 0.3}, 0), ("scale 1.3: more is", {"scale": 0.3}, 1)),
        ({"shift": 0.2}, ("shift -0.2", {"shift": 0.2}, 0), ("shift +0.2", {"shift": 0.2}, 1)),
        ({"mirror": (0, 1)}, ("mirror rows", {"mirror": (0,)}, 0), ("mirror columns", {"mirror": (1,)}, 0)),
        ({"elastic": 1}, ("elastic 0.5", {"elastic": 0.5}, -1), ("elastic 1", {"elastic": 1}, -1)),
        (all_on, ("these together, -", all_on, 0), ("these together, +", all_on, 1)),
    ]
    figure, axes = _sheet(len(rows), 3 + _DRAWS, 1.42)
    shape = tuple(image.shape)
    centre = np.array(shape) // 2

    def cell(place: Axes, title: str, changes: dict, rng: np.random.Generator) -> None:
        settings = _OFF.model_copy(update=changes)
        _show(place, title, *_cut(image, labels, random_transform(shape, _PATCH, centre, settings, rng)))

    for row, (changes, *ends) in enumerate(rows):
        cell(axes[row, 0], "unchanged", {}, np.random.default_rng(0))
        for column, (title, change, end) in enumerate(ends, 1):
            cell(axes[row, column], title, change, np.random.default_rng(4) if end < 0 else _End(end))
        rng = np.random.default_rng(row)
        for column in range(3, 3 + _DRAWS):
            cell(axes[row, column], f"draw {column - 2}", changes, rng)
    _save(figure, "augmentation_geometry.png")


def _draw_intensities(image: Tensor, labels: Tensor) -> None:
    """One row per setting: unchanged, the two ends of many draws, and some draws."""
    rows = {"brightness": 0.5, "contrast": 0.5, "gamma": 0.5, "noise": 0.3, "blur": 2.0, "low_resolution": 0.75}
    measures = {
        "brightness": lambda x: x.mean((1, 2, 3)),
        "contrast": lambda x: x.std((1, 2, 3)),
        # Above 1 gamma darkens.
        "gamma": lambda x: -x.mean((1, 2, 3)),
    }
    figure, axes = _sheet(len(rows) + 1, 3 + _DRAWS, 1.42)
    grid = random_transform(tuple(image.shape), _PATCH, np.array(image.shape) // 2, _OFF, np.random.default_rng(0))
    patch, outline, _ = _cut(image, labels, grid)
    one = torch.from_numpy(patch)[None, None]
    for row, (name, strength) in enumerate(rows.items()):
        settings = _OFF.model_copy(update={name: strength})
        many = change_intensities(one.repeat(_SEARCHED, 1, 1, 1), settings, torch.Generator().manual_seed(row))
        difference = (many - one).flatten(1).norm(dim=1)
        changed = many[difference > 1e-3]
        order = measures.get(name, lambda x: (x - one).flatten(1).norm(dim=1))(changed).argsort()
        _show(axes[row, 0], "unchanged", patch, outline)
        signed = name in measures
        low = f"{name} {'-' if name == 'brightness' else '1 - '}{strength:g}" if signed else f"{name} near 0"
        high = f"{name} {'+' if name == 'brightness' else '1 + '}{strength:g}" if signed else f"{name} {strength:g}"
        for column, (title, index) in enumerate(((low, order[0]), (high, order[-1])), 1):
            _show(axes[row, column], title, changed[index, 0].numpy(), outline)
        for column in range(_DRAWS):
            _show(axes[row, 3 + column], f"draw {column + 1}", changed[column, 0].numpy(), outline)
    usual = AugmentationSettings(blur=1, low_resolution=0.5)
    _show(axes[-1, 0], "unchanged", patch, outline)
    many = change_intensities(one.repeat(2 + _DRAWS, 1, 1, 1), usual, torch.Generator().manual_seed(0))
    for column, changed_patch in enumerate(many, 1):
        _show(axes[-1, column], f"usual strengths, draw {column}", changed_patch[0].numpy(), outline)
    _save(figure, "augmentation_intensity.png")


def _draw_preparation(scan: Scan, labels: NDArray) -> None:
    """Each preparation above the histogram of what the network then sees."""
    window: dict = {"window": _WINDOW}
    coarse = (scan.spacing_or_unit[0], *(2.5 * step for step in scan.spacing_or_unit[1:]))
    cells: dict[str, dict] = {
        "normalisation=none": {"normalisation": "none", "clip_percentiles": None},
        "unit, clipped": {"normalisation": "unit"},
        "symmetric, clipped": {"normalisation": "symmetric"},
        "zscore, clipped": {},
        "window": window,
        "zscore, equalise=histogram": {"equalise": "histogram"},
        "window, equalise=histogram": {**window, "equalise": "histogram"},
        "zscore, equalise=clahe": {"equalise": "clahe"},
        "window, equalise=clahe": {**window, "equalise": "clahe"},
        "window, spacing 2.5 x coarser": {**window, "spacing": coarse},
    }
    figure, axes = plt.subplots(4, 5, figsize=(9, 5.6), dpi=100, height_ratios=(3, 1, 3, 1))
    for index, (title, changes) in enumerate(cells.items()):
        settings = PreparationSettings(**changes)
        values, (row, column) = prepare(scan, settings)[0], divmod(index, 5)
        plane, outline = values[_PLANE], labels[_PLANE]
        if settings.spacing is not None:  # as training then reads it
            half = (plane.shape[0] // 2, plane.shape[1] // 2)
            patch = (round(plane.shape[0] / 2.5), round(plane.shape[1] / 2.5))
            grid = random_transform(plane.shape, patch, np.array(half), _OFF, np.random.default_rng(0), (2.5, 2.5))
            plane, outline, _ = _cut(torch.from_numpy(plane), torch.from_numpy(outline), grid)
        low, high = float(values.min()), float(values.max())
        _show(axes[2 * row, column], title, (plane - (low + high) / 2) * 4.4 / (high - low), outline)
        bars = axes[2 * row + 1, column]
        counts, *_ = bars.hist(values.ravel(), 60, color="#4060a0")
        bars.set_ylim(0, 1.3 * np.sort(counts)[-3])  # air leaves the picture
        bars.set_yticks([])
        bars.tick_params(labelsize=6, pad=1, length=2)
        bars.spines[["top", "left", "right"]].set_visible(False)
    figure.subplots_adjust(0.01, 0.035, 0.99, 0.965, wspace=0.06, hspace=0.2)
    _save(figure, "preparation.png")


def main() -> None:
    """Draw and write all sheets."""
    mpl.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    scan, truth, _ = ct_phantom(_PATIENT)
    plane = torch.from_numpy(prepare(scan, PreparationSettings(window=_WINDOW))[0, _PLANE])
    labels = torch.from_numpy(truth[_PLANE])
    _draw_geometry(plane, labels)
    _draw_intensities(plane, labels)
    _draw_preparation(scan, truth)


if __name__ == "__main__":
    main()
