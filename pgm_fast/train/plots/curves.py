"""Plots against the epoch: losses, scores and the shares of the partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..metrics import primary_metric
from .canvas import FUSED, GREY, INK, colours, finish, label_text, legend_beside, new_figure

__all__ = ["compared_shares", "epoch_axis", "learning_curves", "series", "share_bars"]

# Mean gate mass of a partitioner whose logits are all equal, as at random initialisation, for a wide representation:
# the integrals over t in [0, 1] of 1-t and t, and of (1-t)(1-t), t*t, (1-t)t twice for 1-cumsoftmax and cumsoftmax.
EXPECTED = {
    ("uni", "paired"): (1 / 2, 1 / 2),
    ("uni_only", "paired_only", "shared", "unused"): (1 / 3, 1 / 3, 1 / 6, 1 / 6),
}
_PARTITION_COLOURS = {
    "uni": "#0072b2",
    "paired": "#d55e00",
    "uni_only": "#0072b2",
    "paired_only": "#d55e00",
    "shared": "#9b6fb0",
    "unused": "#d5dae2",
}
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


def share_bars(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Figure | None:
    """Share of every partition per modality at the end, and its way there. None for a method without a partitioner."""
    shares = report.get("shares")
    if not shares:
        return None
    modalities = list(shares)
    partitions = list(shares[modalities[0]])
    expected = None if report.get("calibration") else EXPECTED.get(tuple(partitions))
    history = [record for record in records if record.get("shares")]
    bars_height = 1.1 + 0.42 * len(modalities)
    figure, grid = new_figure(
        _WIDTH, bars_height + (3.2 if len(history) > 1 else 0.3), rows=2 if len(history) > 1 else 1
    )
    if len(history) > 1:
        grid[0, 0].get_gridspec().set_height_ratios([bars_height, 3.2])
    _draw_bars(grid[0, 0], shares, partitions, expected, "Share of each partition")
    if len(history) > 1:
        _draw_share_history(grid[1, 0], history, modalities, partitions, expected)
    return figure


def compared_shares(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure | None:
    """Bars as those of :func:`share_bars`, a panel per run. None where no run has a partitioner.

    Args:
        runs: name of a run -> modality -> share of each partition.
    """
    runs = {name: shares for name, shares in runs.items() if shares}
    if not runs:
        return None
    figure, grid = new_figure(_WIDTH, sum(1.1 + 0.42 * len(shares) for shares in runs.values()), rows=len(runs))
    for axes, (name, shares) in zip(grid[:, 0], runs.items(), strict=True):
        partitions = list(next(iter(shares.values())))
        _draw_bars(axes, shares, partitions, None, label_text(name))
    return figure


def _draw_bars(
    axes: Axes, shares: Mapping[str, Mapping[str, float]], partitions: Sequence[str], expected, title: str
) -> None:
    modalities = list(shares)
    left = np.zeros(len(modalities))
    rows = np.arange(len(modalities))
    for partition in partitions:
        widths = np.array([shares[modality].get(partition, 0.0) for modality in modalities])
        name = partition.replace("_", " ")
        axes.barh(rows, widths, left=left, height=0.62, color=_PARTITION_COLOURS.get(partition, GREY), label=name)
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 0.06:
                colour = INK if partition == "unused" else "white"
                axes.text(start + width / 2, row, f"{width:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
        left = left + widths
    axes.set_xlim(0, max(1.0, left.max()))
    # Where partitions overlap (uni = paired = h) bars do not end at 1 and there is no line to compare with.
    if expected is not None and np.allclose(left, 1.0, atol=0.02):
        for number, edge in enumerate(np.cumsum(expected)[:-1]):
            style = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1.2}
            axes.axvline(edge, label="random initialisation" if number == 0 else None, **style)
    axes.set_yticks(rows, [label_text(modality) for modality in modalities])
    axes.set_ylim(len(modalities) - 0.5, -0.5)
    finish(axes, title, x="mean gate mass", grid="none")
    legend_beside(axes)


def _draw_share_history(axes: Axes, history, modalities: Sequence[str], partitions: Sequence[str], expected) -> None:
    """What reaches the paired learner, per modality, epoch by epoch."""
    reaching = [name for name in partitions if name in ("paired", "paired_only", "shared")]
    epochs = [record["epoch"] for record in history]
    for modality, colour in zip(modalities, colours(len(modalities)), strict=True):
        values = np.sum([series(history, "shares", modality, name) for name in reaching], axis=0)
        axes.plot(epochs, values, color=colour, label=label_text(modality), linewidth=1.5)
    if expected is not None:
        start = sum(value for name, value in zip(partitions, expected, strict=True) if name in reaching)
        axes.axhline(start, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="random initialisation")
    low, high = axes.get_ylim()
    # Gates that hardly move are to look as if they hardly moved.
    spare = max(0.0, 0.1 - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)
    axes.ticklabel_format(axis="y", useOffset=False)
    finish(axes, "Share that reaches the paired learner", x="epoch", y=" + ".join(reaching).replace("_", " "))
    epoch_axis(axes, history)
    legend_beside(axes)


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
