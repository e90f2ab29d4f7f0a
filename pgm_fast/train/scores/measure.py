"""All scores of a split at once, as reports hold them, and the loss that epochs are chosen by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ...methods.tasks import task_rows
from .gates import synergy_score
from .metrics import evaluate_predictions
from .predictions import Predictions

__all__ = ["fused_loss", "measure"]


def measure(
    predictions: Predictions, task: str, num_outputs: int, relevance: np.ndarray | None = None
) -> dict[str, Any]:
    """Metrics as from :func:`~pgm_fast.train.scores.metrics.evaluate_predictions`, with the loss terms as
    ``losses`` and, where it is defined, ``synergy_score`` (see :func:`~pgm_fast.train.scores.gates.synergy_score`).
    ``relevance`` is that of the whole feature set."""
    own = None if relevance is None else relevance[predictions.index]
    scores = {**evaluate_predictions(task, predictions, num_outputs, own), "losses": dict(predictions.losses)}
    synergy = synergy_score(predictions, task)
    return scores if synergy is None else {**scores, "synergy_score": synergy}


def fused_loss(predictions: Predictions, task: str) -> float:
    """The task's loss of the fused output, a mean over rows whatever the method trains on; for retrieval its total
    loss."""
    if predictions.logits is None or predictions.labels is None:
        return predictions.losses.get("total", math.inf)
    labels = torch.from_numpy(predictions.labels)
    logits = torch.from_numpy(predictions.logits)
    return float(task_rows(task, logits, labels.reshape(logits.shape) if labels.is_floating_point() else labels).mean())
