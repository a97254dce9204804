"""What was saved of a scan, read back: the file with the whole annotation, and what the journal knows beyond it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from napari_unet.domain.annotation import Annotation, Correction
from napari_unet.domain.errors import ScanError
from napari_unet.domain.scan import Scan
from napari_unet.session.state import Flag
from napari_unet.storage.audit import FLAG
from napari_unet.storage.journal import Journal, KnownScan
from napari_unet.storage.project_folder import ProjectFolder, SavedAnnotation


@dataclass(frozen=True)
class Recalled:
    """What is known of a scan from before.

    Parameters
    ----------
    saved : SavedAnnotation or None
        As it stands after everything that was said; None where nothing was.
    n_since : int
        How many changes came from the journal alone.
    in_journal : bool
        Whether the journal knows the scan, so that it need not be told what is there.
    since : Correction or None
        What the journal lacks: a copy of it from before was put in its place.
    flag : Flag or None
    """

    saved: SavedAnnotation | None
    n_since: int = 0
    in_journal: bool = False
    since: Correction | None = None
    flag: Flag | None = None


def recall(project: ProjectFolder, scan: Scan) -> Recalled:
    """Return what was saved of a scan.

    Raises
    ------
    ScanError, ProjectError
        It is damaged, or fits another scan; all files are left as they are.
    """
    saved, trouble = None, None
    try:
        saved = project.read_annotation(scan.fingerprint, scan.spatial_shape, scan.slice_axis)
    except ScanError as error:
        trouble = error
    journal = project.journal()
    if journal is None:
        if trouble is not None:
            raise trouble
        return Recalled(saved)
    with closing(journal):
        known = journal.scan(scan.fingerprint)
        if known is None:
            if trouble is not None:
                raise trouble
            return Recalled(saved)
        if (known.shape, known.slice_axis) != (scan.spatial_shape, scan.slice_axis):
            raise ScanError("The saved labels of this scan do not fit it: they were left as they are.")
        last = journal.last(scan.fingerprint, FLAG)
        flag = Flag(**last.content().facts) if last is not None and last.content().facts else None
        if saved is not None and saved.seq > journal.head()[0]:
            # A copy of the journal from before was put in its place: it is told what has changed since.
            older, _ = replayed(journal, known, None)
            since = Correction.between("import", older.annotation, saved.annotation)
            return Recalled(saved, in_journal=True, since=since, flag=flag)
        found, n = replayed(journal, known, saved)
        return Recalled(found, n, in_journal=True, flag=flag)


def replayed(journal: Journal, known: KnownScan, saved: SavedAnnotation | None) -> tuple[SavedAnnotation, int]:
    """Return what was saved of a scan with all that the journal knows beyond it, and how many changes that were.

    Parameters
    ----------
    journal : Journal
    known : KnownScan
    saved : SavedAnnotation or None
        None: begin with nothing.

    Raises
    ------
    ProjectError
        The journal cannot be read.
    """
    n_slices = 1 if known.slice_axis is None else known.shape[known.slice_axis]
    if saved is None:
        nothing = Annotation.empty(known.shape, known.slice_axis)
        saved = SavedAnnotation(nothing, np.zeros(n_slices, bool), np.zeros(n_slices, bool))
    annotation, locked, taught, seq, n = saved.annotation, saved.locked, saved.taught, saved.seq, 0
    for event in journal.events(known.fingerprint, after=seq):
        content = event.content()
        content.apply(annotation)
        if content.sides is not None:
            locked, taught = content.sides.locked, content.sides.taught
        seq, n = event.seq, n + 1
    return SavedAnnotation(annotation, locked, taught, seq), n
