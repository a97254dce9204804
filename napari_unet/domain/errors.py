"""Named errors. Each message is one sentence (or two) that says what happened and what to do about it."""


class NapariUnetError(Exception):
    """Base of every error this package raises on purpose; its message is fit to be shown to a person."""


class ScanError(NapariUnetError):
    """A scan cannot be read, or cannot be read without guessing where its voxels stand."""


class SeriesChoiceError(ScanError):
    """Several series were found and none was chosen."""


class MaskError(NapariUnetError):
    """A mask does not fit its scan, or its values cannot be understood without being told."""


class PairingError(NapariUnetError):
    """A folder of images and a folder of masks do not form pairs."""


class ModelError(NapariUnetError):
    """A model file is unknown, foreign, damaged, or does not fit the scan."""


class TrainingError(NapariUnetError):
    """Training cannot start or cannot go on."""


class SettingsError(NapariUnetError):
    """A setting is unknown or its value is out of range."""


class ExportError(NapariUnetError):
    """A result could not be written."""


class EngineError(NapariUnetError):
    """The computing process failed or was lost."""


class SessionError(NapariUnetError):
    """An action does not make sense in the session's present state."""
