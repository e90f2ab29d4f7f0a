"""What a model said about one split, as numpy arrays: the input of metrics, reports, plots and ``predict``."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Predictions"]


@dataclass
class Predictions:
    """n rows in ascending order of ``index``, every row of the split exactly once. Fields as in
    ``methods.base.Output``.

    ``presence[m]`` says in which rows modality m exists (missing key: in all of them). A unimodal prediction counts
    only there.
    """

    index: np.ndarray
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None
    unimodal: dict[str, np.ndarray] = field(default_factory=dict)
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    gates: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    presence: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    further: dict[str, np.ndarray] = field(default_factory=dict)
