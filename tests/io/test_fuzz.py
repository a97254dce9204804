"""Damaged files of every format: a reader answers with a scan or with a named error, in little time and memory.

Each case takes a small sound source, changes some of its bytes (header first), or cuts it short. The slow test is the
full run; what once went wrong is kept by its seed.
"""

from __future__ import annotations

import faulthandler
import random
import resource
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_unet.domain.errors import ScanError
from napari_unet.io.registry import can_read, read_scan

_SECONDS = 20
_MEMORY = 3 * 2**30
_FULL_RUN = 21_000


def _volume() -> np.ndarray:
    return (np.random.default_rng(0).random((5, 7, 6)) * 1000).astype(np.int16)


def _write_nifti(folder: Path) -> list[Path]:
    image = nib.Nifti1Image(_volume().transpose(), np.diag([-1.0, -1.0, 2.0, 1.0]))
    paths = [folder / "a.nii", folder / "b.nii.gz", folder / "c.nii"]
    nib.save(image, paths[0])
    nib.save(image, paths[1])
    nib.save(nib.Nifti2Image(_volume().transpose(), np.eye(4)), paths[2])
    return paths


def _write_tiffs(folder: Path) -> list[Path]:
    paths = [folder / name for name in ("a.tif", "b.tif", "c.ome.tif")]
    tifffile.imwrite(paths[0], _volume().astype(np.uint16), compression="zlib", imagej=False)
    tifffile.imwrite(paths[1], _volume().astype(np.uint16), imagej=True, metadata={"axes": "ZYX", "spacing": 2.0})
    tifffile.imwrite(paths[2], _volume(), metadata={"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm"})
    return paths


def _write_pictures(folder: Path) -> list[Path]:
    colour = np.random.default_rng(1).integers(0, 255, (9, 8, 3), np.uint8)
    paths = [folder / f"p.{suffix}" for suffix in ("png", "jpg", "bmp", "gif")]
    for path in paths:
        Image.fromarray(colour).save(path)
    return paths


def _write_itk(folder: Path) -> list[Path]:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(_volume())
    image.SetSpacing((0.5, 0.6, 2.0))
    paths = [folder / "a.nrrd", folder / "b.mha"]
    for path in paths:
        sitk.WriteImage(image, str(path), useCompression=path.suffix == ".nrrd")
    return paths


def _write_dicom(folder: Path) -> list[Path]:
    import pydicom
    from pydicom.uid import RLELossless

    from tests.io.dicom_files import write_enhanced, write_series

    single, series = folder / "single.dcm", folder / "series"
    write_series(series, _volume())
    enhanced = write_enhanced(folder / "enhanced.dcm", _volume())
    first = min(series.iterdir())
    shutil.copy(first, single)
    packed = pydicom.dcmread(first)
    packed.compress(RLELossless)
    packed.save_as(folder / "packed.dcm")
    return [single, folder / "packed.dcm", series, enhanced]


def _write_zarr(folder: Path) -> list[Path]:
    from napari_unet.domain.geometry import Geometry
    from napari_unet.domain.labels import LabelSchema
    from napari_unet.domain.scan import Scan
    from napari_unet.io.writers import write_mask

    labels = (_volume() % 3).astype(np.uint8)
    scan = Scan(labels, "zyx", Geometry((2.0, 0.5, 0.5)), slice_axis=0)
    write_mask(labels, scan, folder / "mask.ome.zarr", LabelSchema.of("one", "two"))
    return [folder / "mask.ome.zarr"]


SOURCES = {
    "nifti": _write_nifti,
    "tiff": _write_tiffs,
    "pictures": _write_pictures,
    "itk": _write_itk,
    "dicom": _write_dicom,
    "zarr": _write_zarr,
}


def _mutated(sound: bytes, chance: random.Random) -> bytes:
    """Return bytes with something wrong: mostly in the header, where a byte decides most."""
    data = bytearray(sound)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        reach = min(len(data), chance.choice((64, 400, 2000, len(data))))
        if not reach:
            break
        at = chance.randrange(reach)
        kind = chance.randrange(5)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"9999"))
        elif kind == 3:
            del data[at : at + chance.choice((1, 4, 64))]
        else:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 4, 32))))
    if chance.random() < 0.2:
        del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


@pytest.fixture
def bounded() -> Iterator[None]:
    """End a reading that takes too long or too much memory with an error of this test's."""

    def too_slow(*_: object) -> None:
        raise AssertionError(f"one reading took more than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, limits[1]))
    faulthandler.enable()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _read_damaged(source: Path, place: Path, chance: random.Random) -> str:
    """Damage a copy of a file, or of one file of a folder, and read it; say what became of it."""
    copy = place / source.name
    if source.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        victim = chance.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
        victim.write_bytes(_mutated(victim.read_bytes(), chance))
    else:
        copy.write_bytes(_mutated(source.read_bytes(), chance))
    signal.alarm(_SECONDS)
    try:
        if not can_read(copy):
            return "no scan"
        scan = read_scan(copy, untrusted=chance.random() < 0.5)
        data = np.asarray(scan.data)
        assert data.size > 0
        assert np.isfinite(data).all()
        assert scan.geometry.spacing is None or all(np.isfinite(s) and s > 0 for s in scan.geometry.spacing)
        assert scan.geometry.affine is None or np.isfinite(scan.geometry.affine).all()
    except ScanError as error:
        if not 10 < len(str(error)) < 600:
            raise AssertionError(f"no sentence: {str(error)[:1000]!r}") from error
        return "refused"
    finally:
        signal.alarm(0)
    return "read"


def _run(kind: str, folder: Path, seeds: range) -> Counter[str]:
    """Return how many were read, refused, and taken for no scan at all."""
    became: Counter[str] = Counter()
    sources = SOURCES[kind](folder)
    for source in sources:
        assert read_scan(source).data.size, "sound to begin with"
    place = folder / "damaged"
    place.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            try:
                became[_read_damaged(sources[seed % len(sources)], place, random.Random(seed))] += 1
            except BaseException as error:
                error.add_note(f"kind {kind!r}, seed {seed}, {sources[seed % len(sources)].name}")
                raise
    return became


@pytest.mark.parametrize("kind", SOURCES)
def test_damaged_files_are_refused_or_read(kind: str, tmp_path: Path, bounded: None) -> None:
    became = _run(kind, tmp_path, range(150))
    assert became.total() == 150
    assert became["refused"] > 10, "the damage is felt"


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_damaged_files_are_refused_or_read_full_run(kind: str, tmp_path: Path, bounded: None) -> None:
    n = _FULL_RUN // len(SOURCES)
    became = _run(kind, tmp_path, range(1000, 1000 + n))
    assert became.total() == n
    assert became["refused"] > n // 15, "the damage is felt"
