"""Rows of scikit-learn's stand on the same features: modalities side by side, the mean of a sequence's steps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tolerances import LOGISTIC_ACCURACY, STANDARDISED_MEAN

from pgm_fast.data import FeatureSet, draw, load
from pgm_fast.errors import ConfigError
from pgm_fast.study.classical import SPACES, Classical


def expected(values, labels, split):
    scaler = StandardScaler().fit(values[split == "train"])
    model = LogisticRegression(C=1.0, max_iter=5000)
    model.fit(scaler.transform(values[split == "train"]), labels[split == "train"])
    return model.score(scaler.transform(values[split == "test"]), labels[split == "test"])


def accuracy(features, **settings):
    return Classical("logistic", {"C": 1.0, **settings}, features, 0).scores(features, "test")["fused"]["accuracy"]


def test_vectors_stand_side_by_side():
    features = load("digits")
    values = np.concatenate(list(features.modalities.values()), axis=1)
    assert accuracy(features) == pytest.approx(expected(values, features.labels, features.split), abs=LOGISTIC_ACCURACY)


def test_a_sequence_counts_with_the_mean_of_its_valid_steps():
    rng = np.random.default_rng(0)
    label, lengths = np.arange(90) % 3, rng.integers(1, 6, 90)
    shift = np.eye(3)[label][:, None]
    steps = (shift + 0.1 * rng.normal(size=(90, 6, 3))).astype(np.float32)
    steps[np.arange(6) >= lengths[:, None]] = 1e6  # padding, which nobody may read
    split = np.array(["train", "valid", "test"] * 30)
    order = rng.permutation(90)
    features = FeatureSet(
        "set", {"a": steps[order]}, "classification", label[order], split, lengths={"a": lengths[order]}
    )
    assert accuracy(features) == 1.0


def test_labels_of_steps_have_the_features_of_their_step():
    rng = np.random.default_rng(0)
    label, lengths = rng.integers(0, 2, (30, 5)), rng.integers(1, 6, 30)
    values = (2.0 * label[..., None] + 0.1 * rng.normal(size=(30, 5, 2))).astype(np.float32)
    split = np.array(["train", "valid", "test"] * 10)
    features = FeatureSet("set", {"a": values, "b": values}, "classification", label, split, step_lengths=lengths)
    model = Classical("logistic", {"C": 1.0}, features, 0)
    assert model.scores(features, "test")["fused"]["accuracy"] == 1.0
    assert model.model.n_features_in_ == 4


@pytest.mark.parametrize("model", list(SPACES))
def test_absent_modalities_are_no_signal(model):
    features = draw("copy", n=600, noise=0.5, missing=0.3).features
    features.modalities["a"][~features.presence[:, 0]] = 99.0
    settings = {key: values[0] for key, values in SPACES[model].items()}
    fitted = Classical(model, settings, features, 0)
    assert fitted.scores(features, "test")["fused"]["accuracy"] > 0.9
    assert fitted.normalizer.mean["a"] == pytest.approx(np.zeros(16), abs=STANDARDISED_MEAN)


def test_a_class_without_training_rows_is_a_wrong_answer_and_no_error():
    features = load("digits")
    features.split[(features.labels == 3) & (features.split == "train")] = "valid"
    scores = Classical("logistic", {"C": 1.0}, features, 0).scores(features, "test")["fused"]
    assert 0.8 < scores["accuracy"] < 0.95 and np.isfinite(scores["nll"])


def test_other_tasks_are_refused():
    features = draw("copy", n=60).features
    features.task, features.labels = "regression", features.labels.astype(np.float32)
    with pytest.raises(ConfigError, match="logistic serves classification.*regression set"):
        accuracy(features)
