"""Makes ``docs/scans-read.md``: how every scan of a folder of test data is read, or why it is refused.

python docs/make_scan_table.py ../shared/data
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from napari_unet.domain.errors import ScanError, SeriesChoiceError
from napari_unet.io.info import describe
from napari_unet.io.registry import find_sources, read_scan

OUT = Path(__file__).parent / "scans-read.md"
_HEAD = """# How real scans are read

Made by `python docs/make_scan_table.py FOLDER` on public test data that is not part of this project; every file and
series below the folder has its row, equal ones share it. Shapes and spacings are those of the array as loaded (slowest
axis first), orientation is the file's own. A row in *italics* is a refusal, in the words that the person reads.

| source | n | axes | shape | spacing in mm | orientation | type | notes |
|---|---|---|---|---|---|---|---|
"""


Row = tuple[str, tuple[str, ...], tuple[int, ...]]


def _rows(path: Path, root: Path, series: str | None = None) -> list[Row]:
    """Return ``(folder, what is equal, shape)`` for a source; one for each series."""
    folder = path.parent.relative_to(root).as_posix()
    place = folder if path.is_file() else f"{folder}/{path.name}"
    try:
        scan = read_scan(path, series=series)
    except SeriesChoiceError as error:
        return [row for each in error.series for row in _rows(path, root, each.uid)]
    except ScanError as error:
        message = str(error).replace("|", "/")
        return [(f"{folder}/{path.name}", ("", "", "", "", f"*{message}*"), ())]
    found = describe(scan)
    steps = found["spacing_mm"]
    spacing = "unknown" if steps is None else " x ".join(f"{step:.4g}" for step in steps)
    equal = (found["axes"], spacing, found["orientation"] or "-", found["dtype"], "; ".join(found["warnings"]))
    return [(place, equal, scan.data.shape)]


def _span(shapes: list[tuple[int, ...]]) -> str:
    if not shapes[0]:
        return ""
    ranges = [(min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)]
    return " x ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def main() -> None:
    """Read everything and write the table."""
    root = Path(sys.argv[1])
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[int, ...]]] = defaultdict(list)
    sources = find_sources(root)
    # A folder is one source, and each of its files may be opened by itself.
    singles = [file for path in sources if path.is_dir() for file in sorted(path.iterdir()) if file.is_file()]
    for path in (*sources, *singles):
        for place, equal, shape in _rows(path, root):
            groups[place, equal].append(shape)
    lines = [
        f"| {place} | {len(shapes)} | {equal[0]} | {_span(shapes)} | {' | '.join(equal[1:])} |"
        for (place, equal), shapes in sorted(groups.items())
    ]
    OUT.write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
