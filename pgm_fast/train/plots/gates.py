"""What the gate of a method gives to each component, over all rows and per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .canvas import colours, finish, label_text, legend_beside, new_figure

__all__ = ["gate_bars"]

_CLASSES = 24  # more bars than this do not fit on a page


def gate_bars(report: Mapping[str, Any]) -> Figure | None:
    """A bar for all rows and one per class, of the mean weight of each component. None for a method without a gate."""
    gates = report.get("gates")
    if not gates:
        return None
    by_class = list(gates.get("by_class", {}).items())
    rows = [("all rows", gates["all"]), *by_class[:_CLASSES]]
    components = list(gates["all"])
    figure, grid = new_figure(9.0, 1.4 + 0.36 * len(rows))
    axes, left = grid[0, 0], np.zeros(len(rows))
    for component, colour in zip(components, colours(len(components)), strict=True):
        widths = np.array([weights[component] for _, weights in rows])
        axes.barh(np.arange(len(rows)), widths, left=left, height=0.66, color=colour, label=label_text(component))
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 0.06:
                axes.text(start + width / 2, row, f"{width:.2f}", ha="center", va="center", fontsize=8.5, color="white")
        left = left + widths
    axes.set_xlim(0, max(1.0, left.max()))
    axes.set_yticks(range(len(rows)), [label_text(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    hidden = len(by_class) - _CLASSES
    note = f" ({hidden} more classes are in report.json)" if hidden > 0 else ""
    finish(axes, f"Weight of each component{note}", x="mean gate weight", grid="none")
    legend_beside(axes)
    return figure
