"""Bars of redundancy, uniqueness and synergy with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ..train.report.plots.canvas import INK, colours, finish, label_text, legend_beside, new_figure

if TYPE_CHECKING:
    from .result import Interactions

__all__ = ["bars"]

_WIDTH = 8.4
_BAR = 0.2


def bars(found: Interactions) -> Figure:
    """A group of four bars per pair of modalities: mean in nats, with the bootstrap interval."""
    names = list(found.pairs)
    figure, grid = new_figure(_WIDTH, max(3.2, 1.4 + 1.1 * len(names)))
    axes = grid[0, 0]
    rows = np.arange(len(names))
    labels = ("redundancy", "uniqueness of the first", "uniqueness of the second", "synergy")
    for number, (label, colour) in enumerate(zip(labels, colours(4), strict=True)):
        means = np.array([pair.means[number] for pair in found.pairs.values()])
        bounds = np.array([pair.intervals[number] for pair in found.pairs.values()]).T
        # with few rows a percentile interval need not hold the mean
        reach = np.maximum([means - bounds[0], bounds[1] - means], 0)
        style = {"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5}
        axes.barh(rows + (number - 1.5) * _BAR, means, _BAR, xerr=reach, color=colour, label=label, error_kw=style)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(rows, [label_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    level = f"{100 * found.settings.level:g} %"
    finish(axes, f"Information about the label, {label_text(found.data)}", x=f"nats, {level} interval", grid="x")
    legend_beside(axes)
    return figure
