"""What the command line writes on the screen: rank 0 of a distributed run only, tables by rich, paths never wrapped."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["fail", "is_main_process", "say", "show_table"]


def is_main_process() -> bool:
    """False in the processes of a distributed run that must stay silent."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """One line or more on stdout."""
    if is_main_process():
        print(text, flush=True)


def fail(error: Exception) -> None:
    """The error as one line on stderr; processes other than the first say which they are."""
    rank = "" if is_main_process() else f" (rank {os.environ['RANK']})"
    print(f"error{rank}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, numbers: bool = True
) -> None:
    """A table on stdout; every column but the first to the right where they hold ``numbers``."""
    if not is_main_process():
        return
    table = Table(
        title=title and Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2)
    )
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if numbers and position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # A pipe has no width of its own: lines there stay whole.
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
