"""Errors meant for people: one line that names the thing, what was received, and what would be right.

The command line prints these without a traceback and exits with status 2; anything else is a bug and keeps its
traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LaunchError",
    "PgmFastError",
    "TrainingStopped",
    "did_you_mean",
]


def did_you_mean(name: object, allowed: Iterable[str], prefix: str = "", most: int = 1, cutoff: float = 0.6) -> str:
    """`` (did you mean x?)`` for a message about an unknown name where there is one like it, else nothing.

    Args:
        name: as received.
        allowed: the names that there are.
        prefix: of each in the message.
        most: how many are named.
        cutoff: how like they are at least, between 0 and 1.
    """
    near = get_close_matches(str(name), list(allowed), n=most, cutoff=cutoff)
    return f" (did you mean {' or '.join(prefix + other for other in near)}?)" if near else ""


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
