"""What is open in a project: kept while people work, and put back when the project is opened again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import NapariUnetError, SessionError
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.io.registry import find_sources, read_scan
from napari_unet.session.ledger import Ledger
from napari_unet.session.models import find_model, shipped_models
from napari_unet.storage.desk import Desk, Place

if TYPE_CHECKING:
    from napari_unet.session.session import Session
    from napari_unet.session.state import ScanState


class ProjectDesk:
    """Scans that are open, the slice on screen of each, classes and model, as the project remembers them.

    Parameters
    ----------
    session : Session
        Whose scans they are.
    ledger : Ledger
        Of the project.
    """

    def __init__(self, session: Session, ledger: Ledger) -> None:
        self._session, self._ledger = session, ledger
        try:
            self._last, places = ledger.desk()
        except NapariUnetError:
            # Told when a scan is opened.
            self._last, places = Desk(), []
        self._places = {place.scan: place for place in places}
        self._slices = dict(self._last.slices)
        #: All classes that the project ever had, by their ids; none of these is given to another class.
        self.former = {each.id: each for each in self._last.former}
        self._kept: Desk | None = None
        self._is_watching = True
        #: Scans of the project whose file is not where it was.
        self.missing: list[Place] = []

    @property
    def waiting(self) -> list[Place]:
        """The scans that were open last time and are not open now."""
        here = {state.scan.fingerprint for state in self._session.scans}
        known = [self._places[key] for key in self._last.open if key in self._places and key not in here]
        return [place for place in known if place.path is not None]

    def places(self) -> list[Place]:
        """Return all scans of the project, by their numbers."""
        return sorted(self._places.values(), key=lambda place: place.number)

    def open_again(self, place: Place) -> None:
        """Show a scan of the project, which is opened where it is not; what is odd is notified."""
        here = next((s for s in self._session.scans if s.scan.fingerprint == place.scan), None)
        if here is not None:
            self._session.activate(here)
        elif place.path is not None:
            self.missing = [each for each in self.missing if each.scan != place.scan]
            self._reopen(place)
            if place in self.missing:
                self._tell_missing(f"scan {place.number}")
                self._session.project_changed.emit()
        else:
            self._session.tell(f"scan {place.number} was never in a file of its own: open it again where it came from.")

    def number_of(self, scan: Scan) -> int:
        """Return the number by which a scan is called in this project: its own, or the next."""
        known = self._places.get(scan.fingerprint)
        path = None if scan.source is None else scan.source.absolute()
        if known is None:
            number = max((place.number for place in self._places.values()), default=0) + 1
            known = Place(scan.fingerprint, number)
        if path is not None:
            known = replace(known, path=path, choices=dict(scan.choices))
        self._places[scan.fingerprint] = known
        return known.number

    def look_at(self, state: ScanState, index: int) -> None:
        """Remember which slice of a scan is on screen."""
        self._slices[state.scan.fingerprint] = index

    def note(self) -> None:
        """Keep what is open now."""
        if not self._is_watching:
            return
        session = self._session
        # A model's classes, or those of an empty window, do not take the place of what the project called its own.
        self.former = {each.id: each for each in session.schema.classes} | self.former
        model = session.models.in_use
        desk = Desk(
            # What is missing today may be there tomorrow.
            open=(*(state.scan.fingerprint for state in session.scans), *(place.scan for place in self.missing)),
            active=None if session.active is None else session.active.scan.fingerprint,
            slices=self._slices,
            classes=session.schema,
            former=tuple(self.former.values()),
            model=None if model is None else model.id,
            model_name=None if model is None else model.card.name,
        )
        if desk == self._kept:
            return
        self._kept = desk
        self._ledger.keep_desk(desk, [self._places[key] for key in desk.open])

    def rename(self, before: LabelSchema, after: LabelSchema) -> None:
        """Take note that the person calls classes otherwise; not of others that stood there only by their numbers."""
        old = {each.id: each.name for each in before.classes}
        for each in after.classes:
            known = self.former.get(each.id)
            if known is not None and old.get(each.id) == known.name:
                self.former[each.id] = each

    def leave(self) -> None:
        """Keep what is open now for the last time: what closes afterwards was open when the work ended."""
        # Nothing was opened, so that what was open before is still what was open last.
        if self._session.scans:
            self.note()
        self._is_watching = False

    def reopen(self) -> Iterator[None]:
        """Open what was open last time, scan by scan; what is odd is notified."""
        last = self._last
        if last.classes is not None and not self._session.scans:
            with suppress(SessionError):  # the person has chosen another model meanwhile
                self._session.set_schema(last.classes)
        self._take_model(last)
        self.missing = []
        for place in self.waiting:
            self._reopen(place)
            yield
        active = next((s for s in self._session.scans if s.scan.fingerprint == last.active), None)
        if active is not None:
            self._session.activate(active)
            self._session.go_to(min(last.slices.get(active.scan.fingerprint, 0), active.scan.n_slices - 1))
        if self.missing:
            self._tell_missing(", ".join(f"scan {place.number}" for place in self.missing))

    def find_moved(self, folder: Path) -> Iterator[None]:
        """Look for the missing scans among the files of a folder, by the hash of their voxels, and open them.

        Files of the same name come first; one is read per step.

        Raises
        ------
        ScanError
            There is no such folder.
        """
        names = {place.path.name for place in self.missing if place.path is not None}
        sources = sorted(find_sources(folder), key=lambda path: (path.name not in names, str(path)))
        for path in sources:
            if not self.missing:
                return
            ways = [dict(way) for way in {tuple(sorted(place.choices.items())) for place in self.missing}]
            for choices in ways:
                scan = _read(path, choices)
                found = next((p for p in self.missing if scan is not None and p.scan == scan.fingerprint), None)
                if scan is not None and found is not None:
                    self.missing.remove(found)
                    self._session.add_scan(scan)
            yield

    def _reopen(self, place: Place) -> None:
        assert place.path is not None
        try:
            if not place.path.exists():
                self.missing.append(place)
                return
            scan = read_scan(place.path, **place.choices)
            if scan.fingerprint == place.scan:
                self._session.add_scan(scan)
        except OSError:  # a network drive that is gone
            self.missing.append(place)
            return
        except NapariUnetError as error:
            self._session.tell(f"scan {place.number}: {error}")
            return
        if scan.fingerprint != place.scan:
            self._session.tell(
                f"scan {place.number}: its file has changed since it was labelled, so it was not opened and its labels "
                "were left alone. Open the file yourself to label it as another scan."
            )

    def _take_model(self, last: Desk) -> None:
        if last.model is None or last.model_name is None or self._session.models.in_use is not None:
            return
        try:
            found = self._named(last.model_name)
        except NapariUnetError:
            found = None
        if found is not None and found.id == last.model:
            # As the classes stand, they were this model's.
            self._session.models.use(found, learnt_here=True)
        else:
            self._session.tell(f"The model in use last time ({last.model_name}) is not there any more: choose one.")

    def _named(self, name: str) -> Checkpoint | None:
        if name in self._session.models.kept():
            return self._session.project.read_model(name)
        return find_model(name) if name in shipped_models() else None

    def _tell_missing(self, names: str) -> None:
        self._session.tell(f"{names}: not found where it was. If it has moved, choose Find moved scans.")


def _read(path: Path, choices: dict) -> Scan | None:
    try:
        return read_scan(path, **choices)
    except (NapariUnetError, OSError):
        return None
