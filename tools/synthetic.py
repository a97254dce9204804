"""Pictures of nothing in particular, with exact truth: starter weights learn shapes from them, not intensities.

In the spirit of SynthSeg (Billot et al. 2023, Medical Image Analysis 86) and AnyStar (Dey et al. 2024, WACV): shapes
are drawn at random, every material in them gets a random intensity and texture, and blur, bias field and noise follow,
so that only shape tells what is what. No files and no training here::

    python tools/synthetic.py docs/images/synthetic.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter, minimum_filter
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
#: Shares of pictures.
_TEXTURE_ONLY, _STACKED, _SPECKLED = 0.1, 0.5, 0.3


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and its truth.

    Parameters
    ----------
    image : (3, edge, edge) float32 array
        The slice below, the slice, and the one above, together of mean 0 and deviation 1; three copies in half of the
        pictures.
    labels : (edge, edge) uint8 array
        Of the slice; 0 is background.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is drawn: which material each pixel is of, how much its part differs from others of it, and the truth."""

    material: NDArray[np.intp]
    shade: NDArray[np.float64]
    labels: NDArray[np.uint8]


def picture(kind: str, edge: int, rng: np.random.Generator) -> Picture:
    """Draw a picture.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    edge : int
        Pixels along each side.
    rng : numpy Generator
        Source of chance.
    """
    scene = KINDS[kind](edge, rng)
    return Picture(_render(scene, rng), scene.labels)


# -- noise and textures -----------------------------------------------------------------------------------------------


def _smooth(edge: int, cells: tuple[float, float] | float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return smooth noise of about unit deviation with so many waves along each axis."""
    along = (cells, cells) if isinstance(cells, int | float) else cells
    coarse = torch.from_numpy(rng.standard_normal([int(np.ceil(n)) + 3 for n in along]))
    return F.interpolate(coarse[None, None], (edge, edge), mode="bicubic", align_corners=True)[0, 0].numpy()


def _texture(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a texture of about unit deviation: clouds, streaks or grain."""
    kind = rng.integers(3)
    if kind == 0:
        return sum(_smooth(edge, rng.uniform(2, 8) * 3.0**octave, rng) / 1.5**octave for octave in range(3)) / 1.5
    if kind == 1:
        fine = rng.uniform(edge / 12, edge / 3)
        return _smooth(edge, (fine, fine / rng.uniform(3, 10))[:: rng.choice([-1, 1])], rng)
    grain = gaussian_filter(rng.standard_normal((edge, edge)), rng.uniform(0, 1.5))
    return grain / grain.std()


def _shades(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return intensities of materials about 0 to 1: all different, or (in some pictures) told apart by texture only."""
    if rng.random() < _TEXTURE_ONLY:
        return 0.5 + rng.uniform(-0.05, 0.05, n)
    even = np.linspace(0, 1, n) + rng.uniform(-0.3, 0.3, n) / max(1, n - 1)
    return rng.permutation(even)


def _render(scene: _Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give materials intensities and textures, then do what a scanner does."""
    edge, n = len(scene.material), int(scene.material.max()) + 1
    textures = np.stack([_texture(edge, rng) for _ in range(n)])
    strength = rng.uniform(0, 0.25, n)
    image = _shades(n, rng)[scene.material] + rng.uniform(0, 0.2) * scene.shade
    image += strength[scene.material] * np.take_along_axis(textures, scene.material[np.newaxis], 0)[0]
    image *= np.exp(rng.uniform(0, 0.4) * _smooth(edge, 1, rng))
    image += rng.uniform(0, 0.3) * _smooth(edge, 1, rng)
    stack = _neighbours(gaussian_filter(image, rng.uniform(0, 1.2)), rng)
    if rng.random() < _SPECKLED:
        stack *= 1 + rng.uniform(0.1, 0.4) * _noise_like(stack, rng)
    stack += rng.uniform(0, 0.15) * _noise_like(stack, rng)
    return ((stack - stack.mean()) / max(stack.std(), 1e-6)).astype(np.float32)


def _noise_like(stack: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise, somewhat correlated within the plane; equal slices get equal noise: they are one picture."""
    n = 1 if np.array_equal(stack[0], stack[1]) else 3
    noise = gaussian_filter(rng.standard_normal((n, *stack.shape[1:])), (0, *(rng.uniform(0, 0.8),) * 2))
    return np.broadcast_to(noise / noise.std(), stack.shape)


def _neighbours(image: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the slices below, at and above: the same, or shapes that move on from slice to slice."""
    if rng.random() > _STACKED:
        return np.stack([image] * 3)
    edge = len(image)
    moves = np.stack([_smooth(edge, 3, rng) + rng.normal() for _ in range(2)], axis=-1) * rng.uniform(0.5, 3)
    unit = torch.linspace(-1, 1, edge, dtype=torch.float64)
    here = torch.stack(torch.meshgrid(unit, unit, indexing="xy"), dim=-1)
    beside = torch.from_numpy(moves * 2 / (edge - 1))
    grid = torch.stack([here - beside, here, here + beside])
    source = torch.from_numpy(image).expand(3, 1, -1, -1)
    return F.grid_sample(source, grid, padding_mode="border", align_corners=True)[:, 0].numpy()


# -- shapes -----------------------------------------------------------------------------------------------------------


def _star(edge: int, centre: NDArray[np.float64], radius: float, rng: np.random.Generator) -> Mask:
    """Return a star-convex shape: a circle with random waves along its rim, squeezed and turned."""
    found = np.zeros((edge, edge), bool)
    # The rim reaches no farther than this but by a wave in a thousand.
    box = tuple(slice(max(0, int(at - 2 * radius)), max(0, int(at + 2 * radius) + 1)) for at in centre)
    y, x = np.mgrid[box] - centre[:, None, None]
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    along, across = np.cos(turn) * x + np.sin(turn) * y, (np.cos(turn) * y - np.sin(turn) * x) / squeeze
    angle = np.arctan2(across, along)
    rim = np.ones_like(angle)
    for wave in range(2, 6):
        rim += rng.normal(0, 0.25 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    inside = np.hypot(along, across) < radius * np.clip(rim, 0.3, None)
    target = found[box]
    target[:] = inside[: target.shape[0], : target.shape[1]]
    return found


def _many_stars(edge: int, n: int, radius: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the number of the shape at each pixel, from 1; 0 between them. Later shapes keep off earlier ones."""
    found = np.zeros((edge, edge), np.intp)
    for number in range(1, n + 1):
        shape = _star(edge, rng.uniform(0, edge, 2), radius * np.exp(rng.normal(0, 0.3)), rng)
        if not found[shape].any():
            found[shape] = number
    return found


def _parts(edge: int, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return a division of the plane into smoothly bordered parts of ``n`` kinds."""
    cells = rng.uniform(1, 6)
    return np.argmax([_smooth(edge, cells, rng) for _ in range(n)], axis=0)


def _tree(edge: int, width: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the places (n, 2) and radii (n,) along some branching lines that grow in from the border."""
    side = rng.uniform(0, 2 * np.pi, rng.integers(3, 9))
    rim = edge / 2 + 0.55 * edge * np.stack([np.sin(side), np.cos(side)], axis=1)
    growing = [
        (at, angle + np.pi + rng.normal(0, 0.4), width * rng.uniform(0.6, 1))
        for at, angle in zip(rim, side, strict=True)
    ]
    places, radii = [], []
    curl, forking = rng.uniform(0.002, 0.015), rng.uniform(0.005, 0.03)
    while growing and len(places) < 20 * edge:
        at, angle, radius = growing.pop()
        bend = 0.0
        while radius > 0.4 and np.abs(at - edge / 2).max() < edge:
            places.append(at)
            radii.append(radius)
            bend = 0.95 * bend + rng.normal(0, curl)
            angle, radius = angle + bend, radius * 0.998
            # Places are (y, x), angles run from x to y.
            at = at + np.array([np.sin(angle), np.cos(angle)])
            if rng.random() < forking:
                fork = rng.uniform(0.3, 1.0) * rng.choice([-1, 1])
                growing.append((at, angle + fork, radius * rng.uniform(0.5, 0.9)))
                radius *= 0.95
    return np.array(places), np.array(radii)


def _lines(edge: int, width: float, rng: np.random.Generator) -> Mask:
    """Return branching lines as a mask, thickest ``2 * width`` pixels across."""
    places, radii = _tree(edge, width, rng)
    pixels = np.rint(places).astype(int)
    inside = ((pixels >= 0) & (pixels < edge)).all(1)
    pixels, steps = pixels[inside], np.rint(2 * radii[inside])
    found = np.zeros((edge, edge), bool)
    for step in np.unique(steps):
        marks = np.ones((edge, edge), bool)
        marks[tuple(pixels[steps == step].T)] = False
        found |= distance_transform_edt(marks) <= max(step / 2 - 0.5, 0.5)
    return found


def _shade_of(parts: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how much each part differs from the others of its material."""
    return rng.standard_normal(int(parts.max()) + 1)[parts]


# -- kinds of pictures ------------------------------------------------------------------------------------------------


def _membranes(edge: int, rng: np.random.Generator) -> _Scene:
    """Cells that fill the plane, to be told from the thin walls between them; what floats in cells is no wall."""
    seeds = rng.uniform(-0.1, 1.1, (int(rng.integers(12, 140)), 2)) * edge
    bend = rng.uniform(0, 10)
    place = np.mgrid[:edge, :edge] + bend * np.stack([_smooth(edge, rng.uniform(3, 10), rng) for _ in range(2)])
    distance, nearest = cKDTree(seeds).query(place.reshape(2, -1).T, k=2)
    cell = nearest[:, 0].reshape(edge, edge)
    wall = np.diff(distance, axis=1).reshape(edge, edge) < rng.uniform(2, 7) * (1 + 0.25 * _smooth(edge, 4, rng))
    material = np.where(wall, 1, (rng.random(len(seeds)) < rng.uniform(0, 0.5)).astype(int)[cell] * 2)
    floating = _many_stars(edge, int(rng.integers(0, 25)), rng.uniform(2, 8), rng)
    core = (floating > 0) & ~wall
    material[core] = 3
    if rng.random() < 0.5:
        # Organelles have walls of their own.
        material[core & (minimum_filter(floating, 3) == 0)] = 1
    return _Scene(material, _shade_of(cell, rng) * ~wall, wall.astype(np.uint8))


def _vessels(edge: int, rng: np.random.Generator) -> _Scene:
    """Branching lines on a ground of several parts, with discs that are no lines."""
    line = _lines(edge, rng.uniform(1.2, 5), rng)
    ground = _parts(edge, int(rng.integers(1, 4)), rng)
    discs = _many_stars(edge, int(rng.integers(0, 4)), rng.uniform(6, 25), rng)
    material = np.where(discs > 0, ground.max() + 2, np.where(ground > 0, ground + 1, 0))
    return _Scene(np.where(line, 1, material), _smooth(edge, 6, rng) * line, line.astype(np.uint8))


def _blobs(edge: int, rng: np.random.Generator) -> _Scene:
    """Roundish things, few and large or many and small, with lines and a ground that are none."""
    radius = np.exp(rng.uniform(np.log(4), np.log(40)))
    blob = _many_stars(edge, int(np.clip((edge / radius) ** 2 * rng.uniform(0.05, 0.3), 2, 50)), radius, rng)
    ground = _parts(edge, int(rng.integers(1, 4)), rng)
    material = np.where(ground > 0, ground + 1, 0)
    if rng.random() < 0.5:
        material[_lines(edge, rng.uniform(0.7, 3), rng)] = ground.max() + 2
    inside = blob > 0
    return _Scene(np.where(inside, 1, material), _shade_of(blob, rng) * inside, inside.astype(np.uint8))


def _chambers(edge: int, rng: np.random.Generator) -> _Scene:
    """Hollow things: their hollow (1) and their wall (2), among things of either material that are not hollow."""
    ground = _parts(edge, int(rng.integers(1, 4)), rng)
    material, labels = np.where(ground > 0, ground + 2, 0), np.zeros((edge, edge), np.uint8)
    solid = _many_stars(edge, int(rng.integers(0, 8)), rng.uniform(4, 18), rng)
    material[solid > 0] = rng.integers(1, 3, int(solid.max()) + 1)[solid[solid > 0]]
    for _ in range(int(rng.integers(1, 4))):
        radius, centre = rng.uniform(10, 45), rng.uniform(0.1, 0.9, 2) * edge
        outer = _star(edge, centre, radius, rng)
        depth = distance_transform_edt(outer)
        inner = depth > depth.max() * rng.uniform(0.25, 0.6)
        material[outer], labels[outer] = 2, 2
        material[inner], labels[inner] = 1, 1
    return _Scene(material, _smooth(edge, 5, rng) * (labels > 0), labels)


def _seams(edge: int, rng: np.random.Generator) -> _Scene:
    """The borders between parts of different materials."""
    part = _parts(edge, int(rng.integers(2, 7)), rng)
    seam = maximum_filter(part, 3) != minimum_filter(part, 3)
    return _Scene(part, _smooth(edge, 5, rng), seam.astype(np.uint8))


#: What can be drawn.
KINDS: dict[str, Callable[[int, np.random.Generator], _Scene]] = {
    "membranes": _membranes,
    "vessels": _vessels,
    "blobs": _blobs,
    "chambers": _chambers,
    "seams": _seams,
}
#: Classes of each kind, background not counted.
CLASSES: dict[str, tuple[str, ...]] = {
    "membranes": ("wall",),
    "vessels": ("vessel",),
    "blobs": ("blob",),
    "chambers": ("hollow", "wall"),
    "seams": ("seam",),
}


def make_sheet(path: Path, columns: int = 6, edge: int = 192) -> None:
    """Write some pictures of each kind, the truth outlined, as one PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(KINDS), columns, figsize=(1.6 * columns, 1.7 * len(KINDS)))
    for row, kind in zip(axes, KINDS, strict=True):
        for column, cell in enumerate(row):
            drawn = picture(kind, edge, np.random.default_rng(column))
            cell.imshow(drawn.image[1], cmap="gray", vmin=-2.2, vmax=2.2)
            if column % 2:
                for value, colour in zip(range(1, int(drawn.labels.max()) + 1), ("#ff9f40", "#40d0ff"), strict=False):
                    cell.contour(drawn.labels == value, [0.5], colors=colour, linewidths=0.5)
            cell.set_axis_off()
        row[0].set_title(kind, fontsize=8, loc="left")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    make_sheet(Path(sys.argv[1]))
