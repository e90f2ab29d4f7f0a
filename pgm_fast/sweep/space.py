"""What a sweep may try: an interval or a list of values for each setting."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..train.configure import flat, make_config

__all__ = ["Choices", "Interval", "overrides_of", "read_space", "require_allowed"]

_INTERVAL = re.compile(r"(log:)?([^.].*?)\.\.(.+)")
# Settings without which trials are not scored by the same measure on the same rows.
_COMMON = ("out", "preset", "train.seed", "train.monitor")
_OF_TRAINING = ("data.standardize", "data.nonfinite", "data.modality_dropout")


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        whole: whole numbers alone.
        log: evenly by the logarithm.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def draw(self, trial: Any, key: str) -> Any:
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(key, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{'log:' if self.log else ''}{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """Any of these values, as they are written on the command line."""

    values: tuple[str, ...]

    def ends(self) -> list[Any]:
        return list(self.values)

    def draw(self, trial: Any, key: str) -> Any:
        return trial.suggest_categorical(key, list(self.values))

    def __str__(self) -> str:
        return ",".join(self.values)


def read_space(given: Iterable[str] | Mapping[str, str | Sequence[Any]]) -> dict[str, Interval | Choices]:
    """key -> what it may be.

    Args:
        given: ``["train.lr=log:1e-4..1e-2", "model.dropout=0,0.1,0.3"]``, or a mapping of keys to such texts or to
            lists of values. ``low..high`` is an interval, whole numbers where the setting takes those; ``log:`` before
            it draws evenly by the logarithm.

    Raises:
        ConfigError: a text that is neither, or a setting that decides by what or on which rows trials are scored.
    """
    pairs = given.items() if isinstance(given, Mapping) else [_split(text) for text in given]
    space: dict[str, Interval | Choices] = {}
    defaults = flat(make_config())
    for key, value in pairs:
        if key in space:
            raise ConfigError(f"the search names {key} twice; give it once")
        if key in _COMMON or (key.startswith("data.") and key not in _OF_TRAINING):
            instead = "give several to --seeds" if key == "train.seed" else "set it for all of them"
            raise ConfigError(f"{key} is not searched, for trials would not be scored alike; {instead}")
        space[key] = _read(key, value, isinstance(defaults.get(key), int) and not isinstance(defaults[key], bool))
    if not space:
        raise ConfigError("a sweep needs something to search, such as --search train.lr=log:1e-4..1e-2")
    return space


def require_allowed(settings: Mapping[str, Any], space: Mapping[str, Interval | Choices]) -> None:
    """Raises ConfigError where an end of an interval or a choice is no allowed value of its setting."""
    for key, values in space.items():
        for value in values.ends():
            make_config(None, overrides_of({**settings, key: value}))


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are written on the command line."""
    return [f"{key}={'null' if value is None else value}" for key, value in settings.items()]


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise ConfigError(f"--search {text!r} is not of the form KEY=VALUES, such as train.lr=log:1e-4..1e-2")
    return key.strip(), value.strip()


def _read(key: str, value: str | Sequence[Any], whole: bool) -> Interval | Choices:
    if not isinstance(value, str):
        texts = tuple(str(item) for item in value)
    elif found := _INTERVAL.fullmatch(value):
        return _interval(key, value, *found.groups(), whole)
    else:
        texts = tuple(part.strip() for part in value.split(","))
    if not all(texts) or len(set(texts)) != len(texts) or len(texts) < 2:
        raise ConfigError(
            f"the search of {key} is {value!r}; it takes an interval such as 0.1..0.5 or log:1e-4..1e-2, or two values "
            "or more, each once, such as 16,32,64"
        )
    return Choices(texts)


def _interval(key: str, text: str, log: str | None, low: str, high: str, whole: bool) -> Interval:
    try:
        ends = [int(end) if whole else float(end) for end in (low, high)]
    except ValueError:
        ends = [math.nan, math.nan]
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)) or (log and ends[0] <= 0):
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(
            f"the search of {key} is {text!r}; an interval is two {kind}, the lower first, above 0 after log:"
        )
    return Interval(*ends, whole=whole, log=bool(log))
