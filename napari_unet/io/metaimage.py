"""MetaImage (``.mha``, ``.mhd`` with its data file) to Scan.

Read here, not through ITK: its MetaIO (5.4) hands out the remains of damaged compressed data as voxels, turns a
spacing of 0 into another one, ignores units, and writes its complaints to standard error. The tests hold every
position against SimpleITK's. Nothing is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.payload import Encoding, Payload, data_files, numbered_names, read_payload
from napari_unet.io.placement import POSITION_UNKNOWN, placed, unplaced
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import simplify_colour, slice_axis_of, tidy_voxels

_HEADER_LIMIT = 1 << 20
_DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_MM_PER_UNIT = {"um": 1e-3, "mm": 1.0, "cm": 10.0}
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}
#: Names that one field has had, the present one first.
_DIRECTIONS = ("transformmatrix", "rotation", "orientation")
_ORIGINS = ("offset", "position", "origin")


def read_metaimage(path: Path, options: ReadOptions) -> Scan:
    """Read a volume, or one of several in one file.

    Parameters
    ----------
    path : Path
        A MetaImage file with its voxels inside, or a header that names the files of its voxels.
    options : ReadOptions
        ``volume`` chooses one entry of a fourth axis, or one component of voxels that are vectors.

    Returns
    -------
    Scan
        ``zyx`` in LPS (``zyxc`` for colour), or ``yx`` where the third axis has one element.

    Raises
    ------
    ScanError
        Damaged, its data file missing, without usable spacing, or several volumes and none chosen.
    """
    with parsing(path, "MetaImage"):
        fields, payload, dims, n_components = _parse(path)
        shape = _spatial_shape(dims, path)
        geometry, warnings = _geometry(path, fields, shape)
        is_colour = n_components in (3, 4) and payload.dtype.itemsize == 1
        n_times = int(np.prod(dims[3:], dtype=np.int64))
        n_volumes = n_times * (1 if is_colour else n_components)
        volume = choose_volume(path, n_volumes, options.volume)
        array = read_payload(payload).reshape((n_components, *dims[:3], n_times), order="F")

    if is_colour:
        array, letters = np.moveaxis(array[..., volume], 0, -1), "c"
    else:
        array, letters = array[volume % n_components, ..., volume // n_components], ""
    if len(shape) == 2 and len(dims) > 2:
        array = array[:, :, 0]
    letters = "zyx"[-len(shape) :] + letters
    loaded, letters, colour_notes = simplify_colour(
        geometry.axis_map.to_loaded(array), letters, has_opacity=is_colour and n_components == 4
    )
    data, number_notes = tidy_voxels(loaded, path.name)
    slowest = geometry.axis_map.permutation.index(len(shape) - 1)
    return Scan(
        data,
        letters,
        geometry,
        slice_axis=None if len(shape) == 2 else slice_axis_of(geometry.spacing, slowest),
        modality=_MODALITIES.get(fields.get("modality", "")),
        source=path,
        warnings=(*warnings, *colour_notes, *number_notes),
        source_files=payload.files if payload.files != (path,) else (),
    )


def _parse(path: Path) -> tuple[dict[str, str], Payload, tuple[int, ...], int]:
    """Return the header's fields by lower-case name, where the voxels are, the lengths of the axes, and components."""
    with path.open("rb") as stream:
        fields, listed = _fields(stream, path)
        offset = stream.tell()
    dims = tuple(int(n) for n in fields["dimsize"].split())
    n_components = int(fields.get("elementnumberofchannels", 1))
    if len(dims) != int(fields["ndims"]) or not 2 <= len(dims) <= 4 or n_components < 1:
        raise ValueError("axes are described in other numbers than there are")
    if min(dims) < 1:
        raise ScanError(f"{path.name} holds no voxels: its shape is {'x'.join(map(str, dims))}.")
    kind = fields["elementtype"].removesuffix("_ARRAY")
    if kind not in _DTYPES:
        raise ScanError(f"{path.name} holds values of type {kind[:20]!r}, which are not numbers.")
    is_big = _is_true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")))
    encoding: Encoding = "text" if not _is_true(fields.get("binarydata", "False")) else "raw"
    if encoding == "raw" and _is_true(fields.get("compresseddata", "False")):
        encoding = "deflate"
    named = fields["elementdatafile"]
    if named.upper() != "LOCAL":
        names = listed or numbered_names(named)
        files, offset = data_files(path, names), int(fields.get("headersize", 0))
    else:
        files = (path,)
    dtype = np.dtype(_DTYPES[kind]).newbyteorder(">" if is_big else "<")
    count = n_components * int(np.prod(dims, dtype=object))
    return fields, Payload(files, dtype, count, encoding, offset), dims, n_components


def _fields(stream: BinaryIO, path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the fields and the names behind ``ElementDataFile = LIST``; leaves the stream behind the header."""
    fields: dict[str, str] = {}
    if not stream.read(1):
        raise ScanError(f"{path.name} is empty: copy it again from where it came.")
    stream.seek(0)
    while stream.tell() < _HEADER_LIMIT:
        name, separator, value = stream.readline(_HEADER_LIMIT).decode("utf-8", "replace").partition("=")
        name = name.strip().lower()
        if not separator or not name.isascii():
            break
        fields[name] = value.strip()
        if name == "elementdatafile":
            is_list = fields[name].upper().startswith("LIST")
            rest = stream.read(_HEADER_LIMIT).decode("utf-8", "replace").splitlines() if is_list else []
            return fields, [line.strip() for line in rest if line.strip()]
    raise ScanError(f"{path.name} is damaged or not a MetaImage file: its header names no data (ElementDataFile).")


def _is_true(word: str) -> bool:
    return word[:1] in ("T", "t", "1")


def _spatial_shape(dims: tuple[int, ...], path: Path) -> tuple[int, ...]:
    return dims[:2] if dims[2:3] in ((), (1,)) else dims[:3]


def _geometry(path: Path, fields: dict[str, str], shape: tuple[int, ...]) -> tuple[Geometry, list[str]]:
    stated = fields.get("elementspacing", fields.get("elementsize"))
    steps = None if stated is None else np.array(stated.split()[: len(shape)], float)
    if steps is not None and not (len(steps) == len(shape) and np.isfinite(steps).all() and (steps != 0).all()):
        sizes = " x ".join(f"{step:g}" for step in steps)
        raise ScanError(f"{path.name} has no usable voxel size ({sizes}): repair its header and load it again.")
    unit = fields.get("distanceunits", "?").lower()
    scale = _MM_PER_UNIT.get(unit, 1.0)
    warnings = [] if scale == 1.0 else [f"sizes stored in {unit}: now in mm"]
    if unit not in ("?", *_MM_PER_UNIT):
        warnings.append(f"sizes in units that are not known ({unit[:20]!r}): taken as mm")

    if len(shape) == 3 and steps is not None and any(name in fields for name in (*_DIRECTIONS, *_ORIGINS)):
        own = _matrix(fields, steps)
        geometry, found = placed(np.diag([scale, scale, scale, 1.0]) @ own, shape, own, path.name)
        return geometry, warnings + found
    if len(shape) == 3:
        warnings.append(POSITION_UNKNOWN)
    return unplaced(None if steps is None else tuple(np.abs(steps) * scale), len(shape)), warnings


def _matrix(fields: dict[str, str], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix from indices along the file's axes to LPS, in the file's unit."""
    n = int(fields["ndims"])
    matrix = np.eye(4)
    directions = next((fields[name] for name in _DIRECTIONS if name in fields), None)
    if directions is not None:
        # Axis by axis; those of time and channels follow behind those of space.
        matrix[:3, :3] = np.array(directions.split(), float).reshape(n, n)[:3, :3].T
    origin = next((fields[name] for name in _ORIGINS if name in fields), None)
    if origin is not None:
        matrix[:3, 3] = np.array(origin.split()[:3], float)
    matrix[:3, :3] *= steps
    return matrix
