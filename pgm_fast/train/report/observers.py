"""Who is told of a run's progress: the terminal and the trackers. None asks the device for anything."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from .trackers import Trackers

__all__ = ["Observers"]


class Observers:
    """Context manager over what is shown; tells the trackers too.

    Args:
        progress: a progress bar on a terminal, a line per epoch elsewhere, both on the standard error stream.
        trackers: open for as long as the training.
        metric: name of the monitored metric.
    """

    def __init__(self, progress: bool, trackers: Trackers, metric: str):
        self._progress = progress
        self._trackers = trackers
        self._metric = metric
        self._bar = None
        self._task = None

    def __enter__(self) -> Observers:
        if self._progress:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.description}"),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                )
                self._bar = Progress(*columns, console=console)
                self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, record: Mapping[str, Any], best: Mapping[str, Any], stage_epochs: int) -> None:
        """An epoch ended: its line of metrics.jsonl, the stage's best so far, and the stage's length."""
        self._trackers.epoch(record)
        if not self._progress:
            return
        loss = record["train"].get("total", math.nan)
        value = record["valid"]["fused"].get(self._metric, math.nan)
        text = f"{record['stage']}: loss {loss:.4f}, valid {self._metric} {value:.4f}, best epoch {best['epoch']}"
        if record["skipped_steps"]:
            text += f", {record['skipped_steps']} steps skipped"
        if self._bar is None:
            print(
                f"epoch {record['epoch']}, {text} ({record['samples_per_s']:,.0f} samples/s)",
                file=sys.stderr,
                flush=True,
            )
            return
        if self._task is None:
            self._task = self._bar.add_task(text, total=stage_epochs, completed=record["epoch"] - 1)
        total = max(stage_epochs, record["epoch"])
        self._bar.update(self._task, description=text, total=total, completed=record["epoch"])
