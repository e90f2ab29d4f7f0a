"""Who is told of a run's progress: the terminal and TensorBoard. Neither asks the device for anything."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .folder import RunFolder

__all__ = ["Observers"]

log = logging.getLogger(__name__)


class Observers:
    """Context manager over what is shown and logged; everything off by default.

    Where the disk refuses the events, a warning says so once and training goes on without them.

    Args:
        progress: a progress bar on a terminal, a line per epoch elsewhere, both on the standard error stream.
        events: folder for TensorBoard events, None for none.
        first_epoch: epochs already done; events after that are taken back (a resumed run writes them again).
        metric: name of the monitored metric.
    """

    def __init__(self, progress: bool = False, events: RunFolder | None = None, first_epoch: int = 0, metric: str = ""):
        self._progress = progress
        self._events = events
        self._first_epoch = first_epoch
        self._metric = metric
        self._bar = None
        self._task = None
        self._writer = None

    def __enter__(self) -> Observers:
        if self._events is not None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self._events.events), purge_step=self._first_epoch + 1)
            except OSError as error:
                self._warn(error)
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
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        log.warning(
            "%s: TensorBoard events cannot be written (%s); training goes on, metrics.jsonl holds the same",
            self._events.events,
            error.strerror or error,
        )

    def epoch(self, record: Mapping[str, Any], best: Mapping[str, Any], stage_epochs: int) -> None:
        """An epoch ended: its line of metrics.jsonl, the stage's best so far, and the stage's length."""
        if self._writer is not None:
            try:
                for name, value in _scalars(record):
                    self._writer.add_scalar(name, value, record["epoch"])
                self._writer.flush()
            except OSError as error:
                self._warn(error)
                self._writer = None
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


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """``("valid/fused/accuracy", 0.9)``, ... for every number of a record."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "epoch":
            yield f"{prefix}{key}", float(value)
