"""OME-Zarr folders (NGFF 0.4 on zarr 2, 0.5 on zarr 3, and what came before) to Scan.

The finest level is read. Where it would take too much memory it stays on the disk, behind a dask array that decodes
the chunks that are looked at. Nothing is written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.scan import Scan
from napari_unet.io.placement import placed
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import slice_axis_of, tidy_voxels

#: Key of a group's attributes, besides ``ome``, under which masks of this program keep what NGFF cannot say.
OWN_KEY = "napari_unet"
#: NGFF's words (RFC 4) for the direction in which an axis runs.
WORD_OF_CODE = {
    **{"L": "right-to-left", "R": "left-to-right", "P": "anterior-to-posterior", "A": "posterior-to-anterior"},
    **{"S": "inferior-to-superior", "I": "superior-to-inferior"},
}
_CODE_OF_WORD = {word: code for code, word in WORD_OF_CODE.items()}
#: Row of an LPS position, and sign, for each direction.
AXIS_OF_CODE = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}

_MM_PER_UNIT = {
    **{"meter": 1e3, "decimeter": 100.0, "centimeter": 10.0, "millimeter": 1.0, "micrometer": 1e-3},
    **{"nanometer": 1e-6, "picometer": 1e-9, "angstrom": 1e-7, "inch": 25.4},
    **{"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "nm": 1e-6},
}
_CODE_OF_LETTER = {"z": "S", "y": "P", "x": "L"}
_KINDS = {"time": "t", "channel": "c"}
#: The share of the available memory that a scan may take, there being masks and a network to come.
_LARGEST_SHARE = 0.25
#: The same for one chunk, which is always decoded as a whole; and how many chunks are a listing and no image.
_LARGEST_PIECE = 0.25
_MOST_CHUNKS = 1_000_000


@dataclass(frozen=True, eq=False)
class _Level:
    """The finest level of an image.

    Parameters
    ----------
    array : zarr.Array
        As stored.
    letters : str
        One of ``t``, ``c``, ``z``, ``y``, ``x`` per axis.
    spacing : tuple of float or None
        Millimetres along the axes of space as stored; None where no unit of length is stated.
    translation : tuple of float
        Millimetres, per axis of space as stored.
    codes : str or None
        Direction of the patient in which each axis of space runs, where stated.
    own : dict
        What this program noted.
    """

    array: Any
    letters: str
    spacing: tuple[float, ...] | None
    translation: tuple[float, ...]
    codes: str | None
    own: dict[str, Any]

    @property
    def spatial(self) -> str:
        return "".join(letter for letter in self.letters if letter in "zyx")


def read_ome_zarr(path: Path, options: ReadOptions) -> Scan:
    """Read the finest level of an image, or of the labels in it.

    Parameters
    ----------
    path : Path
        A folder with the metadata of one image, or of one label image (``labels/NAME``).
    options : ReadOptions
        ``volume`` chooses a channel of a time point, counted through the channels first; ``as_mask`` reads the
        labels inside the image rather than the image.

    Returns
    -------
    Scan
        ``zyx`` or ``yx``. Beyond a quarter of the available memory ``data`` is a dask array.

    Raises
    ------
    ScanError
        Damaged, no single image, axes that are not understood, no usable spacing, or several volumes and none
        chosen.
    """
    with parsing(path, "zarr"):
        level = _finest_level(path, options)
        lengths = dict(zip(level.letters, level.array.shape, strict=True))
        n_channels = lengths.get("c", 1)
        if min(level.array.shape) < 1:
            raise ScanError(f"{path.name} holds no voxels: its shape is {'x'.join(map(str, level.array.shape))}.")
        volume = choose_volume(path, lengths.get("t", 1) * n_channels, options.volume)
        chosen = {"t": volume // n_channels, "c": volume % n_channels}
        # A volume of one slice is a picture, as it is in every other format.
        if lengths.get("z") == 1:
            chosen["z"] = 0
        index = tuple(chosen.get(letter, slice(None)) for letter in level.letters)
        geometry, warnings = _geometry(level, has_z=lengths.get("z", 1) > 1, name=path.name)
        data, notes = _voxels(level.array, index, geometry.axis_map, path, options.as_mask, options.may_stay)

    n = data.ndim
    return Scan(
        data,
        "zyx"[-n:],
        geometry,
        slice_axis=slice_axis_of(geometry.spacing, geometry.axis_map.permutation.index(0)) if n == 3 else None,
        source=path,
        warnings=(*warnings, *notes),
    )


def is_zarr_folder(path: Path) -> bool:
    """Return whether a path is a folder that zarr made."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs"))


def _finest_level(path: Path, options: ReadOptions) -> _Level:
    import zarr

    from napari_unet.io.chunk_codecs import checked_codecs, make_safe

    if not path.is_dir():
        raise ScanError(f"{path.name} is a file, and OME-Zarr images are folders: unpack it or copy the whole folder.")
    if not is_zarr_folder(path):
        raise ScanError(f"{path.name} has no zarr metadata (zarr.json or .zattrs): copy the whole folder again.")
    node = zarr.open(store=str(path), mode="r", use_consolidated=False)
    if not isinstance(node, zarr.Group):
        raise ScanError(f"{path.name} is a bare zarr array, which does not say what its axes are: save it as OME-Zarr.")
    group, attributes = _image_group(node, path, prefer_labels=options.as_mask)
    multiscale = attributes["multiscales"][0]
    dataset = multiscale["datasets"][0]
    with checked_codecs():
        array = group[dataset["path"]]
    if not isinstance(array, zarr.Array):
        raise ValueError("the finest level is no array")
    make_safe(array, path)
    axes = [
        axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes") or "tczyx"[-array.ndim :]
    ]
    letters = _letters(axes, array.ndim, path)
    steps, shifts = np.ones(array.ndim), np.zeros(array.ndim)
    for transform in (
        *dataset.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if transform["type"] == "scale":
            factors = np.array(transform["scale"], float)
            steps, shifts = steps * factors, shifts * factors
        elif transform["type"] == "translation":
            shifts = shifts + np.array(transform["translation"], float)
        elif transform["type"] != "identity":
            raise ScanError(f"{path.name} is placed by a {transform['type']}: only scale and translation are read.")
    return _in_mm(array, letters, axes, steps, shifts, dict(group.attrs.get(OWN_KEY) or {}), path)


def _image_group(group: Any, path: Path, prefer_labels: bool) -> tuple[Any, dict[str, Any]]:
    """Return the group of the image, or of its labels, and its OME metadata."""
    attributes = _ome(group)
    labels = _labels_inside(group)
    if labels and (prefer_labels or not attributes.get("multiscales")):
        if len(labels) > 1:
            folders = ", ".join(f"{path.name}/labels/{name}" for name in labels[:8])
            raise ScanError(f"{path.name} holds {len(labels)} label images: open one of the folders {folders}.")
        group = group["labels"][labels[0]]
        attributes = _ome(group)
    if attributes.get("multiscales"):
        return group, attributes
    if attributes.get("bioformats2raw.layout") is not None:
        names = sorted((name for name, _ in group.groups() if name.isdigit()), key=int)
        if len(names) == 1:
            return group[names[0]], _ome(group[names[0]])
        raise ScanError(f"{path.name} holds {len(names)} images: open one of its folders {', '.join(names[:12])}.")
    if attributes.get("plate") or attributes.get("well"):
        raise ScanError(f"{path.name} is a plate of many images: open the folder of one of them, such as A/1/0.")
    raise ScanError(f"{path.name} has no OME-Zarr metadata (multiscales): save it as OME-Zarr 0.4 or 0.5.")


def _ome(group: Any) -> dict[str, Any]:
    attributes = group.attrs.asdict()
    return dict(attributes.get("ome", attributes))


def _labels_inside(group: Any) -> list[str]:
    if "labels" not in group:
        return []
    return [str(name) for name in _ome(group["labels"]).get("labels", ())]


def _letters(axes: list[dict[str, Any]], ndim: int, path: Path) -> str:
    names = [str(axis["name"]).lower() for axis in axes]
    letters = "".join(_KINDS.get(axis.get("type", ""), name) for name, axis in zip(names, axes, strict=True))
    known = set(letters) <= set("tczyx") and {"y", "x"} <= set(letters) and len(set(letters)) == len(letters)
    if not known or len(letters) != ndim:
        raise ScanError(f"{path.name} has axes that are not understood ({', '.join(names)}): z, y, x, c and t are.")
    return letters


def _in_mm(
    array: Any,
    letters: str,
    axes: list[dict[str, Any]],
    steps: NDArray[np.float64],
    shifts: NDArray[np.float64],
    own: dict[str, Any],
    path: Path,
) -> _Level:
    spatial = [axis for axis, letter in enumerate(letters) if letter in "zyx"]
    relevant = steps[spatial]
    if not (np.isfinite(relevant).all() and (relevant > 0).all() and np.isfinite(shifts[spatial]).all()):
        sizes = " x ".join(f"{step:g}" for step in relevant)
        raise ScanError(f"{path.name} has no usable voxel size ({sizes}): repair its scale and load it again.")
    factors = np.array([_MM_PER_UNIT.get(str(axes[axis].get("unit", "")).lower(), np.nan) for axis in spatial])
    known = not np.isnan(factors).any()
    words = [str((axes[axis].get("orientation") or {}).get("value")) for axis in spatial]
    codes = "".join(_CODE_OF_WORD.get(word, "") for word in words)
    return _Level(
        array,
        letters,
        tuple(float(v) for v in relevant * factors) if known else None,
        tuple(float(v) for v in np.where(np.isnan(factors), 0, shifts[spatial] * factors)),
        codes if len({AXIS_OF_CODE[code][0] for code in codes}) == len(spatial) else None,
        own,
    )


def _geometry(level: _Level, has_z: bool, name: str) -> tuple[Geometry, list[str]]:
    """Return the grid of the chosen volume, whose axes stand in the order of ``level.spatial``."""
    spatial = level.spatial if has_z else level.spatial.replace("z", "")
    if not has_z or level.spacing is None:
        target = "zyx"[-len(spatial) :]
        axis_map = AxisMap(tuple(spatial.index(letter) for letter in target), (False,) * len(spatial))
        if level.spacing is None:
            return Geometry(None, axis_map=axis_map), ["sizes without a unit of length: spacing unknown"]
        return Geometry(tuple(level.spacing[level.spatial.index(letter)] for letter in target), axis_map=axis_map), []
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(level.codes or "".join(_CODE_OF_LETTER[letter] for letter in spatial)):
        row, sign = AXIS_OF_CODE[code]
        affine[row, axis] = sign * level.spacing[axis]
        affine[row, 3] = sign * level.translation[axis]
    shape = tuple(level.array.shape[level.letters.index(letter)] for letter in spatial)
    exact = _own_affine(level, affine)
    geometry, found = placed(affine if exact is None else exact, shape, affine, name)
    if exact is None and level.codes is None:
        found.append("OME-Zarr names no sides of the patient: z, y, x are taken as up, back, left")
        geometry = replace(geometry, source_orientation=None)
    return geometry, found


def _own_affine(level: _Level, stated: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the exact matrix that this program noted, unless somebody has changed the scale or moved it since."""
    noted = level.own.get("affine_lps_mm")
    if noted is None:
        return None
    affine = np.array(noted, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return None
    same_steps = np.allclose(np.linalg.norm(affine[:3, :3], axis=0), np.linalg.norm(stated[:3, :3], axis=0))
    return affine if same_steps and np.allclose(affine[:3, 3], stated[:3, 3]) else None


def _voxels(
    array: Any, index: tuple[int | slice, ...], axis_map: AxisMap, path: Path, as_mask: bool, may_stay: bool = False
) -> tuple[NDArray, list[str]]:
    """Return the chosen volume as loaded, in memory or behind dask, and notes."""
    stored = _Stored(array, path)
    shape = [length for length, one in zip(array.shape, index, strict=True) if isinstance(one, slice)]
    n_bytes = math.prod(shape) * max(stored.dtype.itemsize, array.dtype.itemsize)
    available = psutil.virtual_memory().available
    n_chunks = math.prod(-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True))
    if math.prod(array.chunks) * array.dtype.itemsize > _LARGEST_PIECE * available or n_chunks > _MOST_CHUNKS:
        chunks = "x".join(map(str, array.chunks))
        raise ScanError(f"{path.name} is stored in pieces of {chunks}, which cannot be worked with: store it anew.")
    if n_bytes <= _LARGEST_SHARE * available or (as_mask and n_bytes <= available / 2):
        data, notes = tidy_voxels(axis_map.to_loaded(array[index]), path.name)
        missing = n_chunks - array.nchunks_initialized
        if missing > 0 and not as_mask:
            notes.append(f"{missing} of {n_chunks} pieces are not there (empty, or not copied): shown as background")
        return data, notes
    if as_mask and not may_stay:
        raise ScanError(f"{path.name} needs more memory than there is ({n_bytes / 2**30:.0f} GiB): crop it.")
    return _lazily(stored, index, axis_map)


def _lazily(stored: _Stored, index: tuple[int | slice, ...], axis_map: AxisMap) -> tuple[NDArray, list[str]]:
    import dask.array

    lazy = dask.array.from_array(
        stored, chunks=stored.chunks, name=False, meta=np.empty((0,) * stored.ndim, stored.dtype)
    )
    notes = ["larger than a quarter of the free memory: read from the disk piece by piece"]
    if stored.dtype.kind == "f":
        notes.append("voxels that are NaN or infinite are not counted: they are shown as 0")
    if stored.is_wide:
        notes.append("integers beyond 32 bits: rounded to float32")
    return axis_map.to_loaded(lazy[index]), notes


class _Stored:
    """A zarr array whose pieces come out as a Scan holds them: native, finite, of a dtype that torch knows."""

    def __init__(self, array: Any, path: Path) -> None:
        self._array, self._path = array, path
        self.shape, self.ndim, self.chunks = array.shape, array.ndim, array.chunks
        kind, itemsize = array.dtype.kind, array.dtype.itemsize
        if kind not in "biuf":
            raise ScanError(f"{path.name} holds values of type {array.dtype}, which are not numbers.")
        self.is_wide = kind in "iu" and itemsize > (4 if kind == "i" else 2)
        self.dtype = np.dtype(np.float32 if kind == "f" or self.is_wide else np.uint8 if kind == "b" else array.dtype)
        self.dtype = self.dtype.newbyteorder("=")

    def __getitem__(self, index: Any) -> NDArray:
        with parsing(self._path, "zarr"):
            piece = np.asarray(self._array[index]).astype(self.dtype)
        return np.nan_to_num(piece, copy=False, nan=0, posinf=0, neginf=0) if piece.dtype.kind == "f" else piece
