"""How far the means of a data set would move had other samples been drawn."""

from __future__ import annotations

import numpy as np

from .estimates import Interaction, shift_of, shifted

__all__ = ["intervals"]

CHUNK = 1 << 22  # counts held at once


def intervals(values: Interaction, resamples: int, level: float, seed: int) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals of the shifted means; the shift is found anew in every resample.

    They hold the chance of the samples, not that of the models' training, and rows are drawn one by one.

    Args:
        values: unshifted, ``[n]`` each, n >= 1.
        resamples: how many.
        level: in (0, 1).
        seed: of the draws.

    Returns:
        (low, high) for each of the four quantities.
    """
    table = np.stack(values, axis=1)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    size = max(1, CHUNK // len(table))
    means = []
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        # by how often each row is drawn: one matrix product instead of gathering rows
        drawn = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=count)
        means.append(drawn @ table / len(table))
    means = Interaction(*np.concatenate(means).T)
    tail = (1 - level) / 2
    bounds = np.quantile(np.stack(shifted(means, shift_of(means))), [tail, 1 - tail], axis=1)
    return [(float(low), float(high)) for low, high in bounds.T]
