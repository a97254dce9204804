"""Pictures for reports: masks over images and maps of errors, as matplotlib figures; ``charts`` draws numbers.

Only matplotlib's objects are used, never ``pyplot``, so that no global state, window or backend is touched and a
report can be drawn on any thread. Nothing here writes files; ``report`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.labels import PALETTE, LabelSchema
from napari_unet.domain.scan import Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]

#: Soft tissue, the window in which abdominal CT is read.
_CT_WINDOW = (-160.0, 240.0)

_INK = "#1f2933"
#: Classes differ in the pattern of their contour too, not in colour alone.
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
#: What an error map shows: name, colour, hatch.
_ERRORS: tuple[tuple[str, Colour, str | None], ...] = (
    ("missed", PALETTE[1], None),
    ("surplus", PALETTE[5], "////"),
    ("wrong class", PALETTE[4], "...."),
)


@dataclass(frozen=True, eq=False)
class ReportPicture:
    """One plane of a scan with one or more predictions and, where known, the truth.

    Parameters
    ----------
    name : str
        Short name, part of the file's name.
    title : str
        Heading.
    image : (h, w) or (h, w, 3) array
        The plane as read.
    predictions : tuple of (str, (h, w) array)
        Caption and labels, such as ``("Before", ...), ("After", ...)``.
    truth : (h, w) array or None
        True labels.
    schema : LabelSchema
        Names and colours of the labels.
    pixel_size : (float, float)
        Height and width of a pixel, in any one unit.
    window : (float, float) or None
        Intensities shown black and white; None: the 0.5 and 99.5 percentiles.
    sides : (str, str)
        Letters for the patient's side at the left and right edge, such as ``("R", "L")``; empty where unknown.
    """

    name: str
    title: str
    image: NDArray
    predictions: tuple[tuple[str, NDArray], ...]
    truth: NDArray | None
    schema: LabelSchema
    pixel_size: tuple[float, float] = (1.0, 1.0)
    window: tuple[float, float] | None = None
    sides: tuple[str, str] = ("", "")


def picture_of_scan(
    scan: Scan,
    predictions: Mapping[str, NDArray],
    truth: NDArray | None,
    schema: LabelSchema,
    *,
    name: str,
    title: str,
    index: int | None = None,
) -> ReportPicture:
    """Cut one acquired plane out of a scan and its masks, upright, in the proportions of the patient.

    Parameters
    ----------
    scan : Scan
        2D or a volume.
    predictions : mapping of str to array
        Caption to labels over the scan's spatial axes, in the order to be shown.
    truth : array or None
        True labels, same shape.
    schema : LabelSchema
        Names and colours.
    name, title : str
        Of the picture.
    index : int, optional
        Which plane. By default the one that shows most classes, and of those most foreground, of the truth (or of the
        first prediction): chosen by content, not by how good the prediction is there.
    """
    reference = truth if truth is not None else next(iter(predictions.values()))
    if index is None:
        planes = scan.to_planes(reference)
        index = max(range(len(planes)), key=lambda i: (len(np.unique(planes[i])), np.count_nonzero(planes[i])))
    axis = scan.slice_axis
    known = axis is not None and scan.geometry.affine is not None
    # Rows of coronal and sagittal planes run along z, which rises to the head; pictures have the head on top.
    upside_down = known and axis in (1, 2)

    def cut(array: NDArray) -> NDArray:
        plane = scan.to_planes(array)[index]
        # A copy, so that the picture does not hold the volume.
        return (plane[::-1] if upside_down else plane).copy()

    spacing = [s for i, s in enumerate(scan.spacing_or_unit) if i != axis]
    image = cut(scan.data)
    if scan.has_channels:
        image = image[..., :3] if scan.is_rgb else image[..., 0]
    return ReportPicture(
        name,
        title,
        image,
        tuple((caption, cut(labels)) for caption, labels in predictions.items()),
        None if truth is None else cut(truth),
        schema,
        (spacing[0], spacing[1]),
        _CT_WINDOW if scan.modality == "CT" else None,
        ("", "") if not known else ("A", "P") if axis == 2 else ("R", "L"),
    )


def overlay_figure(
    image_plane: NDArray,
    labels: NDArray,
    schema: LabelSchema,
    title: str,
    *,
    pixel_size: tuple[float, float] = (1.0, 1.0),
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw one plane with its labels: tinted areas, contours, and a legend of the classes.

    Parameters
    ----------
    image_plane : (h, w) or (h, w, 3) array
        Grey values or red, green, blue.
    labels : (h, w) integer array
        Values of the schema; 0 is background.
    schema : LabelSchema
        Names and colours.
    title : str
        Heading.
    pixel_size, window
        As in :class:`ReportPicture`.
    """
    picture = ReportPicture("", title, image_plane, (("", labels),), None, schema, pixel_size, window)
    handles = _class_handles(picture)
    figure, ((axes,),) = _panels(picture, 1, 1, handles)
    _show_labels(axes, picture, labels)
    return figure


def comparison_figure(picture: ReportPicture) -> Figure:
    """Draw a scan, its predictions, the truth, and the map of each prediction's errors.

    One prediction: all in one row. Several with a truth: the scan above the truth, then one column per prediction above
    its errors.
    """
    handles = _class_handles(picture) + _error_handles(picture)
    if picture.truth is not None and len(picture.predictions) == 1:
        figure, ((scan, prediction, truth, errors),) = _panels(picture, 1, 4, handles)
        panels = [[scan, prediction], [truth, errors]]
    else:
        rows = 1 if picture.truth is None else 2
        figure, panels = _panels(picture, rows, 1 + len(picture.predictions), handles)
    from matplotlib.patheffects import withStroke

    _show_image(panels[0][0], picture, caption="Scan")
    halo = withStroke(linewidth=2.5, foreground="black")
    for side, x, align in zip(picture.sides, (0.02, 0.98), ("left", "right"), strict=True):
        panels[0][0].text(
            x,
            0.5,
            side,
            transform=panels[0][0].transAxes,
            color="white",
            fontsize=10,
            ha=align,
            va="center",
            path_effects=[halo],
        )
    for column, (caption, labels) in enumerate(picture.predictions, start=1):
        _show_labels(panels[0][column], picture, labels, caption)
        if picture.truth is not None:
            _show_errors(panels[1][column], picture, labels, picture.truth, f"{caption}: errors")
    if picture.truth is not None:
        _show_labels(panels[1][0], picture, picture.truth, "Truth")
    return figure


def _panels(picture: ReportPicture, rows: int, columns: int, handles: list[Any]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a heading, black panels in the picture's proportions, and a legend below them."""
    from matplotlib.figure import Figure

    height, width = (n * s for n, s in zip(picture.image.shape[:2], picture.pixel_size, strict=True))
    panel_width = 2.5 if columns > 3 else 3.2
    panel_height = panel_width * float(np.clip(height / width, 0.4, 2.0))
    gap, caption, head = 0.12, 0.28 if rows * columns > 1 else 0.0, 0.42
    full_width = columns * panel_width + (columns + 1) * gap
    per_line = int(full_width / 1.1)
    foot = 0.22 + 0.22 * -(-len(handles) // per_line)
    full_height = head + rows * (panel_height + caption) + (rows - 1) * gap + foot
    figure = Figure(figsize=(full_width, full_height), facecolor="white")
    figure.text(
        gap / full_width,
        1 - 0.24 / full_height,
        picture.title,
        fontsize=12.5,
        weight="bold",
        color=_INK,
        va="center",
        parse_math=False,
    )
    panels = []
    for row in range(rows):
        bottom = full_height - head - (row + 1) * (panel_height + caption) - row * gap
        lefts = [gap + column * (panel_width + gap) for column in range(columns)]
        boxes = [(x / full_width, bottom / full_height) for x in lefts]
        size = (panel_width / full_width, panel_height / full_height)
        panels.append([figure.add_axes((x, y, *size), facecolor="black", xticks=[], yticks=[]) for x, y in boxes])
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=min(per_line, len(handles)), frameon=False, fontsize=9,
            labelcolor=_INK, handlelength=2.6, columnspacing=1.6, borderaxespad=0.3,
        )  # fmt: skip
    return figure, panels


def _show_image(axes: Axes, picture: ReportPicture, caption: str = "", dimmed: float = 1.0) -> None:
    shown = _display(picture.image, picture.window) * dimmed
    height, width = picture.pixel_size
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect=height / width)
    axes.set_title(caption, fontsize=10, color=_INK, loc="left", pad=4, parse_math=False)
    axes.spines[:].set_visible(False)
    # Contours that close at the edge reach a pixel beyond it.
    axes.set_autoscale_on(False)


def _show_labels(axes: Axes, picture: ReportPicture, labels: NDArray, caption: str = "") -> None:
    from matplotlib.patheffects import withStroke

    _show_image(axes, picture, caption)
    for position, label in enumerate(picture.schema.classes):
        mask = labels == label.id
        if mask.any():
            _tint(axes, picture, mask, label.colour, 0.25)
            _contour(
                axes,
                mask,
                label.colour,
                _DASHES[position % len(_DASHES)],
                withStroke(linewidth=2.8, foreground="black"),
            )


def _show_errors(axes: Axes, picture: ReportPicture, labels: NDArray, truth: NDArray, caption: str) -> None:
    _show_image(axes, picture, caption, dimmed=0.55)
    for mask, (_, colour, hatch) in zip(_error_masks(labels, truth), _ERRORS, strict=True):
        if not mask.any():
            continue
        _tint(axes, picture, mask, colour, 0.85)
        if hatch is not None:
            axes.contourf(_framed(mask), [0.5, 1.5], colors="none", hatches=[hatch], extent=_extent(mask))


def _error_masks(labels: NDArray, truth: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what is missed, surplus, and foreground of the wrong class."""
    return (truth > 0) & (labels == 0), (labels > 0) & (truth == 0), (labels > 0) & (truth > 0) & (labels != truth)


def _tint(axes: Axes, picture: ReportPicture, mask: NDArray[np.bool_], colour: Colour, alpha: float) -> None:
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (*colour, alpha)
    height, width = picture.pixel_size
    axes.imshow(layer, interpolation="nearest", aspect=height / width)


def _contour(axes: Axes, mask: NDArray[np.bool_], colour: Colour, dashes: Any, halo: Any) -> None:
    lines = axes.contour(
        _framed(mask), [0.5], colors=[colour], linewidths=1.5, linestyles=[dashes], extent=_extent(mask)
    )
    lines.set_path_effects([halo])


def _framed(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mask with a border of background, so that contours close at the picture's edge."""
    return np.pad(mask.astype(float), 1)


def _extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return where the centres of a framed mask's first and last pixels lie, in pixels of the mask."""
    return -1, mask.shape[1], -1, mask.shape[0]


def _display(plane: NDArray, window: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return intensities between 0 (black) and 1 (white)."""
    low, high = window or np.percentile(plane, (0.5, 99.5))
    if plane.ndim == 3 and plane.dtype == np.uint8:
        low, high = 0, 255
    return np.clip((plane.astype(float) - low) / max(float(high - low), 1e-12), 0, 1)


def _class_handles(picture: ReportPicture) -> list[Any]:
    from matplotlib.lines import Line2D

    arrays = [labels for _, labels in picture.predictions] + ([] if picture.truth is None else [picture.truth])
    present = set(np.unique(np.concatenate([np.unique(a) for a in arrays])).tolist())
    return [
        Line2D([], [], color=c.colour, linewidth=2.4, linestyle=_DASHES[i % len(_DASHES)], label=c.name)
        for i, c in enumerate(picture.schema.classes)
        if c.id in present
    ]


def _error_handles(picture: ReportPicture) -> list[Any]:
    from matplotlib.patches import Patch

    truth = picture.truth
    if truth is None:
        return []
    masks = [_error_masks(labels, truth) for _, labels in picture.predictions]
    return [
        Patch(facecolor=colour, hatch=hatch, label=name, linewidth=0)
        for i, (name, colour, hatch) in enumerate(_ERRORS)
        if any(errors[i].any() for errors in masks)
    ]
