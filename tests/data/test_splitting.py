"""Made splits cover every row once, keep their fractions in every class, and depend on the data alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pgm_fast.data.splitting import carve_validation, stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array)


@settings(deadline=None)
@given(label=LABELS, by_class=st.booleans())
def test_fractions_hold_overall_and_in_every_class(label, by_class):
    split = stratified_split(len(label), label if by_class else None, (0.7, 0.1, 0.2))
    assert set(split) <= {"train", "valid", "test"}
    assert np.array_equal(split, stratified_split(len(label), label if by_class else None, (0.7, 0.1, 0.2)))
    classes = [label == value for value in np.unique(label)] if by_class else []
    for rows in [np.ones(len(label), bool), *classes]:
        for name, fraction in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
            # A stretch of the pattern ends at two places, and at each a part lags or leads by at most one.
            assert abs((split[rows] == name).sum() - fraction * rows.sum()) <= 2
    if len(label) >= 3:
        assert {"train", "test"} <= set(split)


@settings(deadline=None)
@given(label=LABELS, data=st.data())
def test_validation_is_taken_from_train_alone(label, data):
    names = data.draw(st.lists(st.sampled_from(["train", "test"]), min_size=len(label), max_size=len(label)))
    split = np.array(["train", "train", *names])
    label = np.concatenate([[0, 0], label])
    carved = carve_validation(split, label)
    assert np.array_equal(carved == "test", split == "test")
    train = (split == "train").sum()
    assert 1 <= (carved == "valid").sum() < train
    assert abs((carved == "valid").sum() - 0.15 * train) <= 1
