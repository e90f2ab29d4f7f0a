"""Feature files of our own layout: what is written is what is loaded, whatever the format."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pgm_fast.data import load
from pgm_fast.data.files import FileRows
from pgm_fast.data.readers import FORMATS as ALL_FORMATS
from pgm_fast.errors import DataError

FORMATS = ("npz", "pt", "safetensors", "folder")


def write(folder, format, arrays):
    """The arrays in one of the formats, and the path to load. Strings become split codes where the format has none."""
    if format == "npz":
        np.savez(folder / "set.npz", **arrays)
        return folder / "set.npz"
    if format == "folder":
        (folder / "set").mkdir(exist_ok=True)
        for old in (folder / "set").iterdir():
            old.unlink()
        for key, array in arrays.items():
            np.save(folder / "set" / f"{key}.npy", array)
        return folder / "set"
    tensors = {}
    for key, array in arrays.items():
        if array.dtype.kind == "U":
            codes = np.array([("train", "valid", "test").index(name) for name in array]) if key == "split" else None
            if format == "safetensors" and codes is None:
                continue
            tensors[key] = array.tolist() if codes is None else torch.from_numpy(codes)
        else:
            tensors[key] = torch.from_numpy(array)
    path = folder / f"set.{format}"
    torch.save(tensors, path) if format == "pt" else save_file(tensors, path)
    return path


def arrays_of(seed: int, rows: int, task: str, presence: bool, precision: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    longest = 4
    arrays = {
        "audio": rng.standard_normal((rows, longest, 2)).astype(precision),
        "audio_lengths": rng.integers(1, longest + 1, rows),
        "text": rng.standard_normal((rows, 3)).astype(precision),
        "split": np.array(["train", "valid", "test"])[np.arange(rows) % 3],
        "ids": np.arange(rows) + 100,
        "speaker": np.arange(rows) % 2,
    }
    if task == "classification":
        arrays["label"] = np.arange(rows) % 3
    elif task == "multilabel":
        arrays["label"] = rng.integers(0, 2, (rows, 4))
    else:
        arrays["label"] = rng.standard_normal((rows, 2)).astype(np.float32)
    if presence:
        arrays["presence"] = rng.random((rows, 2)) < 0.5
        arrays["presence"][np.arange(rows), np.arange(rows) % 2] = True
        arrays["presence"][0] = [True, False]
    return arrays


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(6, 20),
    format=st.sampled_from(FORMATS),
    task=st.sampled_from(["classification", "multilabel", "regression"]),
    presence=st.booleans(),
    precision=st.sampled_from(["float16", "float32", "float64"]),
)
def test_what_is_written_is_loaded(tmp_path_factory, seed, rows, format, task, presence, precision):
    arrays = arrays_of(seed, rows, task, presence, precision)
    features = load(write(tmp_path_factory.getbasetemp(), format, arrays))
    assert list(features.modalities) == ["audio", "text"]
    for name in features.modalities:
        assert features.modalities[name].dtype == precision
        assert np.array_equal(features.modalities[name], arrays[name])
    assert (
        features.task == task
        and features.spec.num_outputs == {"classification": 3, "multilabel": 4, "regression": 2}[task]
    )
    assert np.array_equal(features.labels, arrays["label"])
    assert np.array_equal(features.split, arrays["split"])
    assert np.array_equal(features.lengths["audio"], arrays["audio_lengths"])
    assert features.ids.tolist() == [str(value) for value in arrays["ids"]]
    assert np.array_equal(features.presence, arrays["presence"]) if presence else features.presence is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_subset_of_modalities_takes_its_presence_along(tmp_path, format):
    arrays = arrays_of(0, 9, "classification", True, "float32")
    arrays["audio_lengths"] = np.maximum(arrays["audio_lengths"], 1)
    keep = arrays["presence"][:, 1]
    arrays = {key: value[keep] for key, value in arrays.items()}
    arrays["label"] = np.arange(len(arrays["label"])) % 2
    arrays["split"] = np.resize(["train", "valid", "test"], keep.sum())
    features = load(write(tmp_path, format, arrays), modalities=["text", "audio"])
    assert list(features.modalities) == ["text", "audio"]
    assert np.array_equal(features.presence, arrays["presence"][:, ::-1])


def test_a_folder_stays_in_its_files(tmp_path):
    features = load(write(tmp_path, "folder", arrays_of(0, 9, "classification", False, "float32")))
    assert all(isinstance(array, FileRows) for array in features.modalities.values())
    zeroed = load(tmp_path / "set", nonfinite="zero", group_by=None)
    assert not any(type(array) is np.ndarray for array in zeroed.modalities.values())


def test_a_single_array_is_for_a_trained_model(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 3))
    np.save(tmp_path / "text.npy", values)
    model = {"apply": True, "task": "retrieval", "modalities": ["audio", "text"]}
    features = load(tmp_path / "text.npy", **model)
    assert list(features.modalities) == ["text"] and isinstance(features.modalities["text"], FileRows)
    assert np.array_equal(features.modalities["text"], values)
    with pytest.raises(DataError, match="a single array.*put it into a folder as text.npy, beside label.npy"):
        load(tmp_path / "text.npy")
    (tmp_path / "set").mkdir()
    (tmp_path / "text.npy").rename(tmp_path / "set" / "text.npy")
    np.save(tmp_path / "set" / "label.npy", np.arange(5) % 2)
    assert list(load(tmp_path / "set").modalities) == ["text"]
    np.save(tmp_path / "video.npy", values)
    with pytest.raises(DataError, match=r"none of the modalities audio, text; the file holds video float64\[5, 3\]"):
        load(tmp_path / "video.npy", **model)


def test_bfloat16_is_read_as_float32(tmp_path):
    values = torch.randn(6, 3).to(torch.bfloat16)
    tensors = {"text": values, "label": torch.arange(6) % 2, "split": torch.arange(6) % 3}
    save_file(tensors, tmp_path / "set.safetensors")
    torch.save(tensors, tmp_path / "set.pt")
    for name in ("set.safetensors", "set.pt"):
        assert np.array_equal(load(tmp_path / name).modalities["text"], values.float().numpy())


def test_named_classes_become_numbers(tmp_path):
    labels = np.array(["sad", "happy", "sad", "angry", "happy", "angry"])
    np.savez(tmp_path / "a.npz", x=np.ones((6, 2)), label=labels, split=np.resize(["train", "dev", "test"], 6))
    features = load(tmp_path / "a.npz")
    assert features.class_names == ["angry", "happy", "sad"]
    assert [features.class_names[k] for k in features.labels] == labels.tolist()
    np.savez(
        tmp_path / "b.npz",
        x=np.ones((6, 2)),
        label=labels,
        split=np.resize([0, 1, 2], 6),
        class_names=["sad", "angry", "happy", "calm"],
    )
    features = load(tmp_path / "b.npz")
    assert features.spec.num_outputs == 4
    assert [features.class_names[k] for k in features.labels] == labels.tolist()


def test_labels_per_step_come_with_their_lengths(tmp_path):
    label = np.array([[0, 1, -1], [1, -1, -1], [0, 1, 0]])
    steps = np.array([2, 1, 3])
    np.savez(tmp_path / "a.npz", x=np.ones((3, 3, 2)), label=label, step_lengths=steps, split=[0, 1, 2])
    features = load(tmp_path / "a.npz")
    assert features.per_step and features.spec.num_outputs == 2
    valid = np.arange(3) < steps[:, None]
    assert np.array_equal(features.labels[valid], label[valid]) and (features.labels[~valid] == 0).all()


def test_without_split_a_stratified_one_is_made_and_said(tmp_path, caplog):
    label = np.repeat([0, 1], [300, 100])
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).standard_normal((400, 2)), label=label)
    with caplog.at_level(logging.WARNING):
        features = load(tmp_path / "a.npz")
    assert "no 'split'" in caplog.text and "a.npz" in caplog.text
    for k, count in ((0, 300), (1, 100)):
        names, counts = np.unique(features.split[label == k], return_counts=True)
        assert dict(zip(names, counts, strict=True)) == {
            "train": 0.7 * count,
            "valid": 0.1 * count,
            "test": 0.2 * count,
        }
    assert np.array_equal(load(tmp_path / "a.npz").split, features.split)


def test_without_valid_rows_some_of_train_become_validation_and_test_stays(tmp_path, caplog):
    split = np.repeat(["train", "test"], [200, 50])
    np.savez(
        tmp_path / "a.npz", x=np.random.default_rng(0).standard_normal((250, 2)), label=np.arange(250) % 2, split=split
    )
    with caplog.at_level(logging.WARNING):
        features = load(tmp_path / "a.npz")
    assert "no valid rows" in caplog.text
    assert np.array_equal(features.split == "test", split == "test")
    assert (features.split == "valid").sum() == 30
    assert features.labels[features.split == "valid"].mean() == 0.5


def test_rows_of_a_group_become_one_sequence(tmp_path):
    rng = np.random.default_rng(0)
    rows = 30
    video = rng.integers(0, 7, rows)
    order = rng.permutation(rows)
    split = np.array(["train", "valid", "test"])[video % 3]
    arrays = {
        "text": rng.standard_normal((rows, 3)),
        "label": rng.integers(0, 2, rows),
        "video": video,
        "order": order,
        "split": split,
    }
    for format in FORMATS:
        features = load(write(tmp_path, format, arrays), group_by="video", order_by="order")
        assert features.per_step and len(features) == len(np.unique(video))
        assert features.ids.tolist() == [str(name) for name in dict.fromkeys(video.tolist())]
        for k, name in enumerate(features.ids):
            members = np.flatnonzero(video == int(name))
            members = members[np.argsort(order[members])]
            assert features.step_lengths[k] == features.lengths["text"][k] == len(members)
            assert np.array_equal(features.modalities["text"][k, : len(members)], arrays["text"][members])
            assert (features.modalities["text"][k, len(members) :] == 0).all()
            assert np.array_equal(features.labels[k, : len(members)], arrays["label"][members])
            assert features.split[k] == split[members[0]]


def test_real_files_load(real_data):
    mfeat = load(real_data / "mfeat.npz", modalities=["fou", "mor"])
    assert mfeat.spec.num_outputs == 10 and {s: len(mfeat.rows(s)) for s in ("train", "valid", "test")} == {
        "train": 1200,
        "valid": 300,
        "test": 500,
    }
    mosi = load(real_data / "mosi.npz", group_by="video", order_by="utterance")
    assert (
        len(mosi) == 93
        and mosi.step_lengths.sum() == 2199
        and mosi.step_lengths.min() == 9
        and mosi.step_lengths.max() == 63
    )
    pairs = load(real_data / "mfeat.npz", modalities=["pix", "zer"], task="retrieval")
    assert pairs.labels is None and pairs.spec.num_outputs == 0


@pytest.mark.parametrize(
    ("label", "relevance"),
    [
        (np.array([7, 3, 7, 5] * 3), [2, 0, 2, 1] * 3),
        (np.array(["cat", "ant", "cat"] * 4), [1, 0, 1] * 4),
        (np.eye(3, dtype=int)[np.arange(12) % 3], np.eye(3, dtype=bool)[np.arange(12) % 3]),
        (np.linspace(0, 1, 12), None),
        (np.full((12, 3), 2), None),
    ],
    ids=["numbers", "names", "several", "targets", "counts"],
)
def test_labels_of_a_retrieval_set_say_what_is_relevant_where_they_are_classes(tmp_path, label, relevance):
    rng = np.random.default_rng(0)
    split = np.repeat(["train", "valid", "test"], 4)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(12, 2)), y=rng.normal(size=(12, 3)), label=label, split=split)
    found = load(tmp_path / "a.npz", task="retrieval", modalities=["x", "y"])
    assert found.labels is None
    assert (found.relevance is None) if relevance is None else np.array_equal(found.relevance, relevance)


def test_digits_are_halves_of_real_images():
    from sklearn.datasets import load_digits

    features = load("digits")
    images = load_digits().images / 16
    together = np.concatenate([features.modalities[side].reshape(-1, 8, 4) for side in ("left", "right")], axis=2)
    assert np.array_equal(together, images.astype(np.float32))
    assert [len(features.rows(s)) for s in ("train", "valid", "test")] == [1078, 360, 359]
    # The digits have 174 to 183 images of a class, 5 % of the mean; one row of 36 either way is 6 % more.
    for split in ("train", "valid", "test"):
        counts = np.bincount(features.labels[features.rows(split)], minlength=10)
        assert counts.max() - counts.min() <= 0.06 * counts.sum() / 5


@pytest.mark.parametrize("suffix", [suffix for format in ALL_FORMATS.values() for suffix in format.suffixes])
def test_an_empty_file_is_said_to_be_empty(tmp_path, suffix):
    (tmp_path / f"set{suffix}").touch()
    with pytest.raises(DataError, match=rf"set{re.escape(suffix)}: not readable: an empty file, of 0 bytes"):
        load(str(tmp_path / f"set{suffix}"))


def test_an_object_array_is_refused_unread(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), label=np.array([None] * 4, dtype=object))
    with pytest.raises(DataError, match="label.*refused.*objects"):
        load(tmp_path / "a.npz")
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "x.npy", np.array([None] * 4, dtype=object))
    with pytest.raises(DataError, match="x.npy.*refused.*objects"):
        load(tmp_path / "set")


@pytest.mark.parametrize("nested", [False, True])
def test_a_pt_file_may_hold_numpy_arrays_and_splits(tmp_path, nested):
    arrays = arrays_of(0, 12, "classification", True, "float32")
    parts = {name: {k: x[arrays["split"] == name] for k, x in arrays.items()} for name in ("train", "valid", "test")}
    arrays["speaker"] = torch.from_numpy(arrays["speaker"])
    for part in parts.values():
        del part["split"]
        part["ids"] = part["ids"].astype(str).astype(object)  # as pandas has it
    torch.save(parts if nested else arrays, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", **arrays)
    found, expected = load(tmp_path / "a.pt"), load(tmp_path / "a.npz")
    order = np.concatenate([expected.rows(name) for name in parts]) if nested else np.arange(12)
    assert all(np.array_equal(found.modalities[name], expected.modalities[name][order]) for name in ("audio", "text"))
    assert np.array_equal(found.labels, expected.labels[order]) and found.ids.tolist() == expected.ids[order].tolist()
    assert np.array_equal(found.split, expected.split[order])
    assert np.array_equal(found.presence, expected.presence[order])


class Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (exec, (f"open({str(self.witness)!r}, 'w')",))


def test_a_pt_file_with_code_is_refused_by_name_and_not_run(tmp_path):
    torch.save({"x": torch.ones(4, 2), "y": Evil(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt.*refused.*exec"):
        load(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_pt_file_of_another_pickle_protocol_is_refused_without_the_advice_to_run_it(tmp_path):
    torch.save({"x": np.ones((4, 2))}, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(DataError, match="pickle_protocol=2") as caught:
        load(tmp_path / "a.pt")
    assert "False" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_named(tmp_path, format):
    path = write(tmp_path, format, arrays_of(0, 9, "classification", False, "float32"))
    victim = path / "text.npy" if format == "folder" else path
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{victim.name}.*not.*readable"):
        load(path)
