"""Arrays that are read by rows behave like the array they stand for, and large ones stay out of memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgm_fast.data.arrays import CleanRows, GroupedRows, StackedRows, iterate_valid, read_rows, release


@given(st.data())
def test_lazy_rows_equal_the_array_they_stand_for(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    shape = data.draw(st.sampled_from([(3,), (4, 2)]))
    parts = [rng.standard_normal((n, *shape)) for n in sizes]
    for part in parts:
        part[rng.random(part.shape) < 0.2] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    joined = np.concatenate(parts)
    clean = np.where(np.isfinite(joined), joined, 0)
    members = np.full((data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))), -1)
    filled = rng.random(members.shape) < 0.7
    members[filled] = rng.integers(0, len(joined), filled.sum())
    grouped = clean[members] * (members >= 0).reshape(*members.shape, *[1] * len(shape))
    lazy = CleanRows(StackedRows(parts, shape))
    for array, expected in ((StackedRows(parts, shape), joined), (lazy, clean), (GroupedRows(lazy, members), grouped)):
        assert array.shape == expected.shape and array.ndim == expected.ndim and len(array) == len(expected)
        rows = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=6)), dtype=np.int64)
        assert np.array_equal(read_rows(array, rows), expected[rows], equal_nan=True)
        if expected.ndim == 3:
            assert np.array_equal(read_rows(array, rows, 1), expected[rows, :1], equal_nan=True)
        for key in (0, -1, slice(1, None), rows, np.arange(len(expected)) % 2 == 0, (slice(None), 0)):
            assert np.array_equal(array[key], expected[key], equal_nan=True)
        assert np.array_equal(np.asarray(array), expected, equal_nan=True)


@given(
    seed=st.integers(0, 99),
    rows=st.lists(st.integers(0, 19), unique=True, max_size=20).map(sorted),
    chunk=st.sampled_from([1, 100, 1 << 20]),
    kind=st.sampled_from(["vector", "full", "lengths"]),
)
def test_chunks_hold_every_valid_value_once_whatever_their_size(seed, rows, chunk, kind):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((20, 3) if kind == "vector" else (20, 4, 3))
    lengths = rng.integers(1, 5, 20) if kind == "lengths" else None
    rows = np.array(rows, dtype=np.int64)
    steps = [1 if kind == "vector" else 4 if lengths is None else lengths[row] for row in rows]
    expected = [array[row].reshape(-1, 3)[:count] for row, count in zip(rows, steps, strict=True)]
    owners = np.repeat(rows, steps)
    chunks = list(iterate_valid(array, rows, lengths, chunk))
    values = [chunk.values for chunk in chunks]
    assert np.array_equal(np.concatenate([np.zeros((0, 3)), *values]), np.concatenate([np.zeros((0, 3)), *expected]))
    assert [chunk.row_of(k) for chunk in chunks for k in range(len(chunk.values))] == owners.tolist()


def test_releasing_never_undoes_a_write(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((10, 4096)))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[3] = 7
    release(private)
    assert (private[3] == 7).all()


EPOCH = """
import sys, numpy as np, torch, resource
torch.set_num_threads(1)
from pgm_fast.data import load, Loader, Normalizer

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

small, large = sys.argv[1:]

def epoch(source):
    features = load(source)
    normalizer = Normalizer.fit(features)
    loader = Loader(features, "train", batch_size=64, shuffle=True, normalizer=normalizer, resident="never")
    return sum(int((batch.index >= 0).sum()) for batch in loader.batches(0))

epoch(small)
before = peak()
assert epoch(large) == 8000
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak resident memory is read from /proc")
def test_a_large_folder_is_checked_normalised_and_shuffled_in_little_memory(tmp_path):
    size = {"small": 200, "large": 10000}
    for name, rows in size.items():
        folder = tmp_path / name
        folder.mkdir()
        for modality, shape in (("text", (rows, 4096)), ("audio", (rows, 16, 256))):
            file = np.lib.format.open_memmap(folder / f"{modality}.npy", "w+", np.float32, shape)
            file[:] = np.arange(rows, dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
            del file
        np.save(folder / "label.npy", np.arange(rows) % 2)
        np.save(folder / "split.npy", np.repeat([0, 1, 2], [rows * 8 // 10, rows // 10, rows // 10]))
    total = sum(file.stat().st_size for file in (tmp_path / "large").iterdir())
    assert total > 300e6
    command = [sys.executable, "-c", EPOCH, str(tmp_path / "small"), str(tmp_path / "large")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < total / 5
