"""Metrics are what their formulas say, on any rows, and never a made-up value where they are not defined."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FP64, METRIC_FP32, RANK_TIE, ROUNDED_7

from pgm_fast.errors import ConfigError, DataError
from pgm_fast.train.scores import metrics
from pgm_fast.train.scores.metrics import (
    METRICS,
    evaluate_predictions,
    monitored_metric,
    primary_metric,
    retrieval_ranks,
    score,
)
from pgm_fast.train.scores.predictions import Predictions

draws = settings(max_examples=25, derandomize=True)


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(**fields) -> Predictions:
    count = len(next(value for value in fields.values() if isinstance(value, np.ndarray)))
    return Predictions(index=np.arange(count), **fields)


def fused(task: str, logits: np.ndarray, labels: np.ndarray, outputs: int) -> dict[str, float]:
    return evaluate_predictions(task, rows(logits=logits.astype(np.float32), labels=labels), outputs)["fused"]


@draws
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.05, 1.0, 30.0]),
)
def test_classification_agrees_with_scikit_learn(seed, n, classes, scale):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    # With 0.05 every logit lies in [0, 1], where logits could be mistaken for probabilities.
    logits = (0.5 + scale * rng.uniform(-1, 1, (n, classes))).astype(np.float32)
    got = fused("classification", logits, labels, classes)

    exact = logits.astype(np.float64)
    probabilities = np.exp(exact - exact.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), abs=METRIC_FP32)
    assert got["f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=METRIC_FP32)
    assert got["f1_weighted"] == pytest.approx(
        reference.f1_score(labels, predicted, average="weighted"), abs=METRIC_FP32
    )
    assert got["nll"] == pytest.approx(-np.log(probabilities[np.arange(n), labels]).mean(), rel=FP64, abs=ROUNDED_7)
    if len(set(labels)) < classes:
        assert "auroc" not in got
    else:
        one_against_rest = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in range(classes)]
        assert got["auroc"] == pytest.approx(np.mean(one_against_rest), abs=METRIC_FP32)


@draws
@given(seed=st.integers(0, 10**6), n=st.integers(1, 50), outputs=st.integers(1, 5))
def test_multilabel_agrees_with_scikit_learn(seed, n, outputs):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, outputs)) < rng.random(outputs)).astype(np.float32)
    logits = rng.normal(size=(n, outputs)).astype(np.float32)
    got = fused("multilabel", logits, labels, outputs)

    predicted, true = (logits > 0).astype(int), labels.astype(int)
    carried = np.flatnonzero(true.any(axis=0))
    per_label = [reference.f1_score(true[:, c], predicted[:, c], zero_division=0) for c in range(outputs)]
    assert got["f1_macro"] == pytest.approx(np.mean(per_label), abs=METRIC_FP32)
    assert got["f1_micro"] == pytest.approx(
        reference.f1_score(true.ravel(), predicted.ravel(), zero_division=0), abs=METRIC_FP32
    )
    assert got["exact"] == pytest.approx((predicted == true).all(axis=1).mean(), abs=METRIC_FP32)
    if len(carried):
        precisions = [reference.average_precision_score(true[:, c], logits[:, c]) for c in carried]
        assert got["map"] == pytest.approx(np.mean(precisions), abs=METRIC_FP32)
    else:
        assert "map" not in got


@draws
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), noise=st.sampled_from([0.0, 0.5, 3.0]))
def test_sentiment_metrics_follow_their_definitions(seed, n, noise):
    rng = np.random.default_rng(seed)
    # Halves and zeros are common, so that rounding and the sign of zero matter.
    labels = (rng.integers(-6, 7, n) / 2).astype(np.float32)
    predicted = (labels + noise * (rng.integers(-4, 5, n) / 2)).astype(np.float32)
    got = fused("regression", predicted[:, None], labels, 1)

    def level(x: float, limit: int) -> int:
        return round(max(-limit, min(limit, float(x))))  # Python rounds half to even

    pairs = list(zip(predicted.tolist(), labels.tolist(), strict=True))
    assert got["mae"] == pytest.approx(np.mean([abs(p - t) for p, t in pairs]), abs=ROUNDED_7)
    assert got["acc7"] == pytest.approx(np.mean([level(p, 3) == level(t, 3) for p, t in pairs]), abs=ROUNDED_7)
    assert got["acc5"] == pytest.approx(np.mean([level(p, 2) == level(t, 2) for p, t in pairs]), abs=ROUNDED_7)
    kinds = {"has0": [(p >= 0, t >= 0) for p, t in pairs], "non0": [(p > 0, t > 0) for p, t in pairs if t != 0]}
    for kind, signs in kinds.items():
        if not signs:
            assert f"acc2_{kind}" not in got and f"f1_{kind}" not in got
            continue
        guess, true = np.array(signs).T
        assert got[f"acc2_{kind}"] == pytest.approx((guess == true).mean(), abs=METRIC_FP32)
        assert got[f"f1_{kind}"] == pytest.approx(reference.f1_score(true, guess, average="weighted"), abs=METRIC_FP32)


def test_halves_round_to_even_after_clipping():
    labels = np.array([0.0, 2.0, 2.0, -2.0, 3.0, 0.0], dtype=np.float32)
    predicted = np.array([0.5, 1.5, 2.5, -2.5, 9.0, -0.5], dtype=np.float32)
    assert fused("regression", predicted[:, None], labels, 1)["acc7"] == 1.0


@draws
@given(
    seed=st.integers(0, 10**6), n=st.integers(3, 60), scale=st.sampled_from([1e-9, 1.0, 1e6]), targets=st.integers(1, 4)
)
def test_regression_error_and_correlation_average_over_targets(seed, n, scale, targets):
    rng = np.random.default_rng(seed)
    labels = (scale * (5 + rng.normal(size=(n, targets)))).astype(np.float32)
    predicted = (labels + scale * rng.normal(size=(n, targets))).astype(np.float32)
    got = fused("regression", predicted, labels[:, 0] if targets == 1 else labels, targets)
    exact_p, exact_t = predicted.astype(np.float64), labels.astype(np.float64)
    correlations = [np.corrcoef(exact_p[:, k], exact_t[:, k])[0, 1] for k in range(targets)]
    assert got["pearson"] == pytest.approx(np.mean(correlations), abs=ROUNDED_7)
    assert got["mae"] == pytest.approx(np.abs(exact_p - exact_t).mean(), rel=FP64, abs=ROUNDED_7)
    if targets > 1:
        assert set(got) == {"mae", "pearson"}


def test_sentiment_metrics_need_labels_of_that_range():
    labels = np.array([0.0, 1.0, 3.5], dtype=np.float32)
    assert set(fused("regression", labels[:, None], labels, 1)) == {"mae", "pearson"}


def test_degenerate_rows_are_scored_without_warnings():
    labels = np.linspace(-1, 1, 7, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused("regression", np.full((7, 1), 0.1), labels, 1)["pearson"] == 0.0
        assert fused("regression", labels[:, None], np.full(7, 0.3, dtype=np.float32), 1)["pearson"] == 0.0
        assert "auroc" not in fused("classification", np.zeros((4, 3)), np.zeros(4, dtype=np.int64), 3)
        assert "map" not in fused("multilabel", np.ones((4, 3)), np.zeros((4, 3)), 3)


@draws
@given(seed=st.integers(0, 10**6), task=st.sampled_from(["classification", "multilabel", "regression"]))
def test_a_modality_is_scored_over_its_own_rows_only(seed, task):
    rng = np.random.default_rng(seed)
    n, outputs = 30, 3
    labels = {
        "classification": rng.integers(0, outputs, n),
        "multilabel": (rng.random((n, outputs)) < 0.5).astype(np.float32),
        "regression": rng.normal(size=(n, outputs)).astype(np.float32),
    }[task]
    logits = rng.normal(size=(n, outputs)).astype(np.float32)
    present = rng.random(n) < 0.6
    presence = {"b": present, "gone": np.zeros(n, dtype=bool)}
    unimodal = dict.fromkeys(("a", "b", "gone"), logits)
    everything = Predictions(np.arange(n), labels, logits, unimodal=unimodal, presence=presence)
    got = evaluate_predictions(task, everything, outputs)
    assert got["unimodal"]["a"] == got["fused"]
    assert got["unimodal"]["b"] == fused(task, logits[present], labels[present], outputs)
    assert got["unimodal"]["gone"] == {}


def ranks_one_by_one(query: np.ndarray, candidates: np.ndarray) -> list[int]:
    similarity = query.astype(np.float64) @ candidates.astype(np.float64).T
    return [int((row >= row[i] - RANK_TIE).sum()) for i, row in enumerate(similarity)]


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@draws
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), entries=st.sampled_from([1, 70, 10**6]))
def test_retrieval_agrees_with_sorting_every_row(seed, n, entries):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 6))
    embeddings = {m: unit(base + s * rng.normal(size=base.shape)) for m, s in (("a", 0.2), ("b", 1.0), ("c", 2.0))}
    presence = {"b": rng.random(n) < 0.7}
    predictions = rows(embeddings=embeddings, presence=presence, labels=np.zeros(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK_ENTRIES", entries)
        got = evaluate_predictions("retrieval", predictions, 0)

    expected = {}
    for query in embeddings:
        for candidate in embeddings:
            both = presence["b"] if "b" in (query, candidate) else np.ones(n, dtype=bool)
            if query == candidate or not both.any():
                continue
            rank = np.array(ranks_one_by_one(embeddings[query][both], embeddings[candidate][both]))
            expected[f"{query}->{candidate}"] = {
                **{f"recall_at_{k}": (rank <= k).mean() for k in (1, 5, 10)},
                "median_rank": np.median(rank),
            }
    assert list(got["pairs"]) == list(expected)
    for pair, values in expected.items():
        assert got["pairs"][pair] == pytest.approx(values, abs=FP64)
    assert got["fused"].keys() == ({name for name in METRICS["retrieval"] if name != "map"} if expected else set())
    for name in got["fused"]:
        assert got["fused"][name] == pytest.approx(np.mean([values[name] for values in expected.values()]), abs=FP64)
    assert got["unimodal"] == {}


@pytest.mark.parametrize("n", [7, 1000])
def test_an_embedding_that_says_nothing_retrieves_nothing(n):
    same = np.tile(unit(np.random.default_rng(0).normal(size=37)), (n, 1))
    got = evaluate_predictions("retrieval", rows(embeddings={"a": same, "b": same.copy()}, labels=np.zeros(n)), 0)
    assert got["fused"] == {
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": float(n <= 10),
        "median_rank": float(n),
    }


def test_equal_embeddings_retrieve_everything_and_one_modality_nothing():
    embedding = unit(np.random.default_rng(0).normal(size=(50, 8)))
    got = evaluate_predictions("retrieval", rows(embeddings={"a": embedding, "b": embedding}, labels=np.zeros(50)), 0)
    assert got["fused"] == {"recall_at_1": 1.0, "recall_at_5": 1.0, "recall_at_10": 1.0, "median_rank": 1.0}
    alone = evaluate_predictions("retrieval", rows(embeddings={"a": embedding}, labels=np.zeros(50)), 0)
    assert alone == {"fused": {}, "unimodal": {}, "pairs": {}}


def test_retrieval_never_holds_all_similarities(monkeypatch):
    n = 3000
    embeddings = {m: unit(np.random.default_rng(i).normal(size=(n, 4))) for i, m in enumerate("ab")}
    monkeypatch.setattr(metrics, "_CHUNK_ENTRIES", 10 * n)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Watch():
        retrieval_ranks(rows(embeddings=embeddings, labels=np.zeros(n)))
    assert n * 4 < largest <= 10 * n


@pytest.mark.parametrize("task", METRICS)
def test_values_are_plain_finite_floats_under_known_names(task):
    rng = np.random.default_rng(0)
    n, outputs = 40, 2
    logits = rng.normal(size=(n, outputs)).astype(np.float32)
    labels = {"classification": rng.integers(0, 2, n), "regression": rng.uniform(-3, 3, n), "retrieval": None}.get(
        task, rng.integers(0, 2, (n, outputs)).astype(np.float32)
    )
    if task == "regression":
        logits, outputs = logits[:, :1], 1
    embeddings = {"a": unit(rng.normal(size=(n, 4))), "b": unit(rng.normal(size=(n, 4)))}
    predictions = Predictions(np.arange(n), labels, logits, {"a": logits}, embeddings)
    got = evaluate_predictions(task, predictions, outputs, rng.integers(0, 2, n))
    assert set(got["fused"]) == set(METRICS[task])
    for values in [got["fused"], *got["unimodal"].values(), *got.get("pairs", {}).values()]:
        assert all(type(value) is float and math.isfinite(value) for value in values.values())
    json.dumps(got, allow_nan=False)
    assert primary_metric(task)[0] in got["fused"]


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_no_rows_and_non_finite_predictions_have_no_metrics(task):
    labels = np.zeros((4, 2), dtype=np.float32) if task != "classification" else np.zeros(4, dtype=np.int64)
    broken = np.array([[0.0, np.nan]] + [[0.0, 1.0]] * 3)
    assert fused(task, broken, labels, 2) == {}
    assert fused(task, broken[:0], labels[:0], 2) == {}
    assert evaluate_predictions(task, Predictions(np.zeros(0, dtype=np.int64)), 2) == {"fused": {}, "unimodal": {}}
    assert score(task, {}) == -math.inf


def test_scoring_without_labels_says_what_to_do():
    with pytest.raises(DataError, match="no labels.*predict"):
        evaluate_predictions("classification", rows(logits=np.zeros((2, 2))), 2)


def test_larger_score_is_better_for_every_metric():
    assert [primary_metric(task) for task in METRICS] == [
        ("accuracy", "max"),
        ("map", "max"),
        ("mae", "min"),
        ("recall_at_1", "max"),
    ]
    for task, directions in METRICS.items():
        for name, direction in directions.items():
            good, bad = (2.0, 1.0) if direction == "max" else (1.0, 2.0)
            assert score(task, {name: good}, name) > score(task, {name: bad}, name)
        assert score(task, dict.fromkeys(directions, 0.25)) == score(
            task, dict.fromkeys(directions, 0.25), primary_metric(task)[0]
        )


def test_unknown_monitor_lists_what_there_is():
    with pytest.raises(
        ConfigError, match=rf"'acuracy' \(did you mean accuracy\?\).*{', '.join(METRICS['classification'])}"
    ):
        monitored_metric("classification", "acuracy")
    with pytest.raises(ConfigError, match="train.monitor is 'mae'.*recall_at_1"):
        score("retrieval", {"recall_at_1": 0.5}, "mae")
    with pytest.raises(ConfigError, match="'auroc', which is not defined on these rows.*accuracy"):
        score("classification", {"accuracy": 0.5}, "auroc")


def precision_of_classes(similarity, relevant):
    """scikit-learn's average precision of every query that has something relevant."""
    pairs = zip(relevant, similarity, strict=True)
    return [reference.average_precision_score(wanted, row) for wanted, row in pairs if wanted.any()]


@draws
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    several=st.booleans(),
    coarse=st.booleans(),
    entries=st.sampled_from([1, 600, 10**6]),
)
def test_retrieval_of_classes_agrees_with_scikit_learn(seed, n, several, coarse, entries):
    rng = np.random.default_rng(seed)
    # on a coarse grid many candidates are equally similar, and products of its values are exact
    draw = (lambda: rng.integers(-1, 2, (n, 2)).astype(np.float32)) if coarse else lambda: unit(rng.normal(size=(n, 4)))
    embeddings = {"a": draw(), "b": draw()}
    presence = {"b": rng.random(n) < 0.8}
    relevance = rng.random((n, 3)) < 0.4 if several else rng.integers(0, 3, n)
    predictions = rows(embeddings=embeddings, presence=presence, labels=np.zeros(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK_ENTRIES", entries)
        got = evaluate_predictions("retrieval", predictions, 0, relevance)

    kept = relevance[presence["b"]]
    related = (kept.astype(int) @ kept.T.astype(int)) > 0 if several else kept[:, None] == kept
    both_ways = []
    for query, candidate in (("a", "b"), ("b", "a")):
        asked, offered = (embeddings[m][presence["b"]] for m in (query, candidate))
        wanted = precision_of_classes((torch.from_numpy(asked) @ torch.from_numpy(offered).T).numpy(), related)
        if wanted:
            both_ways.append(np.mean(wanted))
            assert got["pairs"][f"{query}->{candidate}"]["map"] == pytest.approx(both_ways[-1], abs=FP64)
    if both_ways:
        assert got["fused"]["map"] == pytest.approx(np.mean(both_ways), abs=FP64)
    else:
        assert "map" not in got["fused"]


def test_retrieval_of_classes_agrees_with_torchmetrics():
    from torchmetrics.functional.retrieval import retrieval_average_precision

    rng = np.random.default_rng(0)
    a, b, classes = unit(rng.normal(size=(40, 5))), unit(rng.normal(size=(40, 5))), rng.integers(0, 4, 40)
    got = evaluate_predictions("retrieval", rows(embeddings={"a": a, "b": b}, labels=np.zeros(40)), 0, classes)
    # torchmetrics counts what has a score of 0 or less as not found
    similarity, related = torch.from_numpy(a @ b.T) + 2, torch.from_numpy(classes[:, None] == classes)
    wanted = [float(retrieval_average_precision(*pair)) for pair in zip(similarity, related, strict=True)]
    assert got["pairs"]["a->b"]["map"] == pytest.approx(np.mean(wanted), abs=METRIC_FP32)
    assert (
        "map"
        not in evaluate_predictions("retrieval", rows(embeddings={"a": a, "b": b}, labels=np.zeros(40)), 0)["fused"]
    )
