"""NRRD (``.nrrd``, ``.nhdr``, 3D Slicer's ``.seg.nrrd``) to Scan.

pynrrd parses the header; what its fields say about the patient is decided here. Voxels are flipped and permuted,
never resampled. Nothing is written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nrrd
import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError, VolumeChoiceError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.payload import Encoding, Payload, data_files, numbered_names, read_payload
from napari_unet.io.placement import POSITION_UNKNOWN, placed, unplaced
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import simplify_colour, slice_axis_of, tidy_voxels

_HEADER_LIMIT = 1 << 24
_MAX_AXES = 16  # NRRD_DIM_MAX of the reference implementation
_ENCODINGS: dict[str, Encoding] = {
    **{"raw": "raw", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2"},
    **{"ascii": "text", "text": "text", "txt": "text"},
}
_SPELLINGS = {
    **{"i1": "signed char,int8,int8_t", "u1": "uchar,unsigned char,uint8,uint8_t"},
    **{"i2": "short,short int,signed short,signed short int,int16,int16_t"},
    **{"u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t"},
    **{"i4": "int,signed int,int32,int32_t", "u4": "uint,unsigned int,uint32,uint32_t"},
    **{"i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t"},
    **{"u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t"},
    **{"f4": "float", "f8": "double"},
}
_DTYPE_OF = {spelling: code for code, spellings in _SPELLINGS.items() for spelling in spellings.split(",")}
#: Signs that turn a named space into LPS.
_TO_LPS = {
    **{"left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1)},
    **{"right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1)},
    **{"left-anterior-superior": (1, -1, 1), "las": (1, -1, 1)},
}
#: Right-handed spaces that name no side of the patient; ITK and 3D Slicer take them as LPS.
_NAMELESS = ("3d-right-handed", "3dr", "scanner-xyz")
_MM_PER_UNIT = {
    **{"m": 1000.0, "meter": 1000.0, "cm": 10.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0},
    **{"um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "nm": 1e-6},
}
_COLOUR_KINDS = {"rgb-color": 3, "rgba-color": 4}


@dataclass(frozen=True, eq=False)
class _Axes:
    """What the axes of a file stand for, by their number in the file (fastest first)."""

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    colour: int | None
    volumes: int | None


def read_nrrd(path: Path, options: ReadOptions) -> Scan:
    """Read a volume, or one of several in one file.

    Parameters
    ----------
    path : Path
        A NRRD file with its voxels attached, or a header that names the files of its voxels.
    options : ReadOptions
        ``volume`` chooses one entry of an axis that is no axis of space: a time point, a diffusion direction, a
        layer of overlapping segments.

    Returns
    -------
    Scan
        ``zyx`` in LPS (``zyxc`` for colour), or ``yx`` where the third axis of space has one element.

    Raises
    ------
    ScanError
        Damaged, its data file missing, without usable spacing, or several volumes and none chosen.
    """
    with parsing(path, "NRRD"):
        header, payload = _parse(path)
        axes = _axes(header, path)
        geometry, warnings = _geometry(header, axes, path)
        volume = _volume(axes, header, path, options.volume)
        array = read_payload(payload).reshape(axes.sizes, order="F")

    array, colour_axis = _as_image(array, axes, volume)
    n = len(geometry.axis_map.permutation)
    if n == 2 and len(axes.spatial) == 3:
        array = array[:, :, 0]
    letters = "zyx"[-n:] + ("c" if colour_axis else "")
    loaded, letters, colour_notes = simplify_colour(
        geometry.axis_map.to_loaded(array), letters, has_opacity=array.shape[-1] == 4
    )
    data, number_notes = tidy_voxels(loaded, path.name)
    slowest = geometry.axis_map.permutation.index(n - 1)
    return Scan(
        data,
        letters,
        geometry,
        slice_axis=None if n == 2 else slice_axis_of(geometry.spacing, slowest),
        source=path,
        warnings=(*warnings, *colour_notes, *number_notes),
        source_files=payload.files if payload.files != (path,) else (),
    )


def _parse(path: Path) -> tuple[dict[str, Any], Payload]:
    """Return the header's fields, and where the voxels are."""
    with path.open("rb") as stream:
        if not stream.read(1):
            raise ScanError(f"{path.name} is empty: copy it again from where it came.")
        stream.seek(0)
        lines, listed = _header_lines(stream, path)
        offset = stream.tell()
    # Decoded here, since pynrrd drops every letter beyond ASCII.
    header = cast(dict[str, Any], nrrd.read_header(lines))
    sizes = [int(n) for n in header["sizes"]]
    if len(sizes) != header["dimension"] or not 1 <= len(sizes) <= _MAX_AXES:
        raise ValueError("sizes do not fit the dimension")
    if min(sizes) < 1:
        raise ScanError(f"{path.name} holds no voxels: its shape is {'x'.join(map(str, sizes))}.")
    encoding = str(header["encoding"]).lower()
    if encoding not in _ENCODINGS:
        raise ScanError(f"{path.name} has its voxels in the encoding {encoding!r}: save it with raw or gzip encoding.")

    named = header.get("data file", header.get("datafile"))
    files = (path,) if named is None else data_files(path, listed or numbered_names(named))
    line_skip = int(header.get("line skip", header.get("lineskip", 0)))
    byte_skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if line_skip < 0 or byte_skip < -1:
        raise ValueError("negative skip")
    offset = _after_lines(files[0], 0 if named is not None else offset, line_skip)
    packed = _ENCODINGS[encoding] in ("deflate", "bzip2")
    dtype = _dtype(header, path, is_text=_ENCODINGS[encoding] == "text")
    return header, Payload(
        files,
        dtype,
        count=int(np.prod(sizes, dtype=object)),
        encoding=_ENCODINGS[encoding],
        offset=offset if packed else -1 if byte_skip == -1 else offset + byte_skip,
        skip=byte_skip if packed else 0,
    )


def _header_lines(stream: BinaryIO, path: Path) -> tuple[list[str], list[str]]:
    """Return the header's lines, and the file names behind ``data file: LIST``; leaves the stream behind them."""
    if stream.read(4) != b"NRRD":
        raise ScanError(f"{path.name} is not a NRRD file, whatever its name says.")
    stream.seek(0)
    lines: list[str] = []
    while stream.tell() < _HEADER_LIMIT:
        line = stream.readline(_HEADER_LIMIT).decode("utf-8", "replace").rstrip()
        if not line:
            return lines, []
        if re.match(r"data ?file:\s*LIST", line):
            rest = stream.read(_HEADER_LIMIT).decode("utf-8", "replace").splitlines()
            return [*lines, line], [name for name in map(str.strip, rest) if name]
        lines.append(line)
    raise ValueError("endless header")


def _after_lines(path: Path, offset: int, n_lines: int) -> int:
    if n_lines == 0:
        return offset
    with path.open("rb") as stream:
        stream.seek(offset)
        for _ in range(n_lines):
            if not stream.readline():
                raise ValueError("fewer lines than are to be left out")
        return stream.tell()


def _dtype(header: dict[str, Any], path: Path, is_text: bool) -> np.dtype[Any]:
    code = _DTYPE_OF.get(str(header["type"]).lower())
    if code is None:
        raise ScanError(f"{path.name} holds values of type {header['type']!r}, which are not numbers.")
    dtype = np.dtype(code)
    if dtype.itemsize == 1 or is_text:
        return dtype
    order = {"little": "<", "big": ">"}.get(str(header.get("endian")).lower())
    if order is None:
        raise ScanError(f"{path.name} does not say in which order its bytes stand (endian): save it again.")
    return dtype.newbyteorder(cast(Any, order))


def _axes(header: dict[str, Any], path: Path) -> _Axes:
    sizes = tuple(int(n) for n in header["sizes"])
    kinds = [str(kind).lower() for kind in header.get("kinds", ["???"] * len(sizes))]
    directions = header.get("space directions")
    if len(kinds) != len(sizes) or (directions is not None and len(directions) != len(sizes)):
        raise ValueError("axes are described in other numbers than there are")
    if "complex" in kinds:
        raise ScanError(f"{path.name} holds complex numbers: save their magnitude and load that.")
    if directions is not None:
        spatial = tuple(axis for axis in range(len(sizes)) if not np.isnan(directions[axis]).any())
    elif header.get("kinds") is not None:
        spatial = tuple(axis for axis, kind in enumerate(kinds) if kind in ("domain", "space", "???", "none"))
    else:
        # Without a word about them the slow axis of four is the one that counts volumes.
        spatial = tuple(range(min(len(sizes), 3)))
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    colour = next((axis for axis in others if _COLOUR_KINDS.get(kinds[axis]) == sizes[axis]), None)
    volumes = [axis for axis in others if axis != colour and sizes[axis] > 1]
    if len(spatial) not in (2, 3) or len(volumes) > 1:
        shape = "x".join(map(str, sizes))
        raise ScanError(f"{path.name} has axes that are not understood ({shape}): save one volume of it.")
    return _Axes(sizes, spatial, colour, volumes[0] if volumes else None)


def _volume(axes: _Axes, header: dict[str, Any], path: Path, wanted: int | None) -> int:
    n_volumes = 1 if axes.volumes is None else axes.sizes[axes.volumes]
    if wanted is None and n_volumes > 1 and any(str(key).startswith("Segment0_") for key in header):
        raise VolumeChoiceError(
            f"{path.name} holds segments that overlap, in {n_volumes} layers, and a mask has one class per voxel: "
            f"pass --volume N, with N from 0 to {n_volumes - 1}, or export each segment alone.",
            n_volumes,
        )
    return choose_volume(path, n_volumes, wanted)


def _as_image(array: NDArray, axes: _Axes, volume: int) -> tuple[NDArray, bool]:
    """Return the chosen volume, its axes of space in the file's order and colour last."""
    others = [axis for axis in range(array.ndim) if axis not in axes.spatial and axis != axes.colour]
    array = array[
        tuple(volume if axis == axes.volumes else 0 if axis in others else slice(None) for axis in range(array.ndim))
    ]
    if axes.colour is None:
        return array, False
    return np.moveaxis(array, axes.colour - sum(axis < axes.colour for axis in others), -1), True


def _geometry(header: dict[str, Any], axes: _Axes, path: Path) -> tuple[Geometry, list[str]]:
    shape = tuple(axes.sizes[axis] for axis in axes.spatial)
    if shape[2:] == (1,):
        shape = shape[:2]
    directions = header.get("space directions")
    space = str(header.get("space", "")).lower().removesuffix("-time")
    warnings: list[str] = []
    if directions is None:
        spacing = _stated_spacing(header, axes, path)
        return unplaced(None if spacing is None else spacing[: len(shape)], len(shape)), _if_volume(shape)
    vectors = np.array([directions[axis] for axis in axes.spatial], float)
    units = _unit_factors(header.get("space units"), vectors.shape[1], warnings)
    signs = _TO_LPS.get(space)
    if space in _NAMELESS and vectors.shape[1] == 3:
        signs = (1, 1, 1)
        warnings.append(f"space {space!r} names no side of the patient: taken as LPS")
    if signs is None or vectors.shape != (3, 3):
        steps = tuple(float(step) for step in np.linalg.norm(vectors * units, axis=1)[: len(shape)])
        _refuse_bad_spacing(steps, path)
        return unplaced(steps, len(shape)), warnings + _if_volume(shape)
    own = np.eye(4)
    own[:3, :3] = vectors.T
    origin = header.get("space origin")
    if origin is None:
        warnings.append("no origin stated: the first voxel is taken to be at 0, 0, 0")
    else:
        own[:3, 3] = origin
    geometry, found = placed(np.diag([*(units * signs), 1.0]) @ own, shape, own, path.name)
    return geometry, warnings + found


def _if_volume(shape: tuple[int, ...]) -> list[str]:
    return [POSITION_UNKNOWN] if len(shape) == 3 else []


def _unit_factors(units: list[str] | None, n: int, warnings: list[str]) -> NDArray[np.float64]:
    """Return millimetres per unit of each axis of the space; units that are not stated are millimetres."""
    if not units or not any(units):
        return np.ones(n)
    factors = np.array([_MM_PER_UNIT.get(unit.strip().lower(), np.nan) for unit in units[:n]])
    if len(factors) != n or np.isnan(factors).any():
        warnings.append(f"sizes in units that are not known ({', '.join(sorted(set(units)))[:40]}): taken as mm")
        return np.ones(n)
    if (factors != 1).any():
        warnings.append(f"sizes stored in {units[0]}: now in mm")
    return factors


def _stated_spacing(header: dict[str, Any], axes: _Axes, path: Path) -> tuple[float, ...] | None:
    """Return millimetres along the axes of space from the field ``spacings``; None where it is missing."""
    spacings = header.get("spacings")
    if spacings is None or len(spacings) != len(axes.sizes):
        return None
    steps = [float(spacings[axis]) for axis in axes.spatial]
    if all(np.isnan(steps)):
        return None
    units = header.get("units", [])
    stated = [units[axis].strip().lower() for axis in axes.spatial] if len(units) == len(axes.sizes) else []
    factors = [_MM_PER_UNIT.get(unit, np.nan) for unit in stated if unit] or [1.0] * len(steps)
    if len(factors) != len(steps) or any(np.isnan(factors)):
        return None
    spacing = tuple(abs(step) * factor for step, factor in zip(steps, factors, strict=True))
    _refuse_bad_spacing(spacing, path)
    return spacing


def _refuse_bad_spacing(spacing: tuple[float, ...], path: Path) -> None:
    if not all(np.isfinite(step) and step > 0 for step in spacing):
        steps = " x ".join(f"{step:g}" for step in spacing)
        raise ScanError(f"{path.name} has no usable voxel size ({steps}): repair its header and load it again.")
