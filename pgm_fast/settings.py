"""What a setting may be, said once beside it: a field of a settings class that knows its range or its choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ConfigError, did_you_mean

__all__ = ["Range", "check_settings", "choice", "choices_of", "number", "ranges_of"]

_RANGE, _CHOICES = "range", "choices"


@dataclass(frozen=True)
class Range:
    """Finite numbers between bounds; None is no bound.

    Attributes:
        at_least, above: the lower bound, itself allowed or not.
        at_most, below: the upper bound, itself allowed or not.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"of at least": self.at_least, "above": self.above, "of at most": self.at_most, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)


def number(default: Any, **bounds: float) -> Any:
    """A field with a number in a :class:`Range`."""
    return field(default=default, metadata={_RANGE: Range(**bounds)})


def choice(default: str, choices: Sequence[str]) -> Any:
    """A field with one of some names."""
    return field(default=default, metadata={_CHOICES: tuple(choices)})


def ranges_of(settings: Any) -> dict[str, Range]:
    """name -> range, of a settings class or an instance of it."""
    return {f.name: f.metadata[_RANGE] for f in fields(settings) if _RANGE in f.metadata}


def choices_of(settings: Any) -> dict[str, tuple[str, ...]]:
    """name -> choices, of a settings class or an instance of it."""
    return {f.name: f.metadata[_CHOICES] for f in fields(settings) if _CHOICES in f.metadata}


def check_settings(settings: Any, section: str) -> None:
    """Raises ConfigError for the first value that is not allowed; None counts as unset."""
    place = f"{section}." if section else ""
    for name, choices in choices_of(settings).items():
        value = getattr(settings, name)
        if value not in choices:
            near = did_you_mean(value, choices, most=2, cutoff=0.65)
            raise ConfigError(f"{place}{name}={value!r} is not allowed{near}; it takes {', '.join(choices)}")
    for name, allowed in ranges_of(settings).items():
        value = getattr(settings, name)
        if value is not None and value not in allowed:
            kind = "a number" if math.isfinite(value) else "a finite number"
            raise ConfigError(f"{place}{name}={value!r} is not allowed; it takes {kind} {allowed}")
