"""DICOM to Scan: a series in a folder, a single picture, or a file with many frames.

The parts: :mod:`header` reads one header, :mod:`series` sorts planes into series and volumes,
:mod:`grid` finds out where slices stand, :mod:`pixels` decodes, :mod:`resample` mends uneven stacks.
Voxels are flipped and permuted only, unless resampling was asked for. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from napari_unet.domain.errors import UntrustedError, UntrustedGeometryError
from napari_unet.domain.geometry import AxisMap, Geometry, orientation_codes
from napari_unet.domain.scan import Scan, SeriesInfo
from napari_unet.io.dicom.grid import Stack, plane_affine, stack_of
from napari_unet.io.dicom.header import Plane, quietly, read_planes
from napari_unet.io.dicom.pixels import check_voxels, read_voxels
from napari_unet.io.dicom.resample import labels_on_planes, resample
from napari_unet.io.dicom.series import choose_series, holds_images, is_dicom, open_source, repeated
from napari_unet.io.placement import axis_map_of, oddities
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import simplify_colour, tidy_voxels

_MOST_NAMED = 6
#: Stated and measured distances may differ by this share.
_SAME_STEP = 0.01


def read_dicom(path: Path, options: ReadOptions) -> Scan:
    """Read one volume or picture.

    Parameters
    ----------
    path : Path
        A folder, of which the files that lie directly in it count, or one file.
    options : ReadOptions
        ``series``: a UID or the beginning of one. ``volume``: a time point, or a picture of several.
        ``untrusted``: reads files without preamble, leaves damaged files of a folder and doubled slices out, and
        takes slices that form no regular grid to be their usual distance apart. ``resample``: interpolates
        stacks that lean or are uneven.

    Returns
    -------
    Scan
        ``zyx`` in LPS (``zyxc`` for colours), or ``yx``, ``yxc`` as stored for a lone plane.
        ``geometry.axis_map`` leads back to slice, row, column, with slices sorted along their normal;
        ``geometry.source_affine`` is DICOM's own matrix, from ``[column, row, slice, 1]`` to LPS mm, and
        ``source_orientation`` follows its columns. A resampled scan has no ``source_affine``: the way back to its
        slices is :func:`to_acquired_slices`. ``source_files`` are in the order of the slices as loaded.

    Raises
    ------
    SeriesChoiceError, VolumeChoiceError
        There are several and none was chosen.
    UntrustedGeometryError
        The slices form no regular grid.
    ScanError
        Damaged, no image, or not decodable.
    """
    with parsing(path, "DICOM"):
        contents = open_source(path, options.untrusted)
        series = choose_series(contents, options.series, path.name)
        if contents.damage is not None and not options.untrusted:
            raise contents.damage
        number = choose_volume(path, len(series.volumes), options.volume)
        _refuse_cut(series.volumes[number], options)
        voxels = _load(series.volumes[number], path.name, options)
        axes = "yx" if voxels.slice_axis is None else "zyx"
        raw = voxels.data
        data, axes, colour_notes = simplify_colour(raw, axes + "c" * (raw.ndim - len(axes)), has_opacity=False)
        data, number_notes = tidy_voxels(data, path.name)
    middle = voxels.planes[len(voxels.planes) // 2]
    return Scan(
        data,
        axes,
        voxels.geometry,
        slice_axis=voxels.slice_axis,
        modality=middle.modality or None,
        source=path,
        warnings=(*contents.notes, *_doubts(voxels.planes), *voxels.notes, *colour_notes, *number_notes),
        series=tuple(
            SeriesInfo(s.uid, s.description, data.shape, True) if s is series else s.info() for s in contents.series
        ),
        window=None if axes.endswith("c") else middle.window,
        inverted=middle.storage.photometric == "MONOCHROME1",
        source_files=tuple(dict.fromkeys(plane.storage.file for plane in voxels.planes)),
    )


def _refuse_cut(planes: Sequence[Plane], options: ReadOptions) -> None:
    cut = next((plane.storage.file.name for plane in planes if plane.storage.is_cut), None)
    if cut is not None and not options.untrusted:
        raise UntrustedError(
            f"{cut} is cut short, its compressed voxels have no end: copy it again, or load it as untrusted "
            "(--untrusted) to see what is left."
        )


def _doubts(planes: Sequence[Plane]) -> list[str]:
    """Return what was taken as it is because the person wanted that."""
    found = []
    if any(plane.storage.is_cut for plane in planes):
        found.append("loaded as untrusted: cut short, some of its voxels may be missing or wrong")
    if not all(plane.storage.has_preamble for plane in planes):
        found.append("loaded as untrusted: lacks the preamble that DICOM files begin with")
    return found


# ---- planes to voxels in their place ----


@dataclass(frozen=True, eq=False)
class _Voxels:
    """An array with its place; planes are in the order of the slices as loaded."""

    data: NDArray
    geometry: Geometry
    slice_axis: int | None
    planes: tuple[Plane, ...]
    notes: tuple[str, ...]


def _load(planes: Sequence[Plane], name: str, options: ReadOptions) -> _Voxels:
    if len(planes) == 1:
        return _picture(planes[0], options, [])
    if not planes[0].is_placed:
        return _unplaced(planes, name, options)
    planes, notes = _without_doubles(planes, name, options)
    if len(planes) == 1:
        return _picture(planes[0], options, notes)
    first = planes[0]
    assert first.orientation is not None
    assert first.spacing is not None
    positions = np.array([plane.position for plane in planes], float)
    stack = stack_of(positions, first.orientation, first.spacing, [plane.name for plane in planes])
    planes = [planes[i] for i in stack.order]
    notes += _measured_notes(planes, stack)
    if stack.fault is not None and stack.fault.can_resample and options.resample:
        return _resampled(planes, stack, options, notes)
    if stack.fault is not None:
        notes.append(_accept_fault(stack, name, options))
    axis_map = axis_map_of(orientation_codes(stack.affine))
    data = read_voxels(planes, axis_map, options.as_mask)
    notes += oddities(stack.affine)
    return _volume(data, stack.affine, (stack.step, *stack.pixel), axis_map, planes, notes)


def _volume(
    data: NDArray,
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float],
    axis_map: AxisMap,
    planes: Sequence[Plane],
    notes: Sequence[str],
    is_acquired: bool = True,
) -> _Voxels:
    source_affine = affine[:, [2, 1, 0, 3]]
    geometry = Geometry(
        spacing=tuple(spacing[axis] for axis in axis_map.permutation),
        affine=affine @ axis_map.index_matrix(data.shape[:3]),
        axis_map=axis_map,
        source_affine=source_affine if is_acquired else None,
        source_orientation=orientation_codes(source_affine),
    )
    slice_axis = axis_map.permutation.index(0)
    as_loaded = tuple(planes[::-1] if axis_map.flips[slice_axis] else planes)
    return _Voxels(data, geometry, slice_axis, as_loaded, tuple(notes))


def _resampled(planes: Sequence[Plane], stack: Stack, options: ReadOptions, notes: list[str]) -> _Voxels:
    assert stack.fault is not None
    frames, affine = resample(read_voxels(planes, AxisMap.identity(3), options.as_mask), stack)
    axis_map = axis_map_of(orientation_codes(affine))
    notes.append(f"resampled onto a regular grid: {stack.fault.what}")
    spacing = (float(np.linalg.norm(affine[:3, 0])), *stack.pixel)
    data = axis_map.to_loaded(frames)
    return _volume(data, affine, spacing, axis_map, planes, notes + oddities(affine), is_acquired=False)


def _picture(plane: Plane, options: ReadOptions, notes: list[str]) -> _Voxels:
    axis_map = AxisMap.identity(2)
    affine = None
    spacing = plane.spacing
    if spacing is None and plane.detector_spacing is not None:
        spacing = plane.detector_spacing
        notes = [*notes, "pixel size is that at the detector: things are smaller by the magnification"]
    if plane.position is not None and plane.orientation is not None and plane.spacing is not None:
        affine = plane_affine(plane.position, plane.orientation, plane.spacing)[:, [2, 1, 0, 3]]
    geometry = Geometry(
        spacing=spacing,
        axis_map=axis_map,
        source_affine=affine,
        source_orientation=None if affine is None else orientation_codes(affine),
    )
    return _Voxels(read_voxels([plane], axis_map, options.as_mask), geometry, None, (plane,), tuple(notes))


def _unplaced(planes: Sequence[Plane], name: str, options: ReadOptions) -> _Voxels:
    """Stack slices that do not say where they stand, if the person wants that."""
    if not options.untrusted:
        check_voxels(planes)
        raise UntrustedGeometryError(
            f"{name} does not say where its {len(planes)} slices stand (position, orientation or pixel size is "
            "missing): load it as untrusted (--untrusted) to stack them in the order of their numbers."
        )
    axis_map = AxisMap.identity(3)
    first = planes[0]
    between = first.between or first.thickness
    spacing = None if first.spacing is None or not between else (abs(between), *first.spacing)
    notes = ("loaded as untrusted: the slices do not say where they stand; order and directions are a guess",)
    data = read_voxels(planes, axis_map, options.as_mask)
    return _Voxels(data, Geometry(spacing, axis_map=axis_map), 0, tuple(planes), notes)


def _without_doubles(planes: Sequence[Plane], name: str, options: ReadOptions) -> tuple[list[Plane], list[str]]:
    doubled = repeated(planes)
    if not doubled:
        return list(planes), []
    spare = {index for place in doubled for index in place[1:]}
    if not options.untrusted:
        named = "; ".join(" and ".join(planes[index].name for index in place) for place in doubled[:_MOST_NAMED])
        more = f"; and {len(doubled) - _MOST_NAMED} more" if len(doubled) > _MOST_NAMED else ""
        places = "place" if len(doubled) == 1 else "places"
        raise UntrustedError(
            f"{name} holds more than one slice at {len(doubled)} {places} ({named}{more}): move the wrong files "
            "away, or load it as untrusted (--untrusted) to keep the first of each."
        )
    note = f"loaded as untrusted: {len(spare)} doubled slice{'s' * (len(spare) > 1)} left out, the first file kept"
    return [plane for index, plane in enumerate(planes) if index not in spare], [note]


def _accept_fault(stack: Stack, name: str, options: ReadOptions) -> str:
    """Return the warning about a stack loaded in spite of its fault."""
    fault = stack.fault
    assert fault is not None
    if options.untrusted:
        taken = "shown upright" if fault.kind == "tilted" else f"all slices taken to be {stack.step:.4g} mm apart"
        return f"loaded as untrusted, {taken}: {fault.what}"
    cure = "pass --resample to interpolate a regular grid, or --untrusted to load it as it is"
    if not fault.can_resample:
        cure = "add what is missing, or pass --untrusted to load it as it is"
    raise UntrustedGeometryError(f"{name} is no regular grid, {fault.what}: {cure}.", fault.can_resample)


def _measured_notes(planes: Sequence[Plane], stack: Stack) -> list[str]:
    """Say where tags contradict the measured step, which wins."""
    stated = {"SliceThickness": planes[0].thickness, "SpacingBetweenSlices": planes[0].between}
    return [
        f"{keyword} says {value:g} mm, positions say {stack.step:.4g} mm between slices: positions are used"
        for keyword, value in stated.items()
        if value and abs(abs(value) - stack.step) > _SAME_STEP * stack.step
    ]


# ---- what others ask about a scan ----


def list_series(path: Path, untrusted: bool = False) -> tuple[SeriesInfo, ...]:
    """Return the series of a folder or file, without reading voxels.

    Raises
    ------
    ScanError
        No image, or a damaged one.
    """
    with parsing(path, "DICOM"):
        return tuple(series.info() for series in open_source(path, untrusted).series)


def series_datasets(scan: Scan) -> list[Dataset]:
    """Return the headers, without pixels, of a scan's files, in the order of ``scan.source_files``.

    Raises
    ------
    ScanError
        A file is gone or damaged.
    """
    datasets: list[Dataset] = []
    for file in scan.source_files:
        with parsing(file, "DICOM"), quietly():
            datasets.append(dcmread(file, stop_before_pixels=True, force=True))
    return datasets


def was_resampled(scan: Scan) -> bool:
    """Return whether a DICOM scan stands on an interpolated grid instead of the acquired one."""
    return scan.geometry.affine is not None and scan.geometry.source_affine is None


def to_acquired_slices(scan: Scan, labels: NDArray) -> NDArray:
    """Bring labels back to the slices as they were acquired.

    Parameters
    ----------
    scan : Scan
        Read by :func:`read_dicom`.
    labels : integer array
        Over the scan's spatial axes, as loaded.

    Returns
    -------
    array
        ``(slices, rows, columns)`` in the order of ``scan.source_files``; of one file with many frames, in the order
        of the slices as loaded. To the voxel, unless the scan was resampled: then the nearest label at each
        acquired pixel, and all frames of such a file in stored order.

    Raises
    ------
    ScanError
        The files are gone or damaged.
    """
    axis_map = scan.geometry.axis_map
    if not was_resampled(scan):
        frames = axis_map.to_source(labels)
        if scan.slice_axis is None:
            return frames[np.newaxis]
        return frames[::-1] if axis_map.flips[scan.slice_axis] else frames
    assert scan.geometry.affine is not None
    planes: list[Plane] = []
    for file in scan.source_files:
        planes += read_planes(file, force=True)
    first = planes[0].storage
    matrices = [
        plane_affine(plane.position, plane.orientation, plane.spacing)
        for plane in planes
        if plane.position is not None and plane.orientation is not None and plane.spacing is not None
    ]
    return labels_on_planes(labels, scan.geometry.affine, matrices, (first.rows, first.columns))


def recognises(path: Path) -> bool:
    """Return whether a folder directly holds DICOM images, or a file is DICOM by its first bytes."""
    return holds_images(path) if path.is_dir() else path.is_file() and is_dicom(path)
