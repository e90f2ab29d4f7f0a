"""A feature set built in code is checked like a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pgm_fast.data import FeatureSet, check_features
from pgm_fast.errors import DataError


def good(**changes) -> FeatureSet:
    rng = np.random.default_rng(0)
    features = FeatureSet(
        name="made",
        modalities={"text": rng.standard_normal((12, 3)), "audio": rng.standard_normal((12, 5, 2))},
        task="classification",
        labels=np.arange(12) % 3,
        split=np.array(["train", "valid", "test"])[np.arange(12) // 4],
        lengths={"audio": np.arange(12) % 5 + 1},
        presence=np.ones((12, 2), bool),
        num_classes=3,
    )
    return replace(features, **changes)


def at(array, row, value):
    array = array.copy()
    array[row] = value
    return array


G = good()
BAD = {
    "unequal N": ({"modalities": {"text": G.modalities["text"][:9], "audio": G.modalities["audio"]}}, "text: 9 rows"),
    "NaN": ({"modalities": {**G.modalities, "text": at(G.modalities["text"], (6, 1), np.nan)}}, "text, row 6: 1 NaN"),
    "label range": ({"labels": at(G.labels, 7, 3)}, "labels, row 7: label 3 out of range"),
    "names as labels": (
        {"labels": np.array(list("abc"))[G.labels]},
        "labels: dtype <U1: classification needs integers",
    ),
    "no labels": ({"labels": None}, "labels: None, and classification needs labels"),
    "length beyond": ({"lengths": {"audio": at(G.lengths["audio"], 2, 6)}}, "audio_lengths, row 2: length 6"),
    "length zero where absent": (
        {"lengths": {"audio": at(G.lengths["audio"], 2, 0)}, "presence": at(G.presence, (2, 1), False)},
        "audio_lengths, row 2: length 0",
    ),
    "length of nothing": ({"lengths": {"audoi": G.lengths["audio"]}}, r"audoi_lengths: .*did you mean audio"),
    "presence shape": ({"presence": np.ones((12, 3), bool)}, r"presence: shape \(12, 3\).*text, audio"),
    "presence type": ({"presence": np.ones((12, 2), int)}, r"presence: int64\[12, 2\]: bool"),
    "task": ({"task": "clasification"}, "unknown task 'clasification'.*did you mean classification"),
    "tensor": ({"modalities": {"text": torch.ones(12, 3)}, "lengths": {}}, "text: a Tensor where a numpy array"),
    "tensor labels": ({"labels": torch.arange(12) % 3}, "labels: a Tensor where a numpy array"),
    "split synonym": ({"split": at(G.split, 5, "dev")}, "split, row 5: 'dev' is not one of train, valid, test"),
    "no train": ({"split": np.repeat(["valid", "test"], 6)}, "split: no train rows"),
    "reserved name": ({"modalities": {"type": G.modalities["text"]}, "lengths": {}, "presence": None}, "'type' is res"),
    "relevance of labelled rows": ({"relevance": G.labels}, "relevance: given, and only retrieval of whole samples"),
    "relevance of fewer rows": (
        {"task": "retrieval", "labels": None, "relevance": G.labels[:9]},
        "relevance: 9 rows where split has 12",
    ),
    "relevance as numbers": (
        {"task": "retrieval", "labels": None, "relevance": G.labels / 2},
        r"relevance: float64\[12\]: classes",
    ),
    "relevance as counts": (
        {"task": "retrieval", "labels": None, "relevance": np.full((12, 3), 2)},
        "relevance: holds other values than 0 and 1",
    ),
    "no modality": ({"modalities": {}, "lengths": {}}, "modalities: none"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_mistake_is_named(case):
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message) as raised:
        check_features(good(**changes))
    assert str(raised.value).startswith("made: ") and "\n" not in str(raised.value)


def test_a_good_set_passes_with_anything_in_its_padding():
    audio = G.modalities["audio"].copy()
    audio[0, 1:] = np.nan
    check_features(good(modalities={**G.modalities, "audio": audio}))


def test_padding_beyond_step_lengths_may_hold_anything_and_steps_within_may_not():
    audio, labels = G.modalities["audio"].copy(), np.zeros((12, 5), int)
    audio[0, 1:], labels[0, 1:] = np.nan, -1
    steps = {"lengths": {}, "presence": None, "labels": labels, "step_lengths": G.lengths["audio"]}
    check_features(good(modalities={"audio": audio}, **steps))
    with pytest.raises(DataError, match="audio, row 3: 1 NaN"):
        check_features(good(modalities={"audio": at(audio, (3, 0, 1), np.nan)}, **steps))


def test_data_to_apply_a_model_to_needs_neither_labels_nor_train_rows():
    check_features(good(labels=None, split=np.full(12, "test")), apply=True)
