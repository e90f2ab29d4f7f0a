"""Made splits cover every row once, keep their fractions in every class, and depend on the data alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import DEALT_PART, DEALT_ROWS

from pgm_fast.data import load
from pgm_fast.data.splitting import carve_validation, redraw_split, stratified_split
from pgm_fast.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array)


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


@given(data=st.data(), label=LABELS, which=st.sampled_from(["all", "validation"]), seed=st.integers(0, 9))
def test_rows_dealt_anew_keep_the_proportions_and_the_test_rows_where_they_are_to_stay(data, label, which, seed):
    names = data.draw(st.lists(st.sampled_from(["train", "valid", "test"]), min_size=len(label), max_size=len(label)))
    split = np.array(["train", "valid", *names])
    label = np.concatenate([[0, 0], label])
    dealt = redraw_split(split, which, seed, label)
    assert np.array_equal(dealt, redraw_split(split, which, seed, label))
    if which == "validation":
        assert np.array_equal(dealt == "test", split == "test")
    moved = np.ones(len(split), bool) if which == "all" else split != "test"
    for rows in [moved, *(moved & (label == value) for value in np.unique(label))]:
        for name in ("train", "valid", "test"):
            fraction = (split[moved] == name).mean()
            assert abs((dealt[rows] == name).sum() - fraction * rows.sum()) <= DEALT_ROWS + DEALT_PART * rows.sum()


def test_another_seed_is_another_split_and_none_is_the_same_one():
    split, label = stratified_split(90), np.arange(90) % 3
    assert len({redraw_split(split, "all", seed, label).tobytes() for seed in range(5)}) == 5
    assert np.array_equal(redraw_split(split, "none", 3, label), split)


@given(groups=st.lists(st.integers(0, 12), min_size=30, max_size=60).map(np.array), seed=st.integers(0, 9))
def test_rows_of_a_group_come_into_one_split(groups, seed):
    dealt = redraw_split(stratified_split(len(groups)), "all", seed, groups=groups)
    assert all(len(set(dealt[groups == group])) == 1 for group in groups)


def test_a_source_is_read_with_its_rows_dealt_anew(tmp_path):
    video = np.repeat(np.arange(20), 3)
    split = np.repeat(["train"] * 12 + ["valid"] * 4 + ["test"] * 4, 3)
    arrays = {"text": np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)}
    np.savez(tmp_path / "set.npz", **arrays, label=np.arange(60) % 2, video=video, split=split)
    by_row = load(tmp_path / "set.npz", resplit="validation", resplit_by="video", resplit_seed=1)
    assert np.array_equal(by_row.split == "test", split == "test") and not np.array_equal(by_row.split, split)
    assert all(len(set(by_row.split[video == value])) == 1 for value in range(20))
    sequences = load(tmp_path / "set.npz", group_by="video", resplit="all", resplit_by="video", resplit_seed=1)
    assert sorted(sequences.split) == sorted(split[::3])
    with pytest.raises(DataError, match="vide: no such column for resplit_by .did you mean video"):
        load(tmp_path / "set.npz", resplit="all", resplit_by="vide")
    with pytest.raises(DataError, match="keeps no rows together without resplit=all"):
        load(tmp_path / "set.npz", resplit_by="video")
