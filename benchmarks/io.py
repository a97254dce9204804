"""Reading speed and peak memory of a 512x512x300 scan as DICOM series and as NIfTI, against the field's libraries.

Each reading runs in a process of its own, in turn, on files that were just read once (so that all find them in the
system's cache). Time is that of the reading alone, imports excluded; memory is the growth of the peak above what the
imports took, as a multiple of the volume (int16)::

    python benchmarks/io.py --json -
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SPACING = (1.5, 0.7, 0.7)
_READERS = {
    "dicom": ("napari-unet", "highdicom", "simpleitk"),
    "nifti": ("napari-unet", "nibabel", "simpleitk"),
    "nifti.gz": ("napari-unet", "nibabel", "simpleitk"),
}


def write_sources(folder: Path, shape: tuple[int, int, int], seed: int) -> None:
    """Write one computed CT in all forms."""
    import nibabel as nib
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(seed)
    grid = np.indices(shape[1:])
    body = ((grid - np.array(shape[1:])[:, None, None] / 2) ** 2).sum(axis=0) < (0.4 * shape[1]) ** 2
    volume = np.where(body, 40, -1000).astype(np.int16) + rng.integers(-30, 30, shape, np.int16)
    affine = np.diag([-_SPACING[2], -_SPACING[1], _SPACING[0], 1.0])
    nib.save(nib.Nifti1Image(volume.transpose(), affine), folder / "scan.nii")
    nib.save(nib.Nifti1Image(volume.transpose(), affine), folder / "scan.nii.gz")
    series = folder / "series"
    series.mkdir()
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    for z, plane in enumerate(volume):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, frame
        data.PatientID, data.PatientName, data.StudyID, data.StudyDate = "bench", "bench", "1", "20200101"
        data.StudyTime, data.AccessionNumber, data.PatientBirthDate, data.PatientSex = "000000", "", "", ""
        data.ReferringPhysicianName, data.Manufacturer, data.SeriesNumber = "", "", 1
        data.Modality, data.InstanceNumber = "CT", z + 1
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, z * _SPACING[0]]
        data.PixelSpacing, data.SliceThickness = [_SPACING[1], _SPACING[2]], _SPACING[0]
        data.Rows, data.Columns, data.SamplesPerPixel = shape[1], shape[2], 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = plane.tobytes()
        data.save_as(series / f"{z:04d}.dcm", enforce_file_format=True)


def _reading(reader: str, kind: str, folder: Path) -> Callable[[], Any]:
    """Import what is needed and return the reading itself, which returns an array ``[z, y, x]``."""
    path = folder / {"dicom": "series", "nifti": "scan.nii", "nifti.gz": "scan.nii.gz"}[kind]
    if reader == "napari-unet":
        import napari_unet.io.dicom.reader
        import napari_unet.io.nifti  # noqa: F401
        from napari_unet.io.registry import read_scan

        return lambda: read_scan(path).data
    if reader == "nibabel":
        import nibabel as nib

        # A copy: what stays mapped to the file has not been read yet.
        return lambda: np.array(nib.load(path).dataobj).transpose()
    if reader == "simpleitk":
        import SimpleITK as sitk

        if kind == "dicom":
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames

            return lambda: sitk.GetArrayFromImage(sitk.ReadImage(names(str(path))))
        return lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    import highdicom as hd
    import pydicom

    def read() -> Any:
        return hd.get_volume_from_series([pydicom.dcmread(file) for file in path.iterdir()], dtype=np.int16).array

    return read


def _peak_bytes() -> int:
    # Not getrusage: its figure begins with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _read_once(reader: str, kind: str, folder: Path) -> dict[str, float]:
    read = _reading(reader, kind, folder)
    before = _peak_bytes()
    began = time.perf_counter()
    array = read()
    seconds = time.perf_counter() - began
    peak = _peak_bytes()
    checksum = int(array.sum(dtype=np.int64))
    return {"seconds": seconds, "volumes": (peak - before) / (2 * array.size), "checksum": checksum}


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256x256x100, one round")
    parser.add_argument("--json", metavar="FILE", default="-")
    parser.add_argument("--device", default="auto", help="taken for uniformity: reading uses no accelerator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        sys.stdout.write(json.dumps(_read_once(given.one[0], given.one[1], Path(given.one[2]))) + "\n")
        return
    shape, rounds = ((100, 256, 256), 1) if given.quick else ((300, 512, 512), 5)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_sources(Path(folder), shape, given.seed)
        for kind, readers in _READERS.items():
            runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
            for _ in range(rounds + 1):
                for reader in readers:
                    command = [sys.executable, __file__, "--one", reader, kind, folder]
                    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                    runs[reader].append(json.loads(answer.strip().splitlines()[-1]))
            sums = {run["checksum"] for each in runs.values() for run in each}
            if len(sums) > 1:
                raise SystemExit(f"{kind}: the readers do not agree on the voxels")
            results[kind] = {
                reader: {
                    # The first round fills the cache.
                    "seconds": statistics.median(run["seconds"] for run in each[1:]),
                    "volumes": max(run["volumes"] for run in each),
                }
                for reader, each in runs.items()
            }
    figures = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "shape": shape,
        "seed": given.seed,
        "results": results,
        "ratios": {
            kind: found["napari-unet"]["seconds"]
            / min(each["seconds"] for reader, each in found.items() if reader != "napari-unet")
            for kind, found in results.items()
        },
    }
    text = json.dumps(figures, indent=2)
    if given.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(given.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
