"""Saved datasets: what save_to_disk wrote is read as it was, and a folder of a stranger reads nothing but itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pgm_fast.data import load
from pgm_fast.errors import DataError

pa = pytest.importorskip("pyarrow", reason="pip install 'pgm-fast[tables]'")

CLASSES = ["sad", "glad"]


def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "audio": [rng.standard_normal((n, 3)).tolist() for n in rng.integers(1, 5, rows)],
        "text": rng.standard_normal((rows, 4)).astype(np.float32).tolist(),
        "label": [k % 2 for k in range(rows)],
        "words": [f"word {k}" for k in range(rows)],
    }


def save(folder, held, compression=None):
    """As ``Dataset.save_to_disk`` lays it out, in two data files."""
    folder.mkdir(parents=True)
    table = pa.table(held)
    names = [f"data-{k:05d}-of-00002.arrow" for k in range(2)]
    for name, piece in zip(names, (table[: len(table) // 2], table[len(table) // 2 :]), strict=True):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as out:
            out.write_table(piece)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def save_splits(folder, splits):
    for name, held in splits.items():
        save(folder / name, held)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def assert_held(features, held, rows):
    assert list(features.modalities) == ["audio", "text"] and features.class_names == CLASSES
    assert np.array_equal(features.modalities["text"][rows], np.float32(held["text"]))
    assert np.array_equal(features.labels[rows], held["label"])
    for row, values in zip(rows, held["audio"], strict=True):
        assert np.array_equal(features.modalities["audio"][row, : features.lengths["audio"][row]], values)


def test_a_saved_dataset_is_read(tmp_path):
    save(tmp_path / "set", columns(20))
    assert_held(load(tmp_path / "set"), columns(20), np.arange(20))


def test_the_splits_of_a_saved_dict_are_the_splits(tmp_path):
    parts = {"test": columns(6, 1), "train": columns(12), "validation": columns(4, 2), "unsupervised": columns(3)}
    save_splits(tmp_path / "set", parts)
    with pytest.raises(DataError, match=r"'unsupervised' among the splits.*data\.ignore=\[unsupervised\]"):
        load(tmp_path / "set")
    features = load(tmp_path / "set", ignore=["unsupervised"])
    for name, part in {"train": "train", "valid": "validation", "test": "test"}.items():
        assert_held(features, parts[part], features.rows(name))
    save_splits(tmp_path / "one", {"train": columns(20)})
    assert_held(load(tmp_path / "one"), columns(20), np.arange(20))
    del parts["unsupervised"]
    parts["test"] = {**parts["test"], "label": [0.5] * 6}
    save_splits(tmp_path / "other", parts)
    with pytest.raises(DataError, match="test/label: type double, and int64 elsewhere"):
        load(tmp_path / "other")


def test_what_the_library_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    kinds = datasets.Features(
        {
            "audio": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
            "text": datasets.Sequence(datasets.Value("float32")),
            "label": datasets.ClassLabel(names=CLASSES),
            "words": datasets.Value("string"),
        }
    )
    whole = datasets.Dataset.from_dict(columns(20), features=kinds)
    whole.save_to_disk(tmp_path / "set", num_shards=3)
    assert_held(load(tmp_path / "set"), columns(20), np.arange(20))
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "dict")
    features = load(tmp_path / "dict", resplit="none", nonfinite="error")
    assert_held(features, columns(20), features.rows("test"))


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "link.arrow", None, {"a": 1}])
def test_a_data_file_outside_of_the_folder_is_refused(tmp_path, name):
    save(tmp_path / "set", columns(20))
    (tmp_path / "secret.arrow").write_bytes((tmp_path / "set" / "data-00000-of-00002.arrow").read_bytes())
    (tmp_path / "set" / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="which is not in this folder"):
        load(tmp_path / "set")


def test_a_split_outside_of_the_folder_is_refused(tmp_path):
    save(tmp_path / "secret", columns(20))
    save_splits(tmp_path / "set", {"train": columns(20)})
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "../secret"]}))
    with pytest.raises(DataError, match="not a list of names of folders"):
        load(tmp_path / "set")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_data_is_refused_before_it_is_unpacked(tmp_path, compression):
    save(tmp_path / "set", columns(20), compression)
    with pytest.raises(DataError, match="compressed, which save_to_disk does not write"):
        load(tmp_path / "set")


def test_rows_that_take_no_bytes_are_counted_before_they_are_made(tmp_path, monkeypatch):
    nothing = pa.nulls(1 << 20)
    save(tmp_path / "set", {"x_0": nothing, "label": nothing})
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr("pgm_fast.data.archives.SMALL", 0)
    with pytest.raises(DataError, match="its arrays take 0.0 GB"):
        load(tmp_path / "set")
