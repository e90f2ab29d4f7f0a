"""Data that a trained model is applied to: the model's classes, no made split, any number of rows."""

from __future__ import annotations

import numpy as np
import pytest

from pgm_fast.data import load
from pgm_fast.errors import DataError

CLASSES = ["cat", "dog", "owl"]


def save(path, rows=4, **arrays):
    np.savez(path, x=np.arange(rows * 2.0).reshape(rows, 2), **arrays)
    return path


def test_names_are_coded_by_the_model_s_classes_and_every_row_is_test(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array(["dog", "owl", "owl", "dog"]))
    features = load(path, task="classification", apply=True, class_names=CLASSES)
    assert features.labels.tolist() == [1, 2, 2, 1]
    assert features.num_classes == 3 and features.class_names == CLASSES
    assert features.split.tolist() == ["test"] * 4


def test_numbers_of_a_source_with_its_own_names_are_recoded(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array([0, 1, 0, 1]), class_names=np.array(["owl", "dog"]))
    assert load(path, apply=True, class_names=CLASSES).labels.tolist() == [2, 1, 2, 1]


def test_an_unknown_name_is_refused_with_row_value_and_allowed_names(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array(["dog", "cow", "owl", "dog"]))
    with pytest.raises(DataError, match="label, row 1: label 'cow' .*cat, dog, owl"):
        load(path, apply=True, class_names=CLASSES)


def test_with_num_classes_a_class_may_lack_rows_but_none_lies_beyond(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array([1, 2, 2, 1]))
    features = load(path, apply=True, num_classes=3)
    assert features.labels.tolist() == [1, 2, 2, 1] and features.num_classes == 3
    with pytest.raises(DataError, match="label, row 1: label 2 out of range: there are 2 classes"):
        load(path, apply=True, num_classes=2)


def test_names_for_a_model_of_numbered_classes_are_refused(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array(["dog", "owl", "owl", "dog"]))
    with pytest.raises(DataError, match="'dog' is a name"):
        load(path, apply=True, num_classes=2)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_row_without_label_is_enough(tmp_path, rows):
    features = load(save(tmp_path / "a.npz", rows), task="retrieval", apply=True)
    assert features.split.tolist() == ["test"] * rows and features.labels is None


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_of_the_source_is_kept_and_none_is_required(tmp_path, split):
    path = save(tmp_path / "a.npz", 1, label=np.array([0]), split=np.array([split]))
    assert load(path, apply=True, num_classes=2).split.tolist() == [split]


def test_groups_need_no_split_either(tmp_path):
    path = save(tmp_path / "a.npz", label=np.array([1, 0, 1, 1]), talk=np.array([0, 0, 1, 1]))
    assert load(path, group_by="talk", apply=True, num_classes=2).split.tolist() == ["test"] * 2
