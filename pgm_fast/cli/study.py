"""``study``: a comparison from the command line, its progress and its tables."""

from __future__ import annotations

from pathlib import Path

from ..study import read_study, run_study
from ..study.page import COLUMNS, set_rows
from .terminal import say, show_table

__all__ = ["compare"]


def compare(file: Path, out: Path, workers: int, *, quiet: bool) -> int:
    """Run a study and print where its tables are.

    Args:
        file, out, workers: as for :func:`pgm_fast.study.run_study`.
        quiet: print nothing.

    Returns:
        How many cells failed.
    """
    result = run_study(read_study(file), out, workers=workers, progress=None if quiet else say)
    if not quiet:
        for name, of in result["sets"].items():
            say()
            if of:
                title = f"{name}, {of['metric']}; the difference is from {of['baseline']}"
                show_table(COLUMNS, set_rows(of), title=title)
        say()
        for name in ("study.md", "study.json"):
            say(f"{name.ljust(10)} {out / name}")
    return len(result["failed"])
