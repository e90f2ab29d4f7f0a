"""What a method's gate gives to each component, and how much of what a model knows no modality knows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .predictions import Predictions

__all__ = ["mean_gates", "synergy_score"]


def mean_gates(predictions: Predictions, task: str, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean gate weight of every component, over all rows and, where rows have a class, over those of each.

    Returns:
        ``{"all": {component: float}, "by_class": {class: {component: float}}}``; empty for a method without a gate, and
        ``by_class`` only for classification with labels.
    """
    if not predictions.gates or not len(predictions.index):
        return {}
    result: dict[str, Any] = {"all": _means(predictions, slice(None))}
    if task == "classification" and predictions.labels is not None:
        classes = np.unique(predictions.labels).tolist()
        names = [str(k) if class_names is None else class_names[k] for k in classes]
        result["by_class"] = {
            name: _means(predictions, predictions.labels == k) for k, name in zip(classes, names, strict=True)
        }
    return result


def _means(predictions: Predictions, rows: slice | np.ndarray) -> dict[str, float]:
    return {name: round(float(weights[rows].mean(dtype=np.float64)), 7) for name, weights in predictions.gates.items()}


def synergy_score(predictions: Predictions, task: str) -> float | None:
    """Share of the rows that the fused output gets right and every single modality gets wrong (DMIL, arXiv 2606.11614).

    Of rows where all modalities are present, since where one is missing it cannot be wrong. None where it is not
    defined: another task than classification, no labels, fewer than two modalities, no such rows.
    """
    if task != "classification" or predictions.labels is None or predictions.logits is None:
        return None
    complete = np.ones(len(predictions.index), dtype=bool)
    for present in predictions.presence.values():
        complete &= present
    if len(predictions.unimodal) < 2 or not complete.any():
        return None
    found = predictions.logits.argmax(axis=1) == predictions.labels
    for logits in predictions.unimodal.values():
        found &= logits.argmax(axis=1) != predictions.labels
    return round(float(found[complete].mean()), 7)
