"""From label probabilities and densities to redundancy, uniqueness and synergy of each sample (LSMI).

Formulas: Yang et al., "Efficient Quantification of Multimodal Interaction at Sample Level", ICML 2025, arXiv
2506.17248. All values are float64 nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["COMPONENTS", "Interaction", "decompose", "shift_of", "shifted"]

COMPONENTS = ("redundancy", "uniqueness_1", "uniqueness_2", "synergy")


class Interaction(NamedTuple):
    """Redundancy, uniqueness of the first and the second modality, and synergy; arrays of one shape or numbers."""

    redundancy: np.ndarray
    uniqueness_1: np.ndarray
    uniqueness_2: np.ndarray
    synergy: np.ndarray


def decompose(
    i_1: np.ndarray, i_2: np.ndarray, i_12: np.ndarray, h_1: np.ndarray | None = None, h_2: np.ndarray | None = None
) -> Interaction:
    """``r = min(H_1, H_2) - min(H_1 - i_1, H_2 - i_2)``, ``u_m = i_m - r``, ``s = i_12 - r - u_1 - u_2``.

    Args:
        i_1, i_2, i_12: ``[N]`` pointwise information about the label of either modality, and of both together.
        h_1, h_2: ``[N]`` negative log-density of either modality. Without them ``r = min(i_1, i_2)``, our extension:
            what the modality that says less says.
    """
    if h_1 is None or h_2 is None:
        redundancy = np.minimum(i_1, i_2)
    else:
        redundancy = np.minimum(h_1, h_2) - np.minimum(h_1 - i_1, h_2 - i_2)
    uniqueness_1, uniqueness_2 = i_1 - redundancy, i_2 - redundancy
    return Interaction(redundancy, uniqueness_1, uniqueness_2, i_12 - redundancy - uniqueness_1 - uniqueness_2)


def shift_of(means: Interaction) -> np.ndarray:
    """The constant a of a data set with these mean values: no mean stays below 0 where a constant can help it.

    ``a = -min(mean r, mean s)`` where either is negative, else ``a = min(mean u_1, mean u_2)`` where either of those
    is, else 0. Works on numbers and on arrays of means (one a each).
    """
    lowest_shared = np.minimum(means.redundancy, means.synergy)
    lowest_unique = np.minimum(means.uniqueness_1, means.uniqueness_2)
    return np.where(lowest_shared < 0, -lowest_shared, np.minimum(lowest_unique, 0.0))


def shifted(values: Interaction, shift: np.ndarray) -> Interaction:
    """``(r + a, u_1 - a, u_2 - a, s + a)``: ``r + u_m`` and the sum of all four stay as they are."""
    return Interaction(
        values.redundancy + shift, values.uniqueness_1 - shift, values.uniqueness_2 - shift, values.synergy + shift
    )
