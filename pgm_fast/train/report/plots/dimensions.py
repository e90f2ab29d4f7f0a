"""What single dimensions know, and whether modalities starve each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ...scores.metrics import primary_metric
from .canvas import INK, colour_bar, colours, finish, label_text, legend_beside, new_figure
from .curves import epoch_axis, series

__all__ = ["competition_curves", "effective_map"]

_WIDTH = 9.0


def effective_map(report: Mapping[str, Any]) -> Figure | None:
    """Per modality and dimension: its accuracy alone, and whether it is effective. None where nothing was measured."""
    found = report.get("effective_dimensions")
    if not found:
        return None
    modalities = list(found)
    accuracy = np.array([found[m]["accuracy"] for m in modalities])
    effective = np.array([found[m]["effective"] for m in modalities])
    figure, grid = new_figure(_WIDTH, 1.7 + 0.7 * len(modalities), rows=2)
    rows = np.arange(len(modalities))
    shown = grid[0, 0].imshow(accuracy, aspect="auto", cmap="viridis", interpolation="nearest")
    colour_bar(figure, shown, grid[0, 0], "accuracy")
    finish(grid[0, 0], "What a single dimension tells (training split)", grid="none")
    grid[1, 0].imshow(effective, aspect="auto", cmap=ListedColormap(["#e3e7ee", INK]), vmin=0, vmax=1)
    counts = ", ".join(f"{label_text(m)} {count}" for m, count in zip(modalities, effective.sum(1), strict=True))
    finish(grid[1, 0], f"Effective: above the modality's mean ({counts})", x="dimension", grid="none")
    for axes in grid[:, 0]:
        axes.set_yticks(rows, [label_text(m) for m in modalities])
    return figure


def competition_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], alone: Mapping[str, Sequence[Mapping[str, Any]]], task: str
) -> Figure | None:
    """Each modality's validation score within a joint run, epoch by epoch, against training it alone.

    Args:
        runs: name of a method -> the objects of its metrics.jsonl.
        alone: modality -> those of a run that trained it without the others' gradients; none for no such line.
        task: of all of them.

    Returns:
        A panel per modality of ``alone``; None where there is none.
    """
    if not alone:
        return None
    metric, _ = primary_metric(task)
    figure, grid = new_figure(_WIDTH, 0.4 + 2.9 * len(alone), rows=len(alone))
    for axes, (modality, records) in zip(grid[:, 0], alone.items(), strict=True):
        keys = ("valid", "unimodal", modality, metric)
        for (name, run), colour in zip(runs.items(), colours(len(runs)), strict=True):
            epochs = [record["epoch"] for record in run]
            axes.plot(epochs, series(run, *keys), color=colour, label=label_text(name), linewidth=1.5)
        if records:
            epochs = [record["epoch"] for record in records]
            axes.plot(epochs, series(records, *keys), color=INK, linestyle="--", linewidth=1.3, label="alone")
        finish(axes, f"{label_text(modality)}, validation", y=metric)
        epoch_axis(axes, max([*runs.values(), records], key=len))
        legend_beside(axes)
    grid[-1, 0].set_xlabel("epoch", fontsize=9.5, color=INK)
    return figure
