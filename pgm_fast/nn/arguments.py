"""Checks of what modules and param groups are built with; messages name the argument, its value and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

import torch
from torch import nn

from ..errors import ConfigError
from ..settings import Range

__all__ = [
    "NOT_NEGATIVE",
    "POSITIVE",
    "SHARE",
    "check_dtype",
    "check_mapping",
    "check_module",
    "check_number",
    "check_size",
]

NOT_NEGATIVE, POSITIVE, SHARE = Range(at_least=0), Range(above=0), Range(at_least=0, at_most=1)


def check_mapping(name: str, value: object, form: str) -> None:
    """That ``value`` is a mapping; ``form`` shows one that would do.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {_shown(value)}, must be a mapping such as {form}")


def check_module(name: str, value: object, purpose: str) -> None:
    """That ``value`` is a module, for the ``purpose`` that the message names.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, nn.Module):
        raise ConfigError(f"{name} is {_shown(value)}, must be the torch.nn.Module {purpose}")


def check_size(name: str, value: object, at_least: int = 1) -> None:
    """That ``value`` is a whole number of at least so much.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ConfigError(f"{name} is {_shown(value)}, must be a whole number of at least {at_least}")


def check_number(name: str, value: object, allowed: Range, also: str = "") -> None:
    """That ``value`` is a finite number in a range; ``also`` says what else would do.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or float(value) not in allowed:
        kind = f"a finite number {allowed}".rstrip()
        raise ConfigError(f"{name} is {_shown(value)}, must be {kind}{also}")


def check_dtype(value: object) -> None:
    """That parameters can have this dtype; None is torch's default.

    Raises:
        ConfigError: they cannot.
    """
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise ConfigError(f"dtype is {_shown(value)}, must be a floating-point dtype such as torch.float32")


def _shown(value: object) -> str:
    """What is short as it is written, anything else by its class: a message is one line."""
    plain = value is None or isinstance(value, (str, bytes, Real, torch.dtype))
    return repr(value) if plain and len(repr(value)) < 80 else f"a {type(value).__name__}"
