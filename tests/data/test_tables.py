"""Tables: columns become vectors by their names, whatever their order; nothing in one is left out in silence."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgm_fast.data import check, load
from pgm_fast.errors import DataError

pa = pytest.importorskip("pyarrow", reason="pip install 'pgm-fast[tables]'")
from pyarrow import parquet  # noqa: E402

ROWS = 12
SPLIT = np.resize(["train", "valid", "test"], ROWS)


def write(path, columns):
    """Columns ``{name: list}`` as a table of the kind that the path names."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(columns)
        writer.writerows(
            ["" if isinstance(cell, float) and np.isnan(cell) else cell for cell in row]
            for row in zip(*columns.values(), strict=True)
        )
    return path


def plain(rows=ROWS):
    return {"a_0": [0.5, 1.5] * (rows // 2), "a_1": [1.0] * rows, "label": [0, 1] * (rows // 2)}


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    suffix=st.sampled_from([".csv", ".tsv", ".parquet"]),
    separator=st.sampled_from(["_", ".", ":", ""]),
    first=st.integers(0, 1),
    width=st.integers(1, 13),
    named=st.booleans(),
)
def test_numbered_columns_are_vectors_in_the_order_of_their_numbers(
    tmp_path_factory, seed, suffix, separator, first, width, named
):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((ROWS, width)) for name in ("audio", "view2_text")}
    arrays["audio"][rng.integers(ROWS)] = np.nan
    columns = {f"{name}{separator}{k + first}": x[:, k].tolist() for name, x in arrays.items() for k in range(width)}
    label = np.resize([0, 1], ROWS)
    columns["label"] = [("no", "yes")[value] for value in label] if named else label.tolist()
    columns["split"] = SPLIT.tolist()
    columns["id"] = [f"{k:03d}" for k in range(ROWS)]
    columns["speech"] = ['of "two"\nlines, one', "ä"] * (ROWS // 2)
    shuffled = {key: columns[key] for key in rng.permutation(list(columns)).tolist()}
    features = load(write(tmp_path_factory.getbasetemp() / f"set{suffix}", shuffled))
    assert set(features.modalities) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(features.modalities[name], array, equal_nan=True)
        held = features.presence[:, list(features.modalities).index(name)]
        assert np.array_equal(held, ~np.isnan(array).all(axis=1))
    assert np.array_equal(features.labels, label) and features.class_names == (["no", "yes"] if named else None)
    assert np.array_equal(features.split, SPLIT) and features.ids.tolist() == columns["id"]


def test_lists_in_parquet_are_vectors_and_sequences(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, ROWS)
    steps = [rng.standard_normal((n, 3)).tolist() for n in lengths]
    steps[4], lengths[4] = None, 1
    text = rng.standard_normal((ROWS, 4)).astype(np.float32)
    some = pa.array([*text[:-2].tolist(), None, []], pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * ROWS)), 2)
    labels = pa.array([[0, 1]] * (ROWS // 2) + [[1, 1]] * (ROWS // 2))
    table = {
        "audio": steps,
        "text": some,
        "fixed": fixed,
        "label": labels,
        "split": pa.array(SPLIT).dictionary_encode(),
    }
    features = load(write(tmp_path / "a.parquet", table))
    assert features.modalities["text"].dtype == np.float32 and features.task == "multilabel"
    assert np.array_equal(features.modalities["text"][:-2], text[:-2])
    assert np.array_equal(features.modalities["fixed"], np.arange(2.0 * ROWS).reshape(ROWS, 2))
    assert np.array_equal(features.lengths["audio"], lengths)
    for row, values in enumerate(steps):
        if values is not None:
            assert np.array_equal(features.modalities["audio"][row, : len(values)], values)
            assert (features.modalities["audio"][row, len(values) :] == 0).all()
    absent = [(row, list(features.modalities)[k]) for row, k in np.argwhere(~features.presence).tolist()]
    assert absent == [(4, "audio"), (ROWS - 2, "text"), (ROWS - 1, "text")]


def test_a_column_of_numbers_that_nothing_uses_is_an_error_whose_cures_work(tmp_path):
    path = write(tmp_path / "a.csv", {**plain(), "age": [*range(ROWS)], "video": [0, 1, 2, 3] * 3, "who": ["x"] * ROWS})
    with pytest.raises(DataError, match=r"2 columns \(age, video\).*data\.modalities.*data\.ignore=\[age,video\]"):
        load(path)
    assert list(load(path, ignore=["age", "video"]).modalities) == ["a"]
    assert load(path, modalities=["a", "age"]).modalities["age"].shape == (ROWS, 1)
    grouped = load(path, group_by="video", order_by="age")
    assert grouped.step_lengths.tolist() == [3] * 4
    assert [p.severity for p in check(path, apply=True, modalities=["a"]) if p.key == "age"] == ["warning"]
    ages = load(path, label="age", ignore=["label", "video"])
    assert np.array_equal(ages.labels, range(ROWS)) and list(ages.modalities) == ["a"]


def test_an_index_that_pandas_wrote_is_the_id(tmp_path):
    (tmp_path / "a.csv").write_text(",a_0,a_1,label\n" + "".join(f"r{k},0.5,{k},{k % 2}\n" for k in range(ROWS)))
    assert load(tmp_path / "a.csv").ids.tolist() == [f"r{k}" for k in range(ROWS)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a_0;a_1;label\n1;2;0\n", "is one column.*commas in .csv"),
        ("0.1,2,3\n1,2,0\n", "holds numbers.*write one before it"),
        ("a_0,a_0,label\n1,2,0\n", "two columns are called 'a_0'"),
        ("a_0,a_1,label\n1,2,0\n3,much,1\n", "a_1, row 1: 'much' is no number"),
        ("a_0,a_2,label\n" + "1,2,0\n3,4,1\n" * 3, "a_0, a_2 are no run of numbers"),
        ("a_0,a.0,label\n" + "1,2,0\n3,4,1\n" * 3, "another column or vector is called so"),
        ("a_0,a_1,label\n" + "1,2,x\n3,4,\n" * 3, "label, row 1: an empty cell"),
        ("a_0,a_1,label\n1,2\n", "Expected 3 columns, got 2"),
        ("a_0,a_1,label\n", "no rows"),
        ("", "an empty file"),
        ("x,y,label\n" + "1,2,0\n3,4,1\n" * 3, "no modality among the columns x, y, label: .*audio_0, audio_1"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_line(tmp_path, text, reason):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=rf"a\.csv: .*{reason}") as caught:
        load(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_columns_of_other_kinds_are_refused_until_they_are_ignored(tmp_path):
    columns = {**plain(), "ragged": [[1.0], [1.0, 2.0]] * (ROWS // 2), "thing": [{"x": 1}] * ROWS}
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=r"ragged: lists of 1 to 2 numbers.*data\.ignore=\[ragged\]"):
        load(path)
    with pytest.raises(DataError, match=r"thing: type struct.*data\.ignore=\[ragged,thing\]"):
        load(path, ignore=["ragged"])
    assert list(load(path, ignore=["ragged", "thing"]).modalities) == ["a"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_does_not_fit_into_memory_is_not_read(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", plain(1000))
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 1000)
    monkeypatch.setattr("pgm_fast.data.archives.SMALL", 0)
    with pytest.raises(DataError, match="store them in a folder of .npy files"):
        load(path)


def test_one_long_text_does_not_become_one_in_every_row(tmp_path, monkeypatch):
    """A fixed width is that of the longest: a megabyte of text in each of a thousand rows is 4 GB of UCS-4."""
    note = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["x" * 1_000_000])
    path = write(tmp_path / "a.parquet", {**plain(1000), "note": note})
    assert path.stat().st_size < 4_000_000
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 3 << 30)
    with pytest.raises(DataError, match="note: its arrays take 4.0 GB"):
        load(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_without_pyarrow_its_extra_is_named(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", plain())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'need pyarrow.*pip install "pgm-fast\[tables\]"'):
        load(path)


def test_text_of_another_encoding_is_said_to_be_one(tmp_path):
    (tmp_path / "t.csv").write_text("label,a.0\n1,2\n0,3\n", encoding="utf-16")
    with pytest.raises(DataError, match="not UTF-8 .*; save it as UTF-8"):
        load(tmp_path / "t.csv")
