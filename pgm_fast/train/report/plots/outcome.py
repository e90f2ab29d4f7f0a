"""What the model gets right and wrong on one split, one plot per kind of task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from ....data.feature_set import DataSpec
from ...scores.metrics import retrieval_ranks
from ...scores.predictions import Predictions
from .canvas import GREY, INK, colour_bar, colours, finish, label_text, legend_beside, new_figure

__all__ = ["confusion_matrix", "label_bars", "match_curves", "scatter"]

_MOST_NUMBERED_CLASSES = 20
_MOST_NAMED = 60
_MOST_SCATTERS = 9
_MOST_POINTS = 4000


def confusion_matrix(predictions: Predictions, spec: DataSpec, names: Sequence[str]) -> Figure | None:
    """True against predicted class; colour is the share of the true class, numbers are counts."""
    if predictions.logits is None or predictions.labels is None or not len(predictions.labels):
        return None
    classes = spec.num_outputs
    pairs = predictions.labels.astype(np.int64) * classes + predictions.logits.argmax(axis=1)
    counts = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.42 * classes, 4.2, 9.5))
    figure, grid = new_figure(side + 1.0, side)
    axes = grid[0, 0]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    colour_bar(figure, image, axes, "share of the true class")
    if classes <= _MOST_NUMBERED_CLASSES:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    step = max(1, math.ceil(classes / 30))
    ticks = np.arange(0, classes, step)
    labels = [label_text(names[tick]) for tick in ticks]
    slant = max(map(len, labels)) > 3
    axes.set_xticks(ticks, labels, rotation=45 if slant else 0, ha="right" if slant else "center")
    axes.set_yticks(ticks, labels)
    accuracy = np.trace(counts) / counts.sum()
    finish(axes, f"Confusion, {accuracy:.1%} of {counts.sum()} rows right", x="predicted", y="true", grid="none")
    axes.spines[:].set_visible(False)
    return figure


def scatter(predictions: Predictions, spec: DataSpec, names: Sequence[str]) -> Figure | None:
    """Prediction against truth, one panel per target, with the line on which they agree."""
    if predictions.logits is None or predictions.labels is None or not len(predictions.labels):
        return None
    truth = predictions.labels.reshape(len(predictions.labels), -1).astype(np.float64)
    guess = predictions.logits.reshape(len(truth), -1).astype(np.float64)
    shown = min(truth.shape[1], _MOST_SCATTERS)
    columns = min(shown, 3)
    rows = math.ceil(shown / columns)
    side = 5.2 if shown == 1 else 3.3
    figure, grid = new_figure(side * columns, side * rows, rows, columns)
    for target, axes in enumerate(grid.flat):
        if target >= shown:
            axes.set_axis_off()
            continue
        true, predicted = truth[:, target], guess[:, target]
        finite = np.isfinite(true) & np.isfinite(predicted)
        picked = _spread(np.flatnonzero(finite), _MOST_POINTS)
        axes.scatter(true[picked], predicted[picked], s=14, alpha=0.45, color="#0072b2", edgecolors="none")
        if len(picked):
            low, high = (
                min(true[picked].min(), predicted[picked].min()),
                max(true[picked].max(), predicted[picked].max()),
            )
            axes.plot([low, high], [low, high], color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        error = np.abs(true - predicted)[finite].mean() if finite.any() else math.nan
        name = "" if spec.num_outputs == 1 else f"{label_text(names[target])}, "
        finish(axes, f"{name}mean absolute error {error:.3g}", x="true", y="predicted")
    if shown < truth.shape[1]:
        figure.suptitle(f"the first {shown} of {truth.shape[1]} targets", fontsize=9, color=GREY)
    return figure


def match_curves(predictions: Predictions, spec: DataSpec, names: Sequence[str]) -> Figure | None:
    """Cumulative match: the share of queries whose counterpart is among the first k, for every direction."""
    if any(not np.isfinite(embedding).all() for embedding in predictions.embeddings.values()):
        return None
    ranks = retrieval_ranks(predictions)
    if not ranks:
        return None
    figure, grid = new_figure(8.4, 4.8)
    axes = grid[0, 0]
    longest = max(len(rank) for rank in ranks.values())
    for (query, candidate), colour in zip(ranks, colours(len(ranks)), strict=True):
        rank = ranks[query, candidate]
        k = np.unique(np.geomspace(1, len(rank), 200).astype(np.int64))
        found = np.searchsorted(np.sort(rank), k, side="right") / len(rank)
        axes.plot(k, found, color=colour, label=f"{label_text(query)} → {label_text(candidate)}", linewidth=1.6)
    k = np.unique(np.geomspace(1, longest, 200).astype(np.int64))
    axes.plot(k, k / longest, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="chance")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    finish(axes, f"Counterpart among the first k of {longest}", x="k", y="share of queries")
    legend_beside(axes)
    return figure


def label_bars(predictions: Predictions, spec: DataSpec, names: Sequence[str]) -> Figure | None:
    """Average precision of every label, best first, beside how common the label is (the value that chance reaches)."""
    if predictions.logits is None or predictions.labels is None or not np.isfinite(predictions.logits).all():
        return None
    labels = predictions.labels.reshape(len(predictions.labels), -1).astype(bool)
    logits = predictions.logits.reshape(labels.shape)
    carried = np.flatnonzero(labels.any(axis=0))
    if not len(carried):
        return None
    precision = np.array([average_precision_score(labels[:, label], logits[:, label]) for label in carried])
    common = labels[:, carried].mean(axis=0)
    order = np.argsort(-precision, kind="stable")
    rows = np.arange(len(order))
    figure, grid = new_figure(8.4, float(np.clip(1.5 + 0.24 * len(order), 2.4, 14.0)))
    axes = grid[0, 0]
    axes.barh(rows, precision[order], height=0.7, color="#56b4e9", label="average precision")
    axes.plot(common[order], rows, "|", color=INK, markersize=9, markeredgewidth=1.6, label="share of rows (chance)")
    if len(order) <= _MOST_NAMED:
        axes.set_yticks(rows, [label_text(names[label]) for label in carried[order]])
    else:
        axes.set_yticks([])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    finish(axes, f"Average precision per label, mean {precision.mean():.3f}", x="average precision", grid="x")
    legend_beside(axes)
    return figure


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of ``rows``, evenly spaced: the same ones every time."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
