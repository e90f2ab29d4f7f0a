"""Rows of a file are those of its array; a file that gets shorter ends in one line and never in a signal."""

from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgm_fast.data import Loader, load
from pgm_fast.data.arrays import read_rows
from pgm_fast.data.files import FileRows, out_of_map
from pgm_fast.errors import DataError


def in_file(folder, array) -> FileRows:
    np.save(folder / "x.npy", array)
    return out_of_map(np.load(folder / "x.npy", mmap_mode="r"))


@given(
    shape=st.sampled_from([(30, 5), (30, 4, 3), (30, 1, 1), (30, 3, 0), (7, 400_000)]),
    kind=st.sampled_from(["<f4", ">f8", "<f2", "|u1"]),
    rows=st.lists(st.integers(0, 6), max_size=9),
    steps=st.sampled_from([None, 1, 2, 99]),
    order=st.sampled_from("CF"),
    positioned=st.booleans(),
)
def test_rows_are_those_of_the_array(tmp_path_factory, shape, kind, rows, steps, order, positioned):
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    found = in_file(tmp_path_factory.mktemp("file"), np.asarray(array, order=order))
    if isinstance(found, FileRows):
        if not positioned:
            found._read_at = found._seek_and_read
        rows = np.array(rows, dtype=np.int64)
        wanted = array[rows] if steps is None or array.ndim == 2 else array[rows][:, :steps]
        read = found.read(rows, steps)
        assert read.dtype == wanted.dtype and np.array_equal(read, wanted)
        found = pickle.loads(pickle.dumps(found))
    assert found.shape == array.shape and found.dtype == array.dtype and np.array_equal(np.asarray(found), array)


def folder_of(path) -> str:
    path.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        np.save(path / f"{name}.npy", rng.normal(size=(400, 64)).astype(np.float32))
    np.save(path / "label.npy", np.arange(400) % 3)
    np.save(path / "split.npy", np.repeat([0, 1, 2], [300, 50, 50]))
    return str(path)


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_a_file_that_gets_shorter_is_named_with_both_sizes(tmp_path, size):
    features = load(folder_of(tmp_path / "f"))
    loader = Loader(features, "train", batch_size=8, shuffle=True, resident="never")
    batches = loader.batches(0)
    next(batches)
    whole = os.path.getsize(tmp_path / "f" / "a.npy")
    os.truncate(tmp_path / "f" / "a.npy", size)
    with pytest.raises(DataError, match=rf"a\.npy got shorter.* has {size} bytes, {whole} are needed") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_a_map_that_a_caller_made_is_looked_at_before_it_is_touched(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(200_000.0).reshape(-1, 2))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")[10:]
    os.truncate(tmp_path / "x.npy", 50_000)
    with pytest.raises(DataError, match=r"x\.npy got shorter"):
        read_rows(array, np.array([5, 90_000]))


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path):
    found = in_file(tmp_path, np.arange(60.0).reshape(20, 3))
    np.save(tmp_path / "new.npy", np.zeros((20, 3)))
    os.replace(tmp_path / "new.npy", tmp_path / "x.npy")
    assert np.array_equal(np.asarray(found), np.arange(60.0).reshape(20, 3))


def test_threads_read_beside_each_other(tmp_path):
    array = np.arange(4000.0).reshape(1000, 4)
    found, wrong = in_file(tmp_path, array), []
    found._read_at = found._seek_and_read

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            rows = rng.integers(0, 1000, 7)
            if not np.array_equal(found.read(rows), array[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
