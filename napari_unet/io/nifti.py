"""NIfTI-1 and NIfTI-2 single files (``.nii``, ``.nii.gz``) to Scan.

Voxels are flipped and permuted, never resampled. Nothing is written here, but :mod:`napari_unet.io.writers` asks
this module for the source's own header, so that a mask goes back with the very same position fields.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.volumeutils import array_from_file
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from napari_unet.domain.errors import ScanError
from napari_unet.domain.geometry import LPS_FROM_RAS, AxisMap, Geometry, corner_distance
from napari_unet.domain.scan import Scan
from napari_unet.io import placement
from napari_unet.io.reading import ReadOptions, choose_volume, parsing
from napari_unet.io.voxels import simplify_colour, slice_axis_of, tidy_voxels

#: Without a position a file is taken as ANALYZE's convention has it (x left, y front, z up), which shows most
#: such files upright; left and right cannot be known.
_UNPLACED_CODES = "LAS"

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}


@dataclass(frozen=True, eq=False)
class _Position:
    """What a header says about where its voxels stand."""

    affine: NDArray[np.float64] | None  # file's units, RAS; None where both codes are 0
    codes: str  # one letter per file axis
    mm_per_unit: float
    spacing: tuple[float, float, float]  # mm, per file axis
    warnings: tuple[str, ...]

    @property
    def affine_mm(self) -> NDArray[np.float64] | None:
        if self.affine is None:
            return None
        scale = self.mm_per_unit
        return np.diag([scale, scale, scale, 1.0]) @ self.affine


def read_nifti(path: Path, options: ReadOptions) -> Scan:
    """Read a volume, or one volume of a time series.

    Parameters
    ----------
    path : Path
        A NIfTI file, gzipped or not, whatever its suffix says.
    options : ReadOptions
        ``volume`` chooses one of several.

    Returns
    -------
    Scan
        ``zyx`` in LPS (``zyxc`` for RGB), or ``yx`` where the third axis has one element. Integer dtype as stored
        where the header does not scale it, else float32.

    Raises
    ------
    ScanError
        Damaged, empty, complex, without usable spacing, or several volumes and none chosen.
    """
    with parsing(path, "NIfTI"), _open(path) as stream:
        header = _raw_header(stream, path)
        shape, n_volumes, notes = _grid(header, path)
        position = _position(header, shape, path)
        volume = choose_volume(path, n_volumes, options.volume)
        raw = _voxels(header, shape, volume, stream)
        while isinstance(stream, gzip.GzipFile) and stream.read(1 << 20):
            pass  # reading to the end is what checks gzip's checksum

    is_picture = shape[2] == 1
    axis_map = placement.axis_map_of(position.codes[:2] if is_picture else position.codes, is_picture)
    raw, axes = (raw[:, :, 0], "yx") if is_picture else (raw, "zyx")
    if raw.dtype.names is not None:
        raw, axes = structured_to_unstructured(raw), axes + "c"
    loaded, axes, colour_notes = simplify_colour(axis_map.to_loaded(raw), axes, has_opacity=raw.shape[-1] == 4)
    data, number_notes = tidy_voxels(loaded, path.name)

    geometry = _geometry(position, axis_map, tuple(shape[axis] for axis in axis_map.permutation))
    slowest = axis_map.permutation.index(1 if is_picture else 2)
    return Scan(
        data,
        axes,
        geometry,
        slice_axis=None if is_picture else slice_axis_of(geometry.spacing, slowest),
        source=path,
        warnings=(*notes, *position.warnings, *colour_notes, *number_notes),
    )


def read_header(path: Path) -> Nifti1Header:
    """Return a file's header as it is stored, unrepaired (Nifti2Header is a subclass).

    Raises
    ------
    ScanError
        No such file, or not NIfTI.
    """
    with parsing(path, "NIfTI"), _open(path) as stream:
        return _raw_header(stream, path)


def grid_and_affine(header: Nifti1Header, path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64] | None]:
    """Return the spatial shape and the affine in use (file's units, RAS; None where the position is unknown)."""
    shape, _, _ = _grid(header, path)
    return shape, _position(header, shape, path).affine


def unplaced_axis_map(ndim: int) -> AxisMap:
    """Return the axis map that a file without a position is read with (``ndim`` 2 or 3)."""
    return placement.axis_map_of(_UNPLACED_CODES[:ndim], is_picture=ndim == 2)


def _open(path: Path) -> BufferedIOBase:
    # By content, not by name: both ".nii" that is gzipped and ".nii.gz" that is not are met in the wild.
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return igzip.open(path, "rb") if zipped else path.open("rb")


def _raw_header(stream: BufferedIOBase, path: Path) -> Nifti1Header:
    start = stream.read(4)
    if not start:
        raise ScanError(f"{path.name} is empty: copy it again from where it came.")
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    if not sizes & {348, 540}:
        raise ScanError(f"{path.name} is not a NIfTI file, whatever its name says.")
    stream.seek(0)
    # Unchecked: nibabel's repair would turn a spacing of 0 into 1 mm.
    header = (Nifti1Header if 348 in sizes else Nifti2Header).from_fileobj(stream, check=False)
    magic = bytes(header["magic"].item())
    if magic.startswith(b"ni"):
        raise ScanError(f"{path.name} is one half of a NIfTI pair (.hdr and .img): save it as a single .nii file.")
    if not magic.startswith(b"n+"):
        raise ScanError(f"{path.name} is an ANALYZE file, which does not say left from right: save it as NIfTI.")
    return header


def _grid(header: Nifti1Header, path: Path) -> tuple[tuple[int, int, int], int, list[str]]:
    """Return the spatial shape, the number of volumes, and notes."""
    n_axes = int(header["dim"][0])
    if not 2 <= n_axes <= 7:
        raise ScanError(f"{path.name} is not an image: its header counts {n_axes} axes.")
    dims = [int(n) for n in header["dim"][1 : n_axes + 1]]
    text = "x".join(map(str, dims))
    if min(dims) < 1:
        raise ScanError(f"{path.name} holds no voxels: its shape is {text}.")
    dims += [1] * (3 - len(dims))
    further = [n for n in dims[3:] if n > 1]
    if len(further) > 1:
        raise ScanError(f"{path.name} has {3 + len(further)} axes ({text}): save one volume of it and load that.")
    notes = [f"stored as {text}: axes of one element were left out"] if len(dims) > 3 and not further else []
    return (dims[0], dims[1], dims[2]), (further or [1])[0], notes


def _voxels(header: Nifti1Header, shape: tuple[int, int, int], volume: int, stream: BufferedIOBase) -> NDArray:
    """Return one volume in file axes, scaled as the header says."""
    dtype = header.get_data_dtype()
    offset = int(header["vox_offset"]) or header.single_vox_offset
    offset += volume * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = array_from_file(shape, dtype, stream, offset=offset, order="F")
    slope, inter = header.get_slope_inter()
    if slope is None or (slope, inter) == (1.0, 0.0) or dtype.kind not in "iuf":
        return raw
    scaled = raw.astype(np.result_type(dtype.newbyteorder("="), np.float32))
    with np.errstate(over="ignore", invalid="ignore"):  # counted and replaced later
        scaled *= slope
        scaled += inter
    return scaled


def _position(header: Nifti1Header, shape: tuple[int, int, int], path: Path) -> _Position:
    pixdim = np.asarray(header["pixdim"][1:4], float)
    relevant = np.array(shape) > 1
    if not np.isfinite(pixdim[relevant]).all() or (pixdim[relevant] == 0).any():
        sizes = " x ".join(f"{size:g}" for size in pixdim)
        raise ScanError(
            f"{path.name} has no usable voxel size ({sizes}): repair its header (pixdim) and load it again."
        )
    sform = np.asarray(header.get_sform(), float) if header["sform_code"] > 0 else None
    qform = np.asarray(with_sane_pixdim(header).get_qform(), float) if header["qform_code"] > 0 else None
    affine = sform if sform is not None else qform
    if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0):
        raise ScanError(
            f"{path.name} has a position matrix with a spacing of 0 or NaN: repair its sform or qform and try again."
        )

    unit = int(header["xyzt_units"]) & 7
    mm_per_unit = _MM_PER_UNIT.get(unit, 1.0)
    warnings = [] if mm_per_unit == 1.0 else [f"sizes stored in {'metres' if unit == 1 else 'micrometres'}: now in mm"]
    if affine is None:
        spacing = np.where(np.isfinite(pixdim) & (pixdim != 0), np.abs(pixdim), 1.0)
        warnings.append("position unknown (sform and qform codes are both 0): left and right are a guess")
        codes = _UNPLACED_CODES
    else:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        codes = "".join(nib.aff2axcodes(affine))
        warnings += _oddities(affine, sform, qform, pixdim, relevant, shape)
    steps = tuple(float(step) * mm_per_unit for step in spacing)
    return _Position(affine, codes, mm_per_unit, cast(tuple[float, float, float], steps), tuple(warnings))


def with_sane_pixdim(header: Nifti1Header) -> Nifti1Header:
    """Return a copy whose voxel sizes are positive and whose qfac, by the standard, is 1 unless it is -1."""
    sane = header.copy()
    sane["pixdim"][1:4] = np.abs(sane["pixdim"][1:4])
    if sane["pixdim"][0] != -1:
        sane["pixdim"][0] = 1
    return sane


def _oddities(
    affine: NDArray[np.float64],
    sform: NDArray[np.float64] | None,
    qform: NDArray[np.float64] | None,
    pixdim: NDArray[np.float64],
    relevant: NDArray[np.bool_],
    shape: tuple[int, int, int],
) -> list[str]:
    """Return one line per thing about the position that a person should know."""
    found = []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if sform is not None and qform is not None:
        apart = corner_distance(sform, qform, shape)
        if apart > max(1e-3, 0.01 * spacing.min()):
            found.append(f"sform and qform disagree by up to {apart:.3g} mm: the sform is used")
    if not np.allclose(np.abs(pixdim)[relevant], spacing[relevant], rtol=1e-3):
        stored = " x ".join(f"{size:.4g}" for size in np.abs(pixdim))
        found.append(f"voxel sizes in the header ({stored}) differ from the position matrix: the matrix is used")
    return found + placement.oddities(affine)


def _geometry(position: _Position, axis_map: AxisMap, loaded_shape: tuple[int, ...]) -> Geometry:
    affine_mm = position.affine_mm
    is_volume = len(loaded_shape) == 3
    affine = None
    if affine_mm is not None and is_volume:
        affine = LPS_FROM_RAS @ affine_mm @ axis_map.index_matrix(loaded_shape)
    return Geometry(
        spacing=tuple(position.spacing[axis] for axis in axis_map.permutation),
        affine=affine,
        axis_map=axis_map,
        source_affine=position.affine,
        source_orientation=position.codes if position.affine is not None else None,
    )
