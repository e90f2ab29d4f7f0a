"""What the gate of a method gives to each component, over all rows and per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .canvas import colours, finish, label_text, legend_beside, new_figure

__all__ = ["compared_gates", "gate_bars"]

_CLASSES = 24  # more bars than this do not fit on a page


def gate_bars(report: Mapping[str, Any]) -> Figure | None:
    """A bar for all rows and one per class, of the mean weight of each component. None for a method without a gate."""
    gates = report.get("gates")
    if not gates:
        return None
    by_class = list(gates.get("by_class", {}).items())
    hidden = len(by_class) - _CLASSES
    note = f" ({hidden} more classes are in report.json)" if hidden > 0 else ""
    rows = [("all rows", gates["all"]), *by_class[:_CLASSES]]
    return _bars(rows, f"Weight of each component{note}")


def compared_gates(runs: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """A bar per run, of the mean weight of each component over all rows. None where no run weighs components.

    Args:
        runs: name of a run -> mean weight of each component.
    """
    rows = [(name, weights) for name, weights in runs.items() if weights]
    return _bars(rows, "Weight of each component") if rows else None


def _bars(rows: Sequence[tuple[str, Mapping[str, float]]], title: str) -> Figure:
    components = list(dict.fromkeys(component for _, weights in rows for component in weights))
    figure, grid = new_figure(9.0, 1.4 + 0.36 * len(rows))
    axes, left = grid[0, 0], np.zeros(len(rows))
    for component, colour in zip(components, colours(len(components)), strict=True):
        widths = np.array([weights.get(component, 0.0) for _, weights in rows])
        axes.barh(np.arange(len(rows)), widths, left=left, height=0.66, color=colour, label=label_text(component))
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 0.06:
                axes.text(start + width / 2, row, f"{width:.2f}", ha="center", va="center", fontsize=8.5, color="white")
        left = left + widths
    axes.set_xlim(0, max(1.0, left.max()))
    axes.set_yticks(range(len(rows)), [label_text(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    finish(axes, title, x="mean gate weight", grid="none")
    legend_beside(axes)
    return figure
