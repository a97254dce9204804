"""Which layers show the open scans: whoever wants to look at one finds it here."""

from __future__ import annotations

from napari.layers import Image, Labels, Layer

from napari_unet.session.session import Session
from napari_unet.session.state import ScanState


class ScanLayers:
    """An image and a Labels layer for each scan; the binder puts them in and takes them out.

    Parameters
    ----------
    session : Session
        Whose active scan counts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._images: dict[ScanState, Image] = {}
        self._labels: dict[ScanState, Labels] = {}

    def __len__(self) -> int:
        """Return how many scans can be painted on."""
        return len(self._labels)

    def labels(self, state: ScanState) -> Labels | None:
        """Return the Labels layer of a scan, if it is still there."""
        return self._labels.get(state)

    def image(self, state: ScanState) -> Image | None:
        """Return the image layer of a scan, if it is still there."""
        return self._images.get(state)

    @property
    def active_labels(self) -> Labels | None:
        """The Labels layer of the active scan."""
        active = self._session.active
        return self._labels.get(active) if active is not None else None

    @property
    def scans(self) -> list[ScanState]:
        """The scans that an image layer shows; one that is being closed is among them until its layers are gone."""
        return list(self._images)

    @property
    def all_labels(self) -> list[Labels]:
        """The Labels layers of all scans."""
        return list(self._labels.values())

    def of(self, state: ScanState) -> list[Image | Labels]:
        """Return the layers of a scan that are still there."""
        return [layer for layer in (self.image(state), self.labels(state)) if layer is not None]

    def painted_on(self, layer: Layer) -> ScanState | None:
        """Return the scan whose Labels layer this is; None where it is nobody's."""
        return next((state for state, known in self._labels.items() if known is layer), None)

    def put_image(self, state: ScanState, layer: Image) -> None:
        """Let a layer show a scan."""
        self._images[state] = layer

    def put_labels(self, state: ScanState, layer: Labels) -> None:
        """Let a layer show the labels of a scan."""
        self._labels[state] = layer

    def forget_labels(self, state: ScanState) -> None:
        """Let no layer show the labels of a scan: it was taken away."""
        self._labels.pop(state, None)

    def forget(self, state: ScanState) -> None:
        """Let no layer show a scan."""
        self._labels.pop(state, None)
        self._images.pop(state, None)
