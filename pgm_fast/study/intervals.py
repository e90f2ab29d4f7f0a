"""Means over cells, and intervals of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["LEVEL", "moments", "paired_interval"]

LEVEL = 0.95


def moments(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value) and number."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "n": len(values)}


def paired_interval(differences: Sequence[float], overlap: float = 0.0) -> dict[str, Any]:
    """The mean difference and its t-interval; no interval of one pair.

    Args:
        differences: one per pair.
        overlap: test rows per training row where every pair has a random split of the same rows: trainings that share
            rows are not independent, and the variance of their mean is that much larger than 1/n of theirs (Nadeau and
            Bengio, Machine Learning 52, 2003). 0 for the plain t-interval.
    """
    from scipy.stats import t

    count = len(differences)
    mean = statistics.fmean(differences)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "n": count}
    error = statistics.stdev(differences) * math.sqrt(1 / count + overlap)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": count}
