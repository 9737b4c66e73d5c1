"""The errors a user may meet: each message is a sentence with the value and what to do."""

from __future__ import annotations


class EntkAppError(Exception):
    """Base of every error that this application raises on purpose."""

    exit_code = 1


class SettingsError(EntkAppError):
    """A setting, preset or configuration file is wrong; nothing was started."""

    exit_code = 2


class StructureError(EntkAppError):
    """A structure, sequence or reference cannot be simulated as given."""

    exit_code = 2


class RunFolderError(EntkAppError):
    """A run folder is missing, in use or cannot be written."""

    exit_code = 2


class ExportError(EntkAppError):
    """Frames cannot be exported as asked for; nothing was written."""

    exit_code = 2


class CompareError(EntkAppError):
    """Runs cannot be compared as asked for; nothing was written."""

    exit_code = 2


class RecordError(EntkAppError):
    """A record on disk is missing, truncated or of another kind."""


class DataError(EntkAppError):
    """Numbers that a method cannot work on: other shapes, NaN, no frames."""


class BlewUpError(EntkAppError):
    """The integration left physics: coordinates or energies are no numbers, or the system is heated without bound."""


class ScoreError(EntkAppError):
    """The user's score cannot be loaded, raised, or returned something that is not a number."""


class BrokenStructureError(DataError):
    """Positions that no molecule has: nothing is simulated from them."""


class DeviceError(EntkAppError):
    """A task was given a GPU and cannot use it."""


class CampaignFailed(EntkAppError):
    """The campaign cannot go on; the message says why and where the logs are."""


class StorageError(CampaignFailed):
    """The run folder is full, read-only, out of reach or gone; what was finished stays as it is."""


class LockLost(CampaignFailed):
    """Another launcher has the run folder by now, or nobody's lock is there."""


class Interrupted(EntkAppError):
    """The user (or the batch system) asked the campaign to end."""

    exit_code = 130
