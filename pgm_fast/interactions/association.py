"""Do a model's shares say what was measured? Correlation of each share with each quantity, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .estimates import COMPONENTS
from .result import Pair

__all__ = ["associate", "pearson", "spearman"]


def associate(shares: Mapping[str, np.ndarray], pairs: Mapping[str, Pair]) -> dict[str, dict]:
    """Share -> pair -> quantity -> ``{"pearson", "spearman", "rows"}``; None where either does not vary.

    Args:
        shares: name -> float ``[n]``; NaN in rows without one.
        pairs: with values ``[n]``, the same rows.
    """
    return {
        name: {
            pair: {
                quantity: _correlations(share, values)
                for quantity, values in zip(COMPONENTS, found.values, strict=True)
            }
            for pair, found in pairs.items()
        }
        for name, share in shares.items()
    }


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation of two arrays ``[n]``, None where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[code]


def _correlations(share: np.ndarray, values: np.ndarray) -> dict[str, float | int | None]:
    rows = np.isfinite(share) & np.isfinite(values)
    if rows.sum() < 2:
        return {"pearson": None, "spearman": None, "rows": int(rows.sum())}
    a, b = share[rows].astype(np.float64), values[rows]
    return {"pearson": pearson(a, b), "spearman": spearman(a, b), "rows": int(rows.sum())}
