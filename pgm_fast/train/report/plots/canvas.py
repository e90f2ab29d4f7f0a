"""The look that all plots share. It is set figure by figure: matplotlib's rcParams are global and would leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ...run.files import atomic_write

__all__ = [
    "FUSED",
    "GREY",
    "INK",
    "colour_bar",
    "colours",
    "finish",
    "label_text",
    "legend_beside",
    "new_figure",
    "save",
]

INK = "#1c2330"
GREY = "#8a94a3"
FUSED = INK
_GRID = "#e3e7ee"
# Okabe and Ito's palette, told apart with any colour vision, less its black and its yellow, which is faint on white.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DPI = 120
_LONGEST_NAME = 24


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of ``width x height`` inches and its axes ``[rows, columns]``."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.02)
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "both") -> None:
    """Title, labels and a quiet frame. ``grid`` is ``both``, ``x``, ``y`` or ``none``."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)


def legend_beside(axes: Axes, limit: int = 16) -> None:
    """A legend to the right of the axes; entries beyond ``limit`` are counted, so that it never outgrows the plot."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    title = f"and {len(handles) - limit} more" if len(handles) > limit else None
    axes.legend(
        handles[:limit], labels[:limit], title=title, title_fontsize=8, fontsize=8.5, frameon=False, loc="upper left",
        bbox_to_anchor=(1.0, 1.02), borderaxespad=0.4, labelcolor=INK,
    )  # fmt: skip


def colour_bar(figure: Figure, shown: ScalarMappable, axes: Axes | np.ndarray, label: str) -> None:
    """A bar that explains colours, at most about three inches high however tall the figure is."""
    shrink = min(0.7, 3.2 / figure.get_figheight())
    bar = figure.colorbar(shown, ax=axes, shrink=shrink, aspect=22, anchor=(0.0, 1.0), pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, length=0, colors=INK)
    bar.outline.set_visible(False)


def colours(count: int) -> list:
    """``count`` colours to tell apart; beyond the palette, neighbours on a colour map."""
    if count <= len(_PALETTE):
        return list(_PALETTE[:count])
    if count <= 10:
        return list(colormaps["tab10"].colors[:count])
    if count <= 20:
        return list(colormaps["tab20"].colors[:count])
    return list(colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def label_text(name: object) -> str:
    """A name from the data as matplotlib shows it: not too long, and never read as a formula."""
    text = " ".join(str(name).split())
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 1] + "…"
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, all or nothing. Raises CheckpointError where the file system refuses."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
