"""How far an estimate is: a bar on a terminal, a line per trained model elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """Context manager over the parts of an estimate, all on the standard error stream.

    Args:
        shown: False shows nothing.
        parts: how many there will be.
    """

    def __init__(self, shown: bool, parts: int):
        self._shown = shown
        self._parts = parts
        self._done = 0
        self._bar = None
        self._task = None

    def __enter__(self) -> Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (
                    BarColumn(),
                    TextColumn("{task.percentage:>3.0f} %  {task.description}"),
                    TimeElapsedColumn(),
                )
                self._bar = Bar(*columns, console=console)
                self._bar.start()
                self._task = self._bar.add_task("", total=self._parts)
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar is not None:
            self._bar.stop()

    def part(self, name: str) -> Callable[[float], None]:
        """Begin the next part; what is returned takes the share of it, in [0, 1], that is done."""
        done = self._done
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, description=name)
            return lambda share: self._bar.update(self._task, completed=done + share)
        if self._shown:
            print(f"{self._done} of {self._parts}: {name}", file=sys.stderr, flush=True)
        return lambda share: None
