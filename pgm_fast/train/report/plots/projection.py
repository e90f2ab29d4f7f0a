"""Uni and paired features in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from ....data.feature_set import DataSpec
from ...scores.predictions import Predictions
from .canvas import GREY, colour_bar, colours, finish, label_text, new_figure

__all__ = ["projection"]

_MOST_POINTS = 2000
_MOST_LISTED_CLASSES = 20
_PANEL = 2.9


def projection(predictions: Predictions, spec: DataSpec, names: Sequence[str]) -> Figure | None:
    """First two principal components of each modality's features, coloured by label. None without features.

    At most 2000 rows, evenly spaced over the split, so that the picture is the same every time.
    """
    panels = {}
    for key, features in predictions.features.items():
        modality, _, partition = key.rpartition("/")
        rows = np.flatnonzero(np.isfinite(features).all(axis=1) & predictions.presence.get(modality, True))
        if len(rows) > _MOST_POINTS:
            rows = rows[np.linspace(0, len(rows) - 1, _MOST_POINTS).astype(np.int64)]
        if len(rows) >= 3:
            panels[modality, partition] = (rows, *_components(features[rows]))
    if not panels:
        return None
    modalities = list(dict.fromkeys(modality for modality, _ in panels))
    partitions = list(dict.fromkeys(partition for _, partition in panels))
    # Few modalities side by side; many below each other, where a page has room.
    across = len(modalities) <= 4
    shape = (len(partitions), len(modalities)) if across else (len(modalities), len(partitions))
    figure, grid = new_figure(max(_PANEL * shape[1] + 1.3, 5.0), _PANEL * shape[0] + 0.4, *shape)
    values, paint = _colouring(predictions, spec)
    shown = None
    for m, modality in enumerate(modalities):
        for p, partition in enumerate(partitions):
            axes = grid[p, m] if across else grid[m, p]
            if (modality, partition) not in panels:
                axes.set_axis_off()
                continue
            rows, points, explained = panels[modality, partition]
            # Class after class would hide the first classes under the last: rows come in the order of the data.
            style = {"c": values[rows], **paint} if paint else {"color": colours(1)}
            shown = axes.scatter(*points.T, s=9, alpha=0.75, edgecolors="none", **style)
            finish(axes, f"{label_text(modality)}, {partition}", grid="none")
            axes.set_xlabel(f"{explained:.0%} of the variance", fontsize=8, color=GREY)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.margins(0.06)
    _key(figure, grid, shown, spec, names, paint)
    return figure


def _components(features: np.ndarray) -> tuple[np.ndarray, float]:
    """``[n, 2]`` and the share of the variance that they hold."""
    features = features.astype(np.float64)
    if np.ptp(features, axis=0).max() == 0:
        return np.zeros((len(features), 2)), 0.0
    pca = PCA(n_components=min(2, features.shape[1]), svd_solver="full").fit(features)
    points = pca.transform(features)
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), float(pca.explained_variance_ratio_.sum())


def _colouring(predictions: Predictions, spec: DataSpec) -> tuple[np.ndarray | None, dict]:
    """A value per row and how a scatter maps it to colour; nothing where there are no labels."""
    if predictions.labels is None or spec.task == "retrieval":
        return None, {}
    labels = predictions.labels.reshape(len(predictions.labels), -1).astype(np.float64)
    if spec.task == "classification":
        return labels[:, 0], {
            "cmap": ListedColormap(colours(spec.num_outputs)),
            "vmin": -0.5,
            "vmax": spec.num_outputs - 0.5,
        }
    values = labels.sum(axis=1) if spec.task == "multilabel" else labels[:, 0]
    return values, {"cmap": "viridis", "vmin": float(values.min()), "vmax": float(values.max())}


def _key(figure: Figure, grid: np.ndarray, shown, spec: DataSpec, names: Sequence[str], paint: dict) -> None:
    """What the colours mean: a list of classes, or a bar."""
    if not paint:
        return
    if spec.task == "classification" and spec.num_outputs <= _MOST_LISTED_CLASSES:
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=6, color=colour, label=label_text(name))
            for colour, name in zip(colours(spec.num_outputs), names, strict=True)
        ]
        figure.legend(handles=dots, loc="outside right upper", fontsize=8.5, frameon=False)
        return
    colour_bar(
        figure,
        shown,
        grid,
        {"classification": "class", "multilabel": "labels carried", "regression": "label"}[spec.task],
    )
