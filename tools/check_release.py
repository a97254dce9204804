"""Checks the files of a release before anybody can install them.

python tools/check_release.py dist
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

from napari_unet import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "napari_unet"
#: What a package may hold. Scans have other endings, and none of them belongs there.
ENDINGS = {".py", ".yaml", ".typed", ".md", ".safetensors"}
#: PyPI takes 100 MB; hospitals take what fits a mail.
MAX_BYTES = 40_000_000
BESIDE_THE_PACKAGE = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}


def package_files() -> set[str]:
    """Return the files of the package as they stand in the checkout, named from its root."""
    found = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def problems_of(folder: Path) -> list[str]:
    """Return what is wrong with the release in a folder, in sentences.

    Parameters
    ----------
    folder : Path
        Holds one wheel and one sdist of this version, and nothing else.
    """
    stem = f"{PACKAGE}-{__version__}"
    wheel, sdist = folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"
    there = {path.name for path in folder.iterdir()}
    if there != {wheel.name, sdist.name}:
        return [f"{folder} holds {sorted(there)}, not the wheel and the sdist of {__version__} alone."]
    problems = [
        f"{path.name} has {path.stat().st_size / 1e6:.1f} MB."
        for path in (wheel, sdist)
        if path.stat().st_size > MAX_BYTES
    ]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if not name.startswith(f"{stem}.dist-info/")}
        about = message_from_bytes(archive.read(f"{stem}.dist-info/METADATA"))
        entry_points = archive.read(f"{stem}.dist-info/entry_points.txt").decode()
    if about["Version"] != __version__:
        problems.append(f"The wheel calls itself {about['Version']}, the package {__version__}.")
    if "[napari.manifest]" not in entry_points or "[console_scripts]" not in entry_points:
        problems.append("The wheel does not tell napari or the shell of itself.")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    in_sdist = {name for name in names if name.startswith(f"{PACKAGE}/")}
    expected = package_files()
    for what, held in (("wheel", in_wheel), ("sdist", in_sdist)):
        problems += [f"The {what} lacks {name}." for name in sorted(expected - held)]
        problems += [f"The {what} holds {name}." for name in sorted(held - expected)]
    problems += [f"The package holds {name}." for name in sorted(expected) if Path(name).suffix not in ENDINGS]
    problems += [f"The sdist lacks {name}." for name in sorted(BESIDE_THE_PACKAGE - names)]
    problems += [f"The sdist holds {name}." for name in sorted(names) if name.startswith(("tests/", "benchmarks/"))]
    return problems


if __name__ == "__main__":
    found = problems_of(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]} is fit to be released.")
    sys.exit(bool(found))
