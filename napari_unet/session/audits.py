"""How the masks of a project came to be, as its journal knows."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from napari_unet.session.ledger import Ledger
from napari_unet.storage.audit import AuditCard, audit_card
from napari_unet.storage.desk import Place
from napari_unet.storage.verify import KEPT

if TYPE_CHECKING:
    from napari_unet.session.desk import ProjectDesk
    from napari_unet.session.state import ScanState


class Audits:
    """Reads a project's journal for those who ask what was done to its scans; each answer is of that moment.

    Parameters
    ----------
    ledger : Ledger
        Of the project.
    desk : ProjectDesk
        Knows the project's scans by their numbers.
    """

    def __init__(self, ledger: Ledger, desk: ProjectDesk) -> None:
        self._ledger, self._desk = ledger, desk

    def of(self, state: ScanState) -> AuditCard | None:
        """Return how the labels of a scan came to be; None where the journal knows nothing of the scan.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._ledger.journal()
        if journal is None:
            return None
        with closing(journal):
            return audit_card(journal, state.scan.fingerprint)

    def all(self) -> list[tuple[Place, AuditCard | None]]:
        """Return what became of each of the project's scans, by their numbers; it takes as long as there are events.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._ledger.journal()
        places = self._desk.places()
        if journal is None:
            return [(place, None) for place in places]
        with closing(journal):
            return [(place, audit_card(journal, place.scan)) for place in places]

    def model_names(self) -> dict[str, str]:
        """Return the names of the project's checkpoints by their identifiers, deleted ones too.

        Raises
        ------
        ProjectError
            The journal is damaged.
        """
        journal = self._ledger.journal()
        if journal is None:
            return {}
        with closing(journal):
            kept = [event for event in journal.events() if event.action == KEPT and event.model is not None]
            return {str(event.model): str(event.content().facts.get("name")) for event in kept}
