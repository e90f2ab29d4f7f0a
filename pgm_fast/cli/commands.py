"""How a command is declared: errors in one line, examples in its help, and ``--seeds 0 1 2``."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import ConfigError, PgmFastError
from .terminal import fail

__all__ = ["command_class", "reporting_errors", "require_overrides"]

USER_ERROR = 2


def reporting_errors(function: Callable) -> Callable:
    """The command ``function``; a :class:`PgmFastError` becomes one line and exit status 2, unless ``debug``."""

    @functools.wraps(function)
    def command(*args: Any, debug: bool, **values: Any) -> Any:
        try:
            return function(*args, debug=debug, **values)
        except PgmFastError as error:
            if debug:
                raise
            fail(error)
            raise typer.Exit(USER_ERROR) from None

    return command


def command_class(
    examples: Sequence[str], more: Callable[[], str] | None = None, variadic: Sequence[str] = ()
) -> type[TyperCommand]:
    """A command whose help ends with examples.

    Args:
        examples: lines that a user can type.
        more: gives further text for the end of the help; called only when help is asked for.
        variadic: options that take several whole numbers, ``--seeds 0 1 2`` as well as ``--seeds 0,1,2``.
    """

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if any("KEY=VALUE" in (parameter.metavar or "") for parameter in self.params):
                _refuse_dashes(args)
            return super().parse_args(ctx, _join_numbers(args, variadic))

        def get_help(self, ctx: Any) -> str:
            parts = [super().get_help(ctx), "Examples:\n" + "\n".join(f"  {line}" for line in examples)]
            return "\n\n".join(parts + ([more()] if more else [])).lstrip("\n") + "\n"

    return Command


def require_overrides(texts: Sequence[str], config_option: bool = False) -> None:
    """Raises ConfigError for the first that is not of the form ``key=value``, with the option that was meant.

    Args:
        texts: as given.
        config_option: whether the command has ``--config``.
    """
    for text in texts:
        if "=" in text:
            continue
        form = f"{text!r} is not of the form key=value"
        settings = text.endswith((".yaml", ".yml"))
        if os.path.exists(text) and not settings:
            raise ConfigError(f"{form}; what to train on is given as --data {shlex.quote(text)}")
        if os.path.exists(text) and config_option:
            raise ConfigError(f"{form}; a file of settings is given as --config {shlex.quote(text)}")
        raise ConfigError(f"{form}, such as train.epochs=5; what to train on is given as --data SOURCE")


def _refuse_dashes(args: Sequence[str]) -> None:
    """Ends the program for a configuration key that is written as an option."""
    for position, arg in enumerate(args):
        if arg == "--":
            return
        if found := re.fullmatch(r"--(\w+(?:\.[^=.]+)+)(?:=(.*))?", arg, re.DOTALL):
            key, value = found.groups()
            after = args[position + 1 : position + 2]
            value = next((text for text in after if not text.startswith("-")), "VALUE") if value is None else value
            fail(ConfigError(f"{arg} is no option; a configuration value is given without dashes: {key}={value}"))
            raise typer.Exit(USER_ERROR)


def _join_numbers(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """``--seeds 0 1 2`` as ``--seeds 0,1,2``."""
    joined: list[str] = []
    values = None
    for arg in args:
        if values is not None and re.fullmatch(r"\d+(,\d+)*,?", arg):
            values.append(arg.rstrip(","))
            continue
        if values:
            joined.append(",".join(values))
        values = [] if arg in options else None
        joined.append(arg)
    if values:
        joined.append(",".join(values))
    return joined
