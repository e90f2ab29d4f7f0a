"""How a command is declared: errors in one line, examples in its help, and ``--seeds 0 1 2``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import PgmFastError
from .terminal import fail

__all__ = ["command_class", "reporting_errors"]

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
            return super().parse_args(ctx, _join_numbers(args, variadic))

        def get_help(self, ctx: Any) -> str:
            parts = [super().get_help(ctx), "Examples:\n" + "\n".join(f"  {line}" for line in examples)]
            return "\n\n".join(parts + ([more()] if more else [])).lstrip("\n") + "\n"

    return Command


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
