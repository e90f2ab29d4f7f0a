"""Logistic regression and boosted trees of scikit-learn on the same features and splits: what no network is needed for.

A row's features are those of all modalities side by side; a sequence counts with the mean of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import Batch, Loader, Normalizer
from ..data.feature_set import FeatureSet
from ..errors import ConfigError
from ..train.scores.measure import measure
from ..train.scores.predictions import Predictions

__all__ = ["SPACES", "Classical"]

SPACES: dict[str, dict[str, list[Any]]] = {
    "logistic": {"C": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0]},
    "boosted": {
        "learning_rate": [0.03, 0.1, 0.3],
        "max_leaf_nodes": [4, 8, 31],
        "min_samples_leaf": [5, 20],
        "l2_regularization": [0.0, 1.0],
        "max_iter": [50, 100],
    },
}
"""What is tried: model -> setting -> values. Names are scikit-learn's."""

_BATCH = 4096


class Classical:
    """One fitted model.

    Args:
        model: ``logistic`` (features standardised, absent modalities at their means) or ``boosted`` (trees, to which
            absent modalities are missing values).
        settings: of the model.
        features: fitted to the training rows.
        seed: of the model.

    Raises:
        ConfigError: the task is not classification.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], features: FeatureSet, seed: int):
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression

        if features.task != "classification":
            raise ConfigError(
                f"{model} serves classification, and {features.name} is a {features.task} set; name the rows that are "
                "to run on it in the set's methods"
            )
        self.absent = np.nan if model == "boosted" else 0.0
        self.classes = features.spec.num_outputs
        self.normalizer = Normalizer.fit(features)
        if model == "boosted":
            self.model = HistGradientBoostingClassifier(random_state=seed, early_stopping=False, **settings)
        else:
            self.model = LogisticRegression(max_iter=5000, random_state=seed, **settings)
        values, labels, _ = self._rows(features, "train")
        self.model.fit(values, labels)

    def scores(self, features: FeatureSet, split: str) -> dict[str, Any]:
        """Metrics on a split, of the form of :func:`~pgm_fast.train.scores.measure.measure`."""
        values, labels, index = self._rows(features, split)
        if not len(index):
            return {"fused": {}, "unimodal": {}}
        # A class without training rows has no probability; every other has at least the smallest number above 0.
        tiny = np.finfo(np.float32).tiny
        logits = np.full((len(index), self.classes), np.log(tiny), np.float32)
        logits[:, self.model.classes_] = np.log(np.maximum(self.model.predict_proba(values), tiny))
        return measure(Predictions(index=index, labels=labels, logits=logits), "classification", self.classes)

    def _rows(self, features: FeatureSet, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features ``[n, d]``, labels ``[n]`` and numbers ``[n]`` of the rows of a split."""
        loader = Loader(features, split, batch_size=_BATCH, normalizer=self.normalizer)
        parts = [self._batch(batch, features) for batch in loader.batches(0)]
        if not parts:
            return np.zeros((0, 0)), np.zeros(0, np.int64), np.zeros(0, np.int64)
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _batch(self, batch: Batch, features: FeatureSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = []
        for name, block in batch.inputs.items():
            if features.per_step:
                block = block.flatten(0, 1)[batch.steps]
            elif block.ndim == 3:
                block = block.sum(1) / batch.lengths[name][:, None]  # padding is 0
            values = block.numpy().copy()
            if name in batch.presence:
                values[~batch.presence[name].numpy()] = self.absent
            columns.append(values)
        return np.concatenate(columns, axis=1), batch.labels.numpy(), batch.index.numpy()
