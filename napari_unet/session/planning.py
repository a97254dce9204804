"""What the next fine-tune will be told: the model's settings or a plan from the scans, and what the person has set.

No widgets and no training. Scans are measured when a plan is first asked for, and again once scans, labels or classes
have changed. On large volumes that takes a second, which a view spends waiting for :meth:`Planning.prepare` instead of
standing still.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from psygnal import Signal

from napari_unet.domain.checkpoint import Checkpoint
from napari_unet.domain.errors import NapariUnetError, SessionError, SettingsError
from napari_unet.domain.settings import ModelSettings, TrainingSettings
from napari_unet.networks.growing import grown_settings
from napari_unet.session.models import helps
from napari_unet.session.setting_fields import value_of
from napari_unet.session.state import ScanState
from napari_unet.training.fingerprint import Fingerprint, fingerprint
from napari_unet.training.plan import plan_for, plan_upon
from napari_unet.training.presets import preset_named
from napari_unet.training.words import in_words

if TYPE_CHECKING:
    from napari_unet.session.session import Session
    from napari_unet.session.worker import Worker

_BUDGET = "training.budget_seconds"
#: The recipe of the bodies that are offered; the others have networks of their own.
_BEGUN_WITH = "default"
_FOLLOWING = {
    "network.in_channels": "follows from the scans, their colour and the neighbouring slices that are shown",
    "network.out_channels": "follows from the classes",
    _BUDGET: "is the time beside the Fine-tune button",
}
_MADE_WITH_THE_MODEL = ("network.", "preparation.")


def refuse_fixed(base: ModelSettings, values: Mapping[str, Any]) -> None:
    """Refuse to change what a model was made with: its weights would not fit, or see other intensities than they know.

    Parameters
    ----------
    base : ModelSettings
        Of the model's card.
    values : mapping
        Dotted keys and what they are to become.

    Raises
    ------
    SettingsError
        One of them would change, or cannot be what it is to become.
    """
    for key, value in values.items():
        # One by one: what depends on a value that cannot change is no fault of its own.
        if key.startswith(_MADE_WITH_THE_MODEL):
            wished = value_of(base.with_values({key: value}), key)
            if wished != value_of(base, key):
                raise SettingsError(f"{key} was set when the model was made: leave it out, or start from scratch.")


def begins_with(body: Checkpoint) -> str:
    """Return in a sentence that a new model begins with a body's weights."""
    return f"The network begins with the weights called {body.card.name}."


def begins_anew(body: Checkpoint) -> str:
    """Return in a sentence that a new model does not begin with a body's weights."""
    return (
        f"The network begins with random weights: those called {body.card.name} are for another network, or help only "
        "where slices are seen one by one."
    )


class Planning:
    """The plan of a session, with what the person has set by hand on top.

    Parameters
    ----------
    session : Session
        Whose scans, classes and model are planned for.
    worker : Worker
        Knows the device, once it has been found out; until then plans are made for a CPU.
    """

    changed = Signal()  # preset, time, device or something set by hand

    def __init__(self, session: Session, worker: Worker) -> None:
        self._session, self._worker = session, worker
        self.preset = "default"
        #: Dotted keys of what was set by hand; those a model was made with wait until there is no model.
        self.overrides: dict[str, Any] = {}
        self._budget_seconds = _budget_of(self.preset)
        self._found: Fingerprint | None = None
        self._free_memory: int | None = None
        self._measuring: threading.Thread | None = None
        # Counts what outdates a measurement, so that one begun before is not taken for a new one.
        self._version, self._measured_version = 0, -1
        for signal in (
            *(session.scan_added, session.scan_removed, session.labels_changed, session.acceptance_changed),
            session.schema_changed,
        ):
            signal.connect(self._forget)

    # -- what is planned ------------------------------------------------------------------------------------------

    @property
    def budget_seconds(self) -> float:
        """Wall time of the next fine-tune."""
        return self._budget_seconds

    def lessons(self) -> list[ScanState]:
        """Return the scans with something reviewed, the one on screen last: the last is favoured by training."""
        session = self._session
        taught = [state for state in session.scans if len(state.annotation.reviewed_slices())]
        return sorted(taught, key=lambda state: state is session.active)

    def settings(self) -> ModelSettings:
        """Return the settings of the next fine-tune.

        Raises
        ------
        SessionError
            No model and no scan to plan from.
        SettingsError
            What was set by hand does not fit the plan (any longer).
        NapariUnetError
            The scans do not go together.
        """
        try:
            return self._settings(self._changeable())
        except SettingsError as error:
            raise SettingsError(
                f"What was set by hand does not fit the plan: {error} Change it under Settings, or go back to the plan."
            ) from error

    def planned(self) -> ModelSettings:
        """Return the settings without what was set by hand; raises as :meth:`settings` does."""
        return self._settings({})

    def in_words(self) -> list[str]:
        """Return the plan in plain sentences, what was set by hand last; raises as :meth:`settings` does."""
        settings = self.settings()
        if not self._session.scans:
            return ["Open a scan to see what would be learnt from it."]
        model, body = self._session.models.in_use, self._session.models.body
        begun = []
        if model is None and body is not None:
            begun = [begins_with(body) if self.body() is not None else begins_anew(body)]
        if model is not None and not model.pixels:
            # It has handed over to the network, or never had filters beside it.
            settings = settings.with_values({"training.first_proposals": False})
        changed = "; ".join(f"{key} = {value}" for key, value in self._changeable().items())
        by_hand = [f"Set by hand: {changed}."] if changed else []
        return [*in_words(settings, self._measured()), *begun, *by_hand]

    def body(self) -> Checkpoint | None:
        """Return the weights that a new model begins from; None for random ones, or where a model goes on.

        A recipe or a network of one's own begins at random, and so does what the body does not help
        (:func:`~napari_unet.session.models.helps`). Raises as :meth:`settings` does.
        """
        body = self._session.models.body
        if body is None or self._session.models.in_use is not None or self.preset != _BEGUN_WITH:
            return None
        return body if helps(body, self.settings()) else None

    def reason_fixed(self, key: str) -> str | None:
        """Return why a setting cannot be changed now, to follow its name; None where it can."""
        if key in _FOLLOWING:
            return _FOLLOWING[key]
        if self._session.models.in_use is not None and key.startswith(_MADE_WITH_THE_MODEL):
            return "was set when the model was made; choose a new model to change it"
        return None

    def prepare(self) -> bool:
        """Measure the scans on a thread of its own; return whether nothing has to be waited for (any longer)."""
        if self._found is not None or not self._session.scans:
            return True
        if self._measuring is not None and self._measuring.is_alive():
            return False
        if self._measured_version == self._version:
            return True  # it failed: who asks for the plan hears why
        self._measured_version = self._version
        self._measuring = threading.Thread(target=self._measure_aside, args=(self._version,), daemon=True)
        self._measuring.start()
        return False

    # -- what the person sets -------------------------------------------------------------------------------------

    def set_value(self, key: str, value: Any) -> None:
        """Set a setting by hand; one that equals the plan is not (or no longer) set by hand.

        Raises
        ------
        SettingsError
            An unknown key, a value out of range or at odds with the others, or one that cannot be changed now.
        """
        reason = self.reason_fixed(key)
        if reason is not None:
            raise SettingsError(f"{key} cannot be set by hand: it {reason}.")
        others = {other: kept for other, kept in self._changeable().items() if other != key}
        wished = value_of(self._settings(others | {key: value}), key)
        if wished == value_of(self._settings(others), key):
            self.overrides.pop(key, None)
        else:
            self.overrides[key] = wished
        self.changed.emit()

    def clear(self, key: str | None = None) -> None:
        """Go back to the plan, for one setting or for all."""
        if key is None:
            self.overrides.clear()
        else:
            self.overrides.pop(key, None)
        self.changed.emit()

    def set_preset(self, name: str) -> None:
        """Choose the recipe that plans start from, and with it the time that it is made for.

        Raises
        ------
        SettingsError
            There is no such preset.
        """
        self._budget_seconds = _budget_of(name)
        self.preset = name
        self.changed.emit()

    def set_budget(self, seconds: float) -> None:
        """Say how long a fine-tune may take.

        Raises
        ------
        SettingsError
            No time at all.
        """
        if not seconds > 0:
            raise SettingsError(f"A fine-tune needs more than {seconds:g} s.")
        if seconds != self._budget_seconds:
            self._budget_seconds = float(seconds)
            self.changed.emit()

    # -- helpers --------------------------------------------------------------------------------------------------

    def _changeable(self) -> dict[str, Any]:
        return {key: value for key, value in self.overrides.items() if self.reason_fixed(key) is None}

    def _settings(self, overrides: Mapping[str, Any]) -> ModelSettings:
        session = self._session
        if session.models.in_use is None:
            return self._plan(overrides)
        card, n_classes = session.models.in_use.card, len(session.schema.classes)
        # The model's own training ended where it ended; this is a new one, with other patches.
        values: dict[str, Any] = {
            _BUDGET: self.budget_seconds,
            "training.steps": None,
            "training.seed": card.steps,
        }
        settings = grown_settings(card.settings, n_classes)
        if settings is not card.settings and session.scans:
            # A class that the model does not know yet may have a side.
            allowed = self._plan({}).augmentation.mirror
            values["augmentation.mirror"] = tuple(axis for axis in settings.augmentation.mirror if axis in allowed)
        return settings.with_values(values | dict(overrides))

    def _plan(self, overrides: Mapping[str, Any]) -> ModelSettings:
        compute, found = self._worker.compute, self._measured()
        device = "cpu" if compute is None else compute.device
        scans = (found, len(self._session.schema.classes), self.preset)
        wishes: dict[str, Any] = {
            # A CUDA GPU has memory of its own, and only torch knows how much.
            "memory_bytes": None if device == "cuda" else self._free_memory,
            "budget_seconds": self.budget_seconds,
            "overrides": overrides,
            "device": device,
        }
        body = self._session.models.body
        if body is not None and self.preset == _BEGUN_WITH:
            settings = plan_upon(body.card.settings, *scans, **wishes)
            if helps(body, settings):
                return settings
        return plan_for(*scans, **wishes)

    def _measured(self) -> Fingerprint:
        if self._found is None:
            self._found = self._measure()
        return self._found

    def _measure(self) -> Fingerprint:
        states = self.lessons() or self._session.scans
        if not states:
            raise SessionError("No scan is open, so there is nothing to plan from: drop a scan onto the window.")
        self._free_memory = psutil.virtual_memory().available
        return fingerprint([state.scan for state in states], [_known(state) for state in states])

    def _measure_aside(self, version: int) -> None:
        try:
            found = self._measure()
        except NapariUnetError:
            return
        if version == self._version:
            self._found = found

    def _forget(self, *_: object) -> None:
        self._version += 1
        self._found = None


def _budget_of(preset: str) -> float:
    return preset_named(preset).values.get(_BUDGET, TrainingSettings().budget_seconds)


def _known(state: ScanState) -> NDArray:
    """Return a scan's labels where they teach, 0 elsewhere: neither a proposal nor a judge is anything to plan by."""
    annotation = state.annotation
    # Not zeros_like, which writes every page; most of a scan under work is not reviewed.
    known = np.zeros(annotation.labels.shape, annotation.labels.dtype)
    labels, painted, planes = map(state.scan.to_planes, (annotation.labels, annotation.painted, known))
    for index in annotation.reviewed_slices():
        if state.locked[index]:
            continue
        planes[index] = labels[index] if annotation.accepted[index] else labels[index] * painted[index]
    return known
