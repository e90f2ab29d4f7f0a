"""Files as published with other systems, written here with the keys and shapes of the originals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pgm_fast.data import check, load
from pgm_fast.errors import DataError

SIZES = {"train": 7, "valid": 3, "test": 4}


def mmsa(aligned: bool) -> dict:
    rng = np.random.default_rng(0)
    steps = {"text": 50, "audio": 50 if aligned else 500, "vision": 50 if aligned else 375}
    dims = {"text": 768, "audio": 5, "vision": 20}
    content = {}
    for split, n in SIZES.items():
        part = {m: rng.standard_normal((n, steps[m], dims[m])).astype(np.float32) for m in dims}
        part["raw_text"] = np.array([f"utterance {k}" for k in range(n)], dtype=object)
        part["id"] = np.array([f"{split}$_${k}" for k in range(n)], dtype=object)
        part["text_bert"] = np.ones((n, 3, 50), np.float32)
        part["annotations"] = np.array(["Positive"] * n, dtype=object)
        part["regression_labels"] = rng.uniform(-3, 3, n).astype(np.float32)
        part["classification_labels"] = (np.arange(n) % 3).astype(np.float32)
        if not aligned:
            part["audio_lengths"] = [int(v) for v in rng.integers(1, 501, n)]
            part["vision_lengths"] = [int(v) for v in rng.integers(1, 376, n)]
        part["audio"][0, 2, 1] = -np.inf
        content[split] = part
    return content


def joined(content: dict, key: str) -> np.ndarray:
    return np.concatenate([content[split][key] for split in SIZES])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("format", ["auto", "mmsa"])
def test_mmsa(tmp_path, aligned, format):
    content = mmsa(aligned)
    path = tmp_path / "aligned_50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    features = load(path, format=format)
    assert features.task == "regression" and features.spec.num_outputs == 1
    assert list(features.modalities) == ["text", "audio", "vision"]
    for name, array in features.modalities.items():
        expected = joined(content, name)
        assert np.array_equal(array, np.where(np.isneginf(expected), 0, expected))
    assert np.array_equal(features.labels, joined(content, "regression_labels"))
    assert features.split.tolist() == [split for split, n in SIZES.items() for _ in range(n)]
    assert features.ids[7] == "valid$_$0"
    assert set(features.lengths) == (set() if aligned else {"audio", "vision"})
    for name, lengths in features.lengths.items():
        assert np.array_equal(lengths, joined(content, f"{name}_lengths"))
    classes = load(path, task="classification", modalities=["vision"])
    assert np.array_equal(classes.labels, joined(content, "classification_labels")) and classes.spec.num_outputs == 3
    assert list(classes.modalities) == ["vision"]


def test_mmsa_problems_are_numbered_within_their_split(tmp_path):
    content = mmsa(False)
    content["valid"]["audio"][2, 0, 0] = np.nan
    content["valid"]["audio_lengths"][2] = 500
    content["test"]["vision_lengths"][1] = 376
    content["test"]["regression_labels"][3] = np.nan
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    found = {(problem.key, problem.row) for problem in check(tmp_path / "a.pkl")}
    assert found == {("valid/audio", 2), ("test/vision_lengths", 1), ("test/regression_labels", 3)}


def multibench(labels) -> dict:
    rng = np.random.default_rng(1)
    content = {}
    for split, n in SIZES.items():
        content[split] = {
            "vision": rng.standard_normal((n, 50, 35)),
            "audio": rng.standard_normal((n, 50, 74)),
            "text": rng.standard_normal((n, 50, 300)).astype(np.float32),
            "labels": labels(rng, n),
            "id": np.array([[f"{split}{k}", "0.0", "1.5"] for k in range(n)], dtype=object),
        }
        content[split]["audio"][1, 1] = -np.inf
    return content


@pytest.mark.parametrize("format", ["auto", "multibench"])
def test_multibench(tmp_path, format):
    content = multibench(lambda rng, n: rng.uniform(-3, 3, (n, 1, 1)).astype(np.float32))
    (tmp_path / "mosei_senti_data.pkl").write_bytes(pickle.dumps(content))
    features = load(tmp_path / "mosei_senti_data.pkl", format=format)
    assert features.task == "regression"
    assert np.array_equal(features.labels, joined(content, "labels")[:, 0, 0])
    for name, array in features.modalities.items():
        expected = joined(content, name).astype(np.float32)
        assert np.array_equal(array, np.where(np.isneginf(expected), 0, expected))
    assert features.ids[0] == "train0/0.0/1.5"


def test_multibench_pairs_are_multilabel(tmp_path):
    def labels(rng, n):
        return np.eye(2, dtype=np.int64)[rng.integers(0, 2, (n, 4))]

    content = multibench(labels)
    (tmp_path / "iemocap.pkl").write_bytes(pickle.dumps(content))
    features = load(tmp_path / "iemocap.pkl")
    assert features.task == "multilabel" and np.array_equal(features.labels, joined(content, "labels").argmax(axis=-1))


def test_a_missing_key_of_a_split_is_named_with_those_present(tmp_path):
    content = multibench(lambda rng, n: np.zeros((n, 1, 1)))
    content["valid"]["lables"] = content["valid"].pop("labels")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(
        DataError, match=r"a\.pkl: valid/labels: no such key \(did you mean lables\?\); it holds vision, audio"
    ):
        load(tmp_path / "a.pkl")


def test_lsmi_val_is_the_test_split_and_validation_comes_from_train(tmp_path):
    content = {}
    for part, n in (("train", 40), ("val", 10)):
        content[f"{part}_modal_1_features"] = torch.randn(n, 6)
        content[f"{part}_modal_2_features"] = torch.randn(n, 4)
        content[f"{part}_targets"] = torch.arange(n) % 2
    torch.save(content, tmp_path / "a.pt")
    features = load(tmp_path / "a.pt")
    assert list(features.modalities) == ["modal_1", "modal_2"]
    assert np.array_equal(
        features.modalities["modal_1"][features.rows("test")], content["val_modal_1_features"].numpy()
    )
    assert len(features.rows("valid")) == 6 and features.rows("valid").max() < 40
    assert np.array_equal(features.labels[40:], content["val_targets"].numpy())


def test_avmnist_is_read_from_its_files(tmp_path):
    rng = np.random.default_rng(2)
    content = {}
    for part, n in (("train", 30), ("test", 8)):
        for name, shape in (("image", (784,)), ("audio", (112, 112))):
            (tmp_path / name).mkdir(exist_ok=True)
            content[name, part] = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
            np.save(tmp_path / name / f"{part}_data.npy", content[name, part])
        np.save(tmp_path / f"{part}_labels.npy", np.arange(n) % 10)
    features = load(tmp_path, modalities=["audio", "image"])
    assert {name: array.shape for name, array in features.modalities.items()} == {
        "audio": (38, 12544),
        "image": (38, 784),
    }
    for name, array in features.modalities.items():
        expected = np.concatenate(
            [content[name, part].reshape(len(content[name, part]), -1) for part in ("train", "test")]
        )
        rows = rng.permutation(38)[:20]
        assert np.array_equal(array[rows], expected[rows]) and np.array_equal(array[28:33], expected[28:33])
        assert not isinstance(array, np.ndarray)
    assert (features.split[30:] == "test").all() and not (features.split[:30] == "test").any()
    assert features.spec.num_outputs == 10


@pytest.mark.parametrize("extra", [(), ("confidence",)])
def test_every_array_of_a_pickle_is_read_or_named(tmp_path, extra):
    content = multibench(lambda rng, n: rng.integers(0, 2, (n, 1)))
    for part in content.values():
        part["acoustic"], part["visual"] = part.pop("audio"), part.pop("vision")
        part["speaker"] = np.arange(len(part["id"])) // 2
        part.update({name: np.arange(len(part["id"]) + 1) for name in extra})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    unread = [problem.key for problem in check(tmp_path / "a.pkl") if problem.severity == "error"]
    assert unread == list(extra)
    features = load(tmp_path / "a.pkl", ignore=extra, resplit="all", resplit_by="speaker")
    assert list(features.modalities) == ["text", "acoustic", "visual"]
    assert np.isfinite(features.modalities["acoustic"]).all()


def test_a_split_of_another_name_is_named_and_can_be_ignored(tmp_path):
    content = multibench(lambda rng, n: rng.integers(0, 2, (n, 1)))
    content["holdout"] = content["test"]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"'holdout' among the splits.*data\.ignore=\[holdout\]"):
        load(tmp_path / "a.pkl")
    assert len(load(tmp_path / "a.pkl", ignore=["holdout"])) == sum(SIZES.values())


@pytest.mark.parametrize("format", ["mmsa", "multibench"])
def test_a_model_is_applied_to_any_part_of_a_pickle_with_or_without_labels(tmp_path, format):
    content = mmsa(True) if format == "mmsa" else multibench(lambda rng, n: rng.uniform(-3, 3, (n, 1, 1)))
    for labelled in (True, False):
        part = {key: x for key, x in content["test"].items() if labelled or not key.endswith("labels")}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"test": part}))
        features = load(tmp_path / "a.pkl", task="regression", apply=True)
        assert features.split.tolist() == ["test"] * SIZES["test"] and (features.labels is not None) == labelled
    with pytest.raises(DataError, match="'train' and 'test' are needed"):
        load(tmp_path / "a.pkl")


@pytest.mark.parametrize("form", ["parts.pt", "flat.pkl"])
def test_our_own_layout_in_parts_and_in_pickles(tmp_path, form):
    rng = np.random.default_rng(0)
    arrays = {"text": rng.normal(size=(12, 3)), "audio": rng.normal(size=(12, 4, 2)), "label": np.arange(12) % 3}
    splits = np.repeat(["train", "valid", "test"], 4)
    if form == "flat.pkl":
        (tmp_path / form).write_bytes(pickle.dumps({**arrays, "split": splits}))
    else:
        parts = {
            name: {key: torch.from_numpy(x[splits == split]) for key, x in arrays.items()}
            for name, split in (("test", "test"), ("train", "train"), ("val", "valid"))
        }
        torch.save(parts, tmp_path / form)
    features = load(tmp_path / form)
    assert all(np.array_equal(features.modalities[key], arrays[key]) for key in ("text", "audio"))
    assert np.array_equal(features.labels, arrays["label"]) and np.array_equal(features.split, splits)
    if form == "parts.pt":
        parts["val"]["text"][1, 2] = torch.nan
        torch.save(parts, tmp_path / form)
        assert [(p.key, p.row) for p in check(tmp_path / form)] == [("valid/text", 1)]
