"""Scores of predictions: for the fused output and for every modality alone.

Values are plain finite floats, ready for JSON. A metric that is not defined for the rows at hand (AUROC where a class
is absent, F1 of the non-zero sentiments where there are none, anything at all without rows) is left out rather than
given a made-up value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_f1_score,
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
)

from ...errors import ConfigError, DataError, did_you_mean
from .predictions import Predictions

__all__ = ["METRICS", "evaluate_predictions", "monitored_metric", "primary_metric", "retrieval_ranks", "score"]

METRICS: dict[str, dict[str, str]] = {
    "classification": {"accuracy": "max", "f1": "max", "f1_weighted": "max", "auroc": "max", "nll": "min"},
    "multilabel": {"map": "max", "f1_micro": "max", "f1_macro": "max", "exact": "max"},
    "regression": {
        "mae": "min",
        "pearson": "max",
        "acc2_has0": "max",
        "acc2_non0": "max",
        "f1_has0": "max",
        "f1_non0": "max",
        "acc5": "max",
        "acc7": "max",
    },
    "retrieval": {
        "recall_at_1": "max",
        "recall_at_5": "max",
        "recall_at_10": "max",
        "median_rank": "min",
        "map": "max",
    },
}
"""task -> metric -> whether larger (``max``) or smaller (``min``) is better; the first of a task is its primary one."""

_SENTIMENT_RANGE = 3.0  # CMU-MOSI and CMU-MOSEI: annotations in [-3, 3]
_RECALLS = (1, 5, 10)
# Similarities of unit vectors in float32 differ by this much through the order of summation alone: closer is a tie.
_TIE = 1e-6
_CHUNK_ENTRIES = 1 << 24  # similarities held at once: 64 MiB


def evaluate_predictions(
    task: str, predictions: Predictions, num_outputs: int, relevance: np.ndarray | None = None
) -> dict[str, dict]:
    """Every metric of ``task``, for the fused prediction and for each modality over the rows where it is present.

    Args:
        task: one of ``classification``, ``multilabel``, ``regression``, ``retrieval``.
        predictions: n rows of one split, with labels (but for retrieval).
        num_outputs: classes, labels or regression targets; not read for retrieval.
        relevance: for retrieval, of the n rows: classes ``[n]`` or 0/1 labels ``[n, C]``. ``map`` is defined with it
            alone: the mean over queries of the average precision of all rows of the other modality, of which those are
            right that have the query's class, or share a label with it. The field reports it of image and text
            (Rasiwasia et al., ACM MM 2010). Rows of equal similarity enter together. It sorts n candidates for every
            query.

    Returns:
        ``{"fused": {metric: float}, "unimodal": {modality: {metric: float}}}``, names as in :data:`METRICS`, and
        ``further`` of the same form for a method with other heads. For
        retrieval ``unimodal`` is empty, ``pairs`` holds the metrics of every direction as ``"a->b"`` (a is the query),
        and ``fused`` their mean. A prediction that holds NaN or an infinity has no metrics at all.

    Raises:
        DataError: there are no labels to score against.
    """
    if task == "retrieval":
        return _evaluate_retrieval(predictions, relevance)
    if len(predictions.index) == 0:
        return {"fused": {}, "unimodal": {}}
    if predictions.labels is None:
        raise DataError(
            f"the predictions have no labels, so {task} cannot be scored; choose data with labels or use predict"
        )
    measure = _MEASURES[task]
    labels = torch.from_numpy(np.ascontiguousarray(predictions.labels))
    fused = {} if predictions.logits is None else _measure(measure, predictions.logits, labels, num_outputs, None)
    unimodal = {
        modality: _measure(measure, logits, labels, num_outputs, predictions.presence.get(modality))
        for modality, logits in predictions.unimodal.items()
    }
    scores = {"fused": fused, "unimodal": unimodal}
    if predictions.further:
        scores["further"] = {
            name: _measure(measure, logits, labels, num_outputs, predictions.presence.get(name.rpartition("/")[2]))
            for name, logits in predictions.further.items()
        }
    return scores


def primary_metric(task: str) -> tuple[str, str]:
    """The metric by which a task's models are chosen, and which way is better: ``(name, "max" | "min")``."""
    return next(iter(METRICS[task].items()))


def monitored_metric(task: str, monitor: str = "auto") -> tuple[str, str]:
    """The metric that ``train.monitor`` names, ``auto`` being the primary one: ``(name, "max" | "min")``.

    Raises:
        ConfigError: the task has no such metric; the message lists those that it has.
    """
    if monitor == "auto":
        return primary_metric(task)
    directions = METRICS[task]
    if monitor not in directions:
        near = did_you_mean(monitor, directions)
        raise ConfigError(
            f"train.monitor is {monitor!r}{near}; for {task} it is auto or one of {', '.join(directions)}"
        )
    return monitor, directions[monitor]


def score(task: str, metrics: Mapping[str, float], monitor: str = "auto") -> float:
    """One number by which to compare epochs, larger is better: the monitored metric, negated where small is good.

    Args:
        task: the task of the run.
        metrics: metrics of one output, as from :func:`evaluate_predictions`. None at all (no rows, or a prediction that
            is not finite) scores ``-inf``, which is the one value here that is not for JSON.
        monitor: ``auto`` or a name of :data:`METRICS`.

    Raises:
        ConfigError: the task has no such metric, or it is not defined on these rows.
    """
    name, direction = monitored_metric(task, monitor)
    if not metrics:
        return -math.inf
    if name not in metrics:
        raise ConfigError(
            f"train.monitor is {name!r}, which is not defined on these rows (a class may be absent, labels lie "
            f"outside [-3, 3], or samples to retrieve have no classes); defined are {', '.join(metrics)}"
        )
    return metrics[name] if direction == "max" else -metrics[name]


def retrieval_ranks(predictions: Predictions) -> dict[tuple[str, str], np.ndarray]:
    """Rank of the true counterpart for every ordered pair (query, candidate) of modalities.

    Candidates are the rows in which both modalities are present, ordered by cosine similarity. The best rank is 1. A
    tie counts against the query, so an embedding that says nothing has the worst rank, not the best. No ``n x n``
    matrix is held.

    Returns:
        ``{(query, candidate): int64 [rows with both]}``, both directions of every pair that has rows.
    """
    ranks: dict[tuple[str, str], np.ndarray] = {}
    for a, b in combinations(predictions.embeddings, 2):
        both = _rows_with(predictions, a, b)
        if both.any():
            ranks[a, b], ranks[b, a] = _ranks_both_ways(
                predictions.embeddings[a][both], predictions.embeddings[b][both]
            )
    modalities = list(predictions.embeddings)
    return {(a, b): ranks[a, b] for a in modalities for b in modalities if (a, b) in ranks}


def _rows_with(predictions: Predictions, *modalities: str) -> np.ndarray:
    """bool ``[n]``: rows in which these modalities are present."""
    rows = np.ones(len(predictions.index), dtype=bool)
    for modality in modalities:
        rows &= predictions.presence.get(modality, True)
    return rows


def _measure(
    measure, prediction: np.ndarray, labels: Tensor, num_outputs: int, rows: np.ndarray | None
) -> dict[str, float]:
    """Metrics over ``rows`` (a mask, None for all) as plain floats, undefined ones left out."""
    prediction = torch.from_numpy(np.ascontiguousarray(prediction, dtype=np.float64))
    if rows is not None:
        mask = torch.from_numpy(np.ascontiguousarray(rows))
        prediction, labels = prediction[mask], labels[mask]
    if len(labels) == 0 or not bool(torch.isfinite(prediction).all()):
        return {}
    # torchmetrics divides counts in float32: digits past the seventh are noise of that.
    with _counts():
        values = {name: round(float(value), 7) for name, value in measure(prediction, labels, num_outputs).items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


@contextmanager
def _counts() -> Iterator[None]:
    """Where deterministic algorithms are asked for torchmetrics counts by comparing every row with every cell of the
    confusion matrix. Here counts are made on the CPU, where they are the same in any order."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def _classification(logits: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    labels = labels.long()
    # Class numbers and probabilities, never raw logits: torchmetrics takes any scores within [0, 1] for probabilities.
    predicted, probabilities = logits.argmax(dim=1), logits.softmax(dim=1)
    values = {
        "accuracy": multiclass_accuracy(predicted, labels, classes, average="micro"),
        "f1": multiclass_f1_score(predicted, labels, classes, average="macro"),
        "f1_weighted": multiclass_f1_score(predicted, labels, classes, average="weighted"),
        "nll": torch.nn.functional.cross_entropy(logits, labels),
    }
    if classes > 1 and len(labels.unique()) == classes:
        values["auroc"] = multiclass_auroc(probabilities, labels, classes, average="macro")
    return values


def _multilabel(logits: Tensor, labels: Tensor, outputs: int) -> dict[str, Tensor]:
    labels = labels.reshape(len(logits), outputs).long()
    probabilities = logits.sigmoid()
    # The average precision of a label that no row carries is not defined: the mean is over the others.
    values = {}
    carried = labels.any(dim=0)
    if bool(carried.any()):
        own = _two_or_more(probabilities[:, carried], labels[:, carried])
        values["map"] = multilabel_average_precision(*own, average="macro")
    everything = _two_or_more(probabilities, labels)
    values["f1_micro"] = multilabel_f1_score(*everything, average="micro")
    values["f1_macro"] = multilabel_f1_score(*everything, average="macro")
    values["exact"] = multilabel_exact_match(*everything)
    return values


def _two_or_more(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """torchmetrics wants two labels or more; the mean over a label and its copy is the label's own value."""
    copies = 2 if labels.shape[1] == 1 else 1
    return probabilities.repeat(1, copies), labels.repeat(1, copies), copies * labels.shape[1]


def _regression(prediction: Tensor, labels: Tensor, outputs: int) -> dict[str, Tensor]:
    prediction, labels = prediction.reshape(len(labels), -1), labels.reshape(len(labels), -1).double()
    values = {"mae": (prediction - labels).abs().mean(), "pearson": _pearson(prediction, labels)}
    if outputs == 1 and bool((labels.abs() <= _SENTIMENT_RANGE).all()):
        values |= _sentiment(prediction[:, 0], labels[:, 0])
    return values


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation per column, their mean. A constant column correlates with nothing: 0.

    Not torchmetrics': that one warns and loses precision where the variance is small, though correlation has no
    scale.
    """

    def direction(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=0)
        centred = centred * (x.amax(dim=0) > x.amin(dim=0))
        centred = centred / centred.abs().amax(dim=0).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.nn.functional.normalize(centred, dim=0)

    return (direction(a) * direction(b)).sum(dim=0).clamp(-1.0, 1.0).mean()


def _sentiment(prediction: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Metrics of the CMU-MOSI and CMU-MOSEI benchmarks (Zadeh et al. 2016, 2018; the two-class variants as in MMSA)."""

    def two_classes(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        predicted, true = predicted.long(), true.long()
        return (
            multiclass_accuracy(predicted, true, 2, average="micro"),
            multiclass_f1_score(predicted, true, 2, average="weighted"),
        )

    def levels(x: Tensor, limit: int) -> Tensor:
        return x.clamp(-limit, limit).round()  # half to even

    values = {
        "acc5": (levels(prediction, 2) == levels(labels, 2)).double().mean(),
        "acc7": (levels(prediction, 3) == levels(labels, 3)).double().mean(),
    }
    values["acc2_has0"], values["f1_has0"] = two_classes(prediction >= 0, labels >= 0)
    charged = labels != 0
    if bool(charged.any()):
        values["acc2_non0"], values["f1_non0"] = two_classes(prediction[charged] > 0, labels[charged] > 0)
    return values


_MEASURES = {"classification": _classification, "multilabel": _multilabel, "regression": _regression}


def _evaluate_retrieval(predictions: Predictions, relevance: np.ndarray | None) -> dict[str, dict]:
    finite = all(np.isfinite(embedding).all() for embedding in predictions.embeddings.values())
    ranks = retrieval_ranks(predictions) if finite else {}
    pairs = {f"{a}->{b}": _retrieval(rank) for (a, b), rank in ranks.items()}
    if relevance is not None:
        for a, b in ranks:
            both = _rows_with(predictions, a, b)
            found = _average_precision(
                predictions.embeddings[a][both], predictions.embeddings[b][both], relevance[both]
            )
            if len(found):
                pairs[f"{a}->{b}"]["map"] = float(found.mean())
    fused = {
        name: float(np.mean([pair[name] for pair in pairs.values()]))
        for name in METRICS["retrieval"]
        if pairs and all(name in pair for pair in pairs.values())
    }
    return {"fused": fused, "unimodal": {}, "pairs": pairs}


def _retrieval(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"recall_at_{k}": float(np.mean(ranks <= k)) for k in _RECALLS}
    return {**recalls, "median_rank": float(np.median(ranks))}


def _average_precision(queries: np.ndarray, candidates: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Average precision of every query, float64 ``[q]``; queries to which nothing is relevant are left out.

    Args:
        queries, candidates: ``[n, e]`` of unit length, of the same rows.
        relevance: ``[n]`` or 0/1 ``[n, C]`` of those rows.
    """
    a = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    b = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.float32))
    sorts = torch.from_numpy(np.ascontiguousarray(relevance))
    if sorts.ndim == 2:
        sorts = sorts.float()
    n, found = len(a), []
    rows = max(1, _CHUNK_ENTRIES // (8 * n))  # beside each similarity its place, counts and a precision are held
    for start in range(0, n, rows):
        asked = slice(start, start + rows)
        distance, order = (-(a[asked] @ b.T)).sort(dim=1)
        related = sorts[asked, None] == sorts if sorts.ndim == 1 else sorts[asked] @ sorts.T > 0
        related = related.gather(1, order)
        # every candidate counts down to the last one of equal similarity
        count = torch.searchsorted(distance, distance, right=True)
        precision = related.cumsum(1).gather(1, count - 1).double() / count
        total = related.sum(1)
        found.append(((precision * related).sum(1) / total)[total > 0])
    return torch.cat(found).numpy()


def _ranks_both_ways(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of row i of ``b`` for query i of ``a``, and the other way round, from one pass over the similarities."""
    a = torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))
    b = torch.from_numpy(np.ascontiguousarray(b, dtype=np.float32))
    n = len(a)
    match = (a * b).sum(dim=1) - _TIE
    forward = torch.empty(n, dtype=torch.int64, device=a.device)
    backward = torch.zeros(n, dtype=torch.int64, device=a.device)
    rows = max(1, _CHUNK_ENTRIES // n)
    for start in range(0, n, rows):
        similarity = a[start : start + rows] @ b.T
        forward[start : start + rows] = (similarity >= match[start : start + rows, None]).sum(dim=1)
        backward += (similarity >= match).sum(dim=0)
    # Rounding beyond the tolerance could lose a row's match with itself.
    return forward.clamp_min(1).numpy(), backward.clamp_min(1).numpy()
