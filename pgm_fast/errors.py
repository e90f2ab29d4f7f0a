"""Errors meant for people: one line that names the thing, what was received, and what would be right.

The command line prints these without a traceback and exits with status 2; anything else is a bug and keeps its
traceback.
"""

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LaunchError",
    "PgmFastError",
    "TrainingStopped",
]


class PgmFastError(Exception):
    """Base class of every error that a user can cause and mend."""


class DataError(PgmFastError, ValueError):
    """A feature file or feature set is not usable as it is."""


class ConfigError(PgmFastError, ValueError):
    """A configuration value, override or combination of them is not allowed."""


class CheckpointError(PgmFastError, RuntimeError):
    """A checkpoint or run folder cannot be read or written."""


class BackendError(PgmFastError, RuntimeError):
    """A backend was asked for by name and cannot serve."""


class LaunchError(PgmFastError, RuntimeError):
    """A kernel that the device cannot start, or that cannot be compiled for it; nothing has been computed."""


class TrainingStopped(PgmFastError, RuntimeError):
    """Training cannot go on (too many non-finite steps in a row, say)."""
