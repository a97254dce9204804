"""The sets of the effort benchmark: where they lie, what their masks mean, who streams and who tests.

How a recipe learns, and what is measured, stands elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from napari_unet.io.masks import TruthRule, distinct_values, infer_classes, read_mask
from napari_unet.io.pairs import LabelledScan, Pair, find_pairs, load_pair
from napari_unet.session.batch import schema_for
from napari_unet.session.simulate import Split, group_pairs, split_groups

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class ScanSet:
    """A folder of pairs, what its masks mean, and its stream and test (docs/benchmarks.md).

    Parameters
    ----------
    rule : TruthRule
        How mask values are meant.
    scans : int
        Length of the stream.
    test : int or None
        Scans that test, where no expression names them.
    test_regex, group_by, max_side
        As the options of ``simulate``.
    exclude : str or None
        Pairs whose stem matches are left out: their truth is empty.
    seeds : tuple of int
        Of this product; others run with the first.
    """

    rule: TruthRule
    scans: int
    test: int | None = None
    test_regex: str | None = None
    group_by: str | None = None
    max_side: int | None = None
    exclude: str | None = None
    seeds: tuple[int, ...] = (0,)


SETS = {
    "hippocampus_mr": ScanSet(TruthRule(), 10, test=40, seeds=(0, 1, 2)),
    "em_membrane": ScanSet(TruthRule(foreground=(0,)), 5, test_regex="^2[0-9]$", seeds=(0, 1, 2)),
    "breast_ultrasound": ScanSet(TruthRule(), 6, test=20, max_side=256, exclude="^normal_"),
    "cardiac_cine_mr": ScanSet(TruthRule(), 10, test=10, group_by="^(.+)-IM-"),
    "retina_vessel": ScanSet(TruthRule(), 10, test=5),
    "nuclei_fluorescence": ScanSet(TruthRule(binary=True), 10, test=20),
}


class Scans:
    """Reads the scans of a set, group by group, as ``simulate`` does; calling it is loading.

    Parameters
    ----------
    which : ScanSet
    folder : Path
        Holds ``images`` and ``masks``.
    """

    def __init__(self, which: ScanSet, folder: Path) -> None:
        pairs: Iterable[Pair] = find_pairs(folder / "images", folder / "masks")
        pairs = [pair for pair in pairs if which.exclude is None or not re.search(which.exclude, pair.stem)]
        self._which = which
        self._mapping = infer_classes((distinct_values(read_mask(pair.mask).data) for pair in pairs), which.rule)
        self._groups = group_pairs(pairs, which.group_by)
        self.schema = schema_for(self._mapping)

    @property
    def names(self) -> list[str]:
        """All groups, sorted as strings."""
        return list(self._groups)

    def __call__(self, name: str) -> list[LabelledScan]:
        """Read the scans of a group."""
        return [load_pair(pair, self._mapping, self._which.max_side) for pair in self._groups[name]]

    def split(self, seed: int, scans: int | None = None, test: int | None = None) -> Split:
        """Return stream and test as ``simulate`` chooses them; the set's own numbers unless given."""
        which = self._which
        found = split_groups(self.names, scans or which.scans, test or which.test, which.test_regex, seed)
        return replace(found, test=found.test[:test])

    def foreground(self, name: str) -> int:
        """Return the number of foreground voxels of a group's truth."""
        return sum(int((item.labels > 0).sum()) for item in self(name))
