"""Test rows under other conditions: what is hidden or disturbed, and that all else stays as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import frequency, mean_of_draws

from pgm_fast.data import Normalizer, draw
from pgm_fast.study.conditions import rows_under
from pgm_fast.study.plan import Conditions

LEVELS = st.lists(st.floats(0, 0.95), min_size=2, max_size=4, unique=True).map(sorted)


def under(features, seed=0, **asked):
    return {(kind, level): rows for kind, level, rows in rows_under(features, Conditions(**asked), seed)}


def present(rows):
    return np.ones((len(rows), len(rows.modalities)), bool) if rows.presence is None else rows.presence


@settings(max_examples=25)
@given(levels=LEVELS, modalities=st.sampled_from([2, 3]), missing=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 5))
def test_more_is_hidden_at_a_higher_level_and_a_row_keeps_one_modality(levels, modalities, missing, seed):
    features = draw("copy", n=100, modalities=modalities, missing=missing).features
    test = features.rows("test")
    had = present(features)[test]
    found = [present(rows) for rows in under(features, seed, missing=levels).values()]
    assert all(kept.any(axis=1).all() and not (kept & ~had).any() for kept in found)
    assert all((more <= less).all() for less, more in zip(found, found[1:], strict=False))


def test_the_probability_is_that_of_every_modality():
    features = draw("copy", n=20000, modalities=3).features
    rows = under(features, missing=[0.3])["missing", "0.3"]
    expected = 0.7 + 0.3**3 / 3  # of three hidden by chance one stays, any of them
    assert rows.presence.mean(axis=0) == pytest.approx(expected, abs=frequency(expected, len(rows)))


def test_noise_is_in_units_of_the_training_rows_on_one_modality_at_a_time():
    features = draw("copy", n=4000, scales=[1.0, 5.0]).features
    test, scale = features.rows("test"), Normalizer.fit(features).scale
    found = under(features, noise=[0.5, 1.0])
    assert list(found) == [("noise a", "0.5"), ("noise a", "1"), ("noise b", "0.5"), ("noise b", "1")]
    for (kind, level), rows in found.items():
        noisy, other = ("a", "b") if kind == "noise a" else ("b", "a")
        added = (rows.modalities[noisy] - features.modalities[noisy][test]) / scale[noisy]
        # a deviation varies by 1 / sqrt(2 n) of itself
        assert added.std() == pytest.approx(float(level), rel=mean_of_draws(1 / math.sqrt(2), added.size), abs=0)
        assert abs(added.mean()) < mean_of_draws(float(level), added.size)
        assert np.array_equal(rows.modalities[other], features.modalities[other][test])
        assert np.array_equal(rows.labels, features.labels[test])


def test_a_seed_is_one_draw_whatever_the_training_rows_are():
    features = draw("mixture", n=60, sequence=True).features
    other = replace(features, labels=1 - features.labels)
    for (_, one), (_, same) in zip(
        under(features, missing=[0.5]).items(), under(other, missing=[0.5]).items(), strict=True
    ):
        assert np.array_equal(present(one), present(same))
        assert all(np.array_equal(one.lengths[name], same.lengths[name]) for name in one.lengths)
    assert not np.array_equal(
        present(under(features, 0, missing=[0.5])["missing", "0.5"]),
        present(under(features, 1, missing=[0.5])["missing", "0.5"]),
    )
