"""Plots against the epoch: losses and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...scores.metrics import primary_metric
from .canvas import FUSED, GREY, colours, finish, label_text, legend_beside, new_figure

__all__ = ["epoch_axis", "learning_curves", "series"]

_WIDTH = 9.0


def learning_curves(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Figure | None:
    """Total loss and its terms, and the primary score of every output, against the epoch. None without records."""
    if not records:
        return None
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) < 3 else None
    figure, grid = new_figure(_WIDTH, 8.6, rows=3)
    total, terms, scores = grid[:, 0]

    total.plot(epochs, series(records, "train", "total"), color="#0072b2", label="training", marker=marker)
    total.plot(epochs, series(records, "valid", "losses", "total"), color="#d55e00", label="validation", marker=marker)
    finish(total, "Loss", y="total")

    names = _keys(records, "train", but=("total",))
    for name, colour in zip(names, colours(len(names)), strict=True):
        terms.plot(
            epochs, series(records, "train", name), color=colour, label=label_text(name), linewidth=1.3, marker=marker
        )
    finish(terms, "Terms of the training loss", y="unweighted")

    metric, direction = primary_metric(report["task"])
    for kind in ("unimodal", "pairs"):
        outputs = _keys(records, "valid", kind)
        for name, colour in zip(outputs, colours(len(outputs)), strict=True):
            values = series(records, "valid", kind, name, metric)
            scores.plot(epochs, values, color=colour, label=label_text(name), linewidth=1.3, marker=marker)
    further = _keys(records, "valid", "further")
    for name, colour in zip(further, colours(len(further)), strict=True):
        values = series(records, "valid", "further", name, metric)
        scores.plot(epochs, values, color=colour, label=label_text(name), linewidth=1.0, linestyle="--", marker=marker)
    fused = series(records, "valid", "fused", metric)
    scores.plot(epochs, fused, color=FUSED, label="fused", linewidth=2.2, marker=marker)
    if report.get("best_epoch") in epochs:
        best = epochs.index(report["best_epoch"])
        scores.plot(
            epochs[best], fused[best], "o", color=FUSED, markersize=7, markerfacecolor="white", label="chosen epoch"
        )
    finish(scores, f"Validation score ({'larger' if direction == 'max' else 'smaller'} is better)", x="epoch", y=metric)

    for axes in (total, terms, scores):
        epoch_axis(axes, records)
        legend_beside(axes)
    return figure


def epoch_axis(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Whole epochs, and a line with the stage's name where a new stage begins."""
    first, last = records[0]["epoch"], records[-1]["epoch"]
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for before, record in zip(records, records[1:], strict=False):
        if before["stage"] != record["stage"]:
            edge = (before["epoch"] + record["epoch"]) / 2
            axes.axvline(edge, color=GREY, linestyle=":", linewidth=1.2)
            name = f" {label_text(record['stage'])}"
            axes.text(
                edge, 1.0, name, transform=axes.get_xaxis_transform(), ha="left", va="top", fontsize=8, color=GREY
            )


def series(records: Sequence[Mapping[str, Any]], *keys: str) -> np.ndarray:
    """One number per record, found by following ``keys``; NaN, a gap in the line, where it is missing."""

    def follow(value: Any) -> float:
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return math.nan if value is None else float(value)

    return np.array([follow(record) for record in records])


def _keys(records: Sequence[Mapping[str, Any]], *keys: str, but: Sequence[str] = ()) -> list[str]:
    """Every name found under ``keys`` in any record, in order of appearance."""
    names: dict[str, None] = {}
    for record in records:
        value: Any = record
        for key in keys:
            value = value.get(key) or {}
        names |= dict.fromkeys(value)
    return [name for name in names if name not in but]
