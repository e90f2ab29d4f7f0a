"""Labels whose values mean classes in another way than 0..C-1 are read as such where that is said once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgm_fast.data import check, load
from pgm_fast.errors import DataError

ROWS = 24


def save(path, label, **more):
    np.savez(path, x=np.random.default_rng(0).normal(size=(len(label), 3)), label=label, **more)
    return path


@settings(max_examples=30)
@given(
    values=st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True),
    dtype=st.sampled_from(["int64", "float32"]),
    column=st.booleans(),
)
def test_every_value_is_a_class_in_order(tmp_path_factory, values, dtype, column):
    code = np.arange(ROWS) % len(values)
    label = np.sort(values)[code].astype(dtype)
    path = save(tmp_path_factory.getbasetemp() / "a.npz", label[:, None] if column else label)
    features = load(path, labels="classes")
    assert features.task == "classification" and np.array_equal(features.labels, code)
    assert features.class_names == [str(value) for value in sorted(values)]
    # what a model learned of these classes is meant of the same values elsewhere, be there fewer of them
    fewer = save(tmp_path_factory.getbasetemp() / "b.npz", label[code > 0])
    again = load(fewer, labels="classes", apply=True, class_names=features.class_names, num_classes=len(values))
    assert np.array_equal(again.labels, code[code > 0])


def test_names_of_the_file_are_those_of_the_values_in_order(tmp_path):
    path = save(tmp_path / "a.npz", np.arange(ROWS) % 3 + 1, class_names=np.array(["sad", "angry", "calm"]))
    features = load(path, labels="classes")
    assert features.class_names == ["sad", "angry", "calm"] and np.array_equal(features.labels, np.arange(ROWS) % 3)


def test_onehot_and_sign(tmp_path):
    code = np.arange(ROWS) % 3
    features = load(save(tmp_path / "a.npz", np.eye(4)[code]), labels="onehot")
    assert np.array_equal(features.labels, code) and features.num_classes == 4
    features = load(save(tmp_path / "a.npz", code - 1.0), labels="sign")
    assert np.array_equal(features.labels, code == 2) and features.num_classes == 2


def test_labels_per_step_are_recoded_without_their_padding(tmp_path):
    label, steps = np.array([[5, 9, -1], [5, -1, -1], [9, 5, 9]]), np.array([2, 1, 3])
    np.savez(tmp_path / "a.npz", x=np.ones((3, 3, 2)), label=label, step_lengths=steps, split=[0, 1, 2])
    features = load(tmp_path / "a.npz", labels="classes")
    assert features.class_names == ["5", "9"] and features.labels.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    ("label", "labels", "message"),
    [
        (np.linspace(0, 1, ROWS), "classes", "whole numbers or names.*labels=sign"),
        (np.arange(ROWS) % 3, "onehot", r"needs \[N, C\] of 0 and 1"),
        (np.ones((ROWS, 2), int), "onehot", "one 1 per row"),
        (np.ones((ROWS, 2)), "sign", "one value per row"),
        (np.array(["a", "b"] * (ROWS // 2)), "sign", "finite numbers"),
        (np.arange(ROWS) % 3, "clases", "not one of auto, classes.*did you mean classes"),
    ],
)
def test_values_that_cannot_mean_that_are_refused(tmp_path, label, labels, message):
    with pytest.raises(DataError, match=message):
        load(save(tmp_path / "a.npz", label), labels=labels)


@pytest.mark.parametrize(
    "label",
    [np.arange(ROWS) % 3 + 1, np.arange(ROWS) % 2 * 2 - 1, np.arange(ROWS) % 2 * 2.0 - 1, np.arange(ROWS) % 3 * 2],
    ids=["from 1", "-1 and 1", "-1.0 and 1.0", "gaps"],
)
def test_what_check_data_hints_at_works(tmp_path, label):
    path = save(tmp_path / "a.npz", label)
    assert any("data.labels=classes" in problem.message for problem in check(path))
    assert not check(path, labels="classes")
    assert load(path, labels="classes").num_classes == len(np.unique(label))
