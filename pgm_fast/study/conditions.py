"""The test rows of a set under other conditions: modalities that are missing, or noisy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..data import Normalizer
from ..data.arrays import read_rows
from ..data.feature_set import FeatureSet
from ..data.sampling import draw_presence
from .plan import Conditions

__all__ = ["rows_under"]


def rows_under(features: FeatureSet, conditions: Conditions, seed: int) -> Iterator[tuple[str, str, FeatureSet]]:
    """``(kind, level, test rows)`` for every condition: ``missing`` with a probability, ``noise <modality>`` with a
    deviation.

    What is drawn depends on ``seed`` and the rows alone, so all methods meet the same; what a larger probability hides
    includes what a smaller one does, and noise of another deviation is the same noise at another scale.
    """
    rows = _test_rows(features)
    for probability in conditions.missing:
        present = draw_presence(_generator(seed, 0), len(rows), len(rows.modalities), probability, rows.presence)
        yield "missing", f"{probability:g}", replace(rows, presence=None if present.all() else present)
    if not conditions.noise:
        return
    scale = Normalizer.fit(features).scale
    for number, (name, values) in enumerate(rows.modalities.items()):
        drawn = _generator(seed, 1 + number).standard_normal(values.shape, dtype=np.float32) * scale[name]
        for deviation in conditions.noise:
            noisy = (values + deviation * drawn).astype(np.float32)
            yield f"noise {name}", f"{deviation:g}", replace(rows, modalities=rows.modalities | {name: noisy})


def _test_rows(features: FeatureSet) -> FeatureSet:
    """The test rows alone, in memory."""
    rows = features.rows("test")

    def taken(values):
        return None if values is None else values[rows]

    return replace(
        features,
        modalities={name: np.asarray(read_rows(array, rows)) for name, array in features.modalities.items()},
        labels=taken(features.labels),
        split=features.split[rows],
        lengths={name: values[rows] for name, values in features.lengths.items()},
        step_lengths=taken(features.step_lengths),
        presence=taken(features.presence),
        ids=taken(features.ids),
        relevance=taken(features.relevance),
        num_classes=features.spec.num_outputs if features.task == "classification" else features.num_classes,
    )


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
