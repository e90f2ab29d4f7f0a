"""How much of each modality its partitions take: means over rows, their intervals, and by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .predictions import Predictions

__all__ = ["PARTITIONS", "class_shares", "mean_shares", "share_drift", "share_intervals"]

_NORMAL_95 = 1.96  # standard deviations
PARTITIONS: dict[int, tuple[str, ...]] = {2: ("uni", "paired"), 4: ("uni_only", "paired_only", "shared", "unused")}
"""Names of the partitions by how many there are: the single gate's two, the four of the dual and the boundary gate."""


def mean_shares(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Mean gate mass over the rows where the modality is present: ``{modality: {partition: float}}``.

    Modalities without a partitioner or without rows are left out.
    """
    return _over_rows(predictions, slice(None), lambda rows: rows.mean(axis=0, dtype=np.float64), least=1)


def share_intervals(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Half width of the 95 % interval of each mean share over rows, by the normal approximation, shaped like
    :func:`mean_shares`. Modalities with fewer than two rows are left out."""
    return _over_rows(predictions, slice(None), _half_width, least=2)


def class_shares(
    predictions: Predictions, task: str, class_names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Mean shares over the rows of each class: ``{class: {"rows": int, "shares": ..., "intervals": ...}}``, the last
    two as from :func:`mean_shares` and :func:`share_intervals`.

    Empty without labels, for another task than classification, and for a method without a partitioner.
    """
    if task != "classification" or predictions.labels is None or not predictions.shares:
        return {}
    found = {}
    for k in np.unique(predictions.labels).tolist():
        rows = predictions.labels == k
        found[str(k) if class_names is None else class_names[k]] = {
            "rows": int(rows.sum()),
            "shares": _over_rows(predictions, rows, lambda of: of.mean(axis=0, dtype=np.float64), least=1),
            "intervals": _over_rows(predictions, rows, _half_width, least=2),
        }
    return found


def share_drift(by_epoch: Sequence[Mapping[str, Mapping[str, float | None]]]) -> float | None:
    """The largest change of any mean share over the last fifth of the epochs, one at least.

    Args:
        by_epoch: of every epoch, as from :func:`mean_shares`; None for what is no number.

    Returns:
        None where there is nothing to compare: one epoch, no shares, or some that are no numbers.
    """
    if len(by_epoch) < 2:
        return None
    before, last = by_epoch[-1 - max(1, len(by_epoch) // 5)], by_epoch[-1]
    pairs = [(before.get(m, {}).get(name), value) for m, shares in last.items() for name, value in shares.items()]
    if not pairs or any(x is None or y is None for x, y in pairs):
        return None
    return round(max(abs(y - x) for x, y in pairs), 7)


def _over_rows(
    predictions: Predictions, chosen: slice | np.ndarray, of: Callable[[np.ndarray], np.ndarray], least: int
) -> dict[str, dict[str, float]]:
    """``{modality: {partition: of(shares [n, K])}}`` of the chosen rows that have the modality, if there are at least
    ``least`` of them."""
    found = {}
    for modality, shares in predictions.shares.items():
        rows = shares[chosen]
        if modality in predictions.presence:
            rows = rows[predictions.presence[modality][chosen]]
        if len(rows) >= least:
            values = of(rows).tolist()
            found[modality] = {
                name: round(value, 7) for name, value in zip(PARTITIONS[len(values)], values, strict=True)
            }
    return found


def _half_width(rows: np.ndarray) -> np.ndarray:
    return _NORMAL_95 * rows.std(axis=0, ddof=1, dtype=np.float64) / math.sqrt(len(rows))
