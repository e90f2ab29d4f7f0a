"""HDF5 files: what is written is read; nothing outside of the file is, and a broken one ends in one error."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from pgm_fast.data import load
from pgm_fast.data.files import FileRows
from pgm_fast.data.readers import apart, hdf5
from pgm_fast.errors import DataError

h5py = pytest.importorskip("h5py", reason="pip install 'pgm-fast[hdf5]'")

ROWS = 12


def arrays_of(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "audio": rng.standard_normal((rows, 4, 3)),
        "audio_lengths": rng.integers(1, 5, rows),
        "text": rng.standard_normal((rows, 5)).astype(np.float32),
        "presence": np.ones((rows, 2), bool),
        "label": np.resize([0, 1], rows),
        "id": np.array([f"ä{seed}{k}" for k in range(rows)]),
    }


def fill(place, arrays, **how):
    for name, x in arrays.items():
        text = x.dtype.kind == "U"
        place.create_dataset(name, data=x.tolist() if text else x, **({} if text else how))


def assert_held(features, arrays, rows):
    assert list(features.modalities) == ["audio", "text"]
    for name in features.modalities:
        assert features.modalities[name].dtype == arrays[name].dtype
        assert np.array_equal(np.asarray(features.modalities[name])[rows], arrays[name])
    assert np.array_equal(features.labels[rows], arrays["label"]) and features.ids[rows].tolist() == [*arrays["id"]]
    assert np.array_equal(features.lengths["audio"][rows], arrays["audio_lengths"])


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("how", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"chunks": True}])
def test_datasets_are_read_and_stay_in_the_file_where_they_lie_in_one_piece(tmp_path, how, userblock):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
        fill(file, arrays_of(), **how)
    features = load(tmp_path / "a.h5")
    assert_held(features, arrays_of(), np.arange(ROWS))
    assert all(isinstance(array, FileRows) == (not how) for array in features.modalities.values())


def test_an_array_without_rows_is_no_damage(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
        file.create_dataset("video", (0, 3), "f4")
    with pytest.raises(DataError, match=r"video: 0 rows \(shape \(0, 3\)\) where audio has 12"):
        load(tmp_path / "a.h5", ignore=["presence"])


def test_groups_are_splits_and_stay_in_the_file(tmp_path):
    sizes = {"test": 5, "train": ROWS, "val": 4}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for seed, (name, rows) in enumerate(sizes.items()):
            fill(file.create_group(name), arrays_of(rows, seed))
        file.create_group("made_by")["what"] = "x"
    with pytest.raises(DataError, match=r"made_by: 'made_by' among the splits.*data\.ignore=\[made_by\]"):
        load(tmp_path / "a.h5")
    features = load(tmp_path / "a.h5", ignore=["made_by", "presence"])
    assert not any(isinstance(array, np.ndarray) for array in features.modalities.values())
    for seed, (name, rows) in enumerate(sizes.items()):
        assert_held(features, arrays_of(rows, seed), features.rows({"val": "valid"}.get(name, name)))


def twelve_bits():
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(12)
    kind.set_offset(8)
    return kind


def other_exponents():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(120)
    return kind


@pytest.mark.parametrize("kind", [h5py.h5t.IEEE_F32BE, h5py.h5t.STD_I16BE, twelve_bits(), other_exponents()])
def test_numbers_are_read_in_whatever_way_hdf5_stores_them(tmp_path, kind):
    numbers = np.random.default_rng(0).integers(0, 100, (ROWS, 4)).astype(np.int32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, {"label": arrays_of()["label"]})
        dataset = h5py.h5d.create(file.id, b"video", kind, h5py.h5s.create_simple(numbers.shape))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, numbers)
    assert np.array_equal(np.asarray(load(tmp_path / "a.h5").modalities["video"]), numbers)


def strange(file, other):
    """Everything that is not read, by its key."""
    file["link"] = h5py.SoftLink("/audio")
    file["far"] = h5py.ExternalLink(str(other), "/text")
    file.create_dataset("outside", (ROWS, 2), "f8", external=[(str(other), 0, ROWS * 16)])
    layout = h5py.VirtualLayout((ROWS, 5), "f4")
    layout[:] = h5py.VirtualSource(str(other), "text", shape=(ROWS, 5))
    file.create_virtual_dataset("virtual", layout)
    file.create_dataset("pointer", data=np.array([file["audio"].ref], dtype=h5py.ref_dtype))
    file.create_dataset("filtered", data=np.ones((ROWS, 3), np.float32), scaleoffset=2)
    file.create_dataset("named", data=np.zeros(ROWS, [("a", "f4")]))
    file.create_dataset("nothing", data=h5py.Empty("f8"))
    file["kind"] = np.dtype("f4")
    file.create_group("inner")


REASONS = {
    "link": "a link, and links are not followed",
    "far": "a link, and links are not followed",
    "outside": "its values are in other files",
    "virtual": "its values are in other files",
    "pointer": "references, which are not read",
    "filtered": "filters number 6, which are not read; write it again with one of gzip",
    "named": "values of",
    "nothing": "a dataset without values",
    "kind": "neither a dataset nor a group",
    "inner": "holds arrays of its own, and there are others beside it",
}


def test_what_leaves_the_file_or_is_no_array_is_refused_until_it_is_ignored(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        fill(file, arrays_of(seed=1))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
        strange(file, tmp_path / "other.h5")
    left = list(REASONS)
    while left:
        ignored = [key for key in REASONS if key not in left]
        with pytest.raises(DataError, match="data.ignore=") as caught:
            load(tmp_path / "a.h5", ignore=ignored)
        [key] = [key for key in left if f": {key}: {REASONS[key]}" in str(caught.value)]
        assert f"data.ignore=[{','.join((*ignored, key))}]" in str(caught.value)
        left.remove(key)
    assert_held(load(tmp_path / "a.h5", ignore=list(REASONS)), arrays_of(), np.arange(ROWS))


def test_a_bomb_of_zeros_ends_in_one_error(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
        file.create_dataset("zeros", (1 << 24, 64), "f8", chunks=(1 << 10, 64), compression="gzip")
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 1 << 32)
    with pytest.raises(DataError, match=r"a\.h5: not readable: its arrays take 8\.6 GB"):
        load(tmp_path / "a.h5")


def test_more_text_than_fits_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
        file.create_dataset("names", (1 << 40,), h5py.string_dtype(), chunks=(1 << 10,), compression="gzip")
    with pytest.raises(DataError, match=r"a\.h5: not readable: its arrays take 70368\.7 GB"):
        load(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", r"its library ended \(signal 6\)"),
        ("import time; time.sleep(60)", "nothing came of it for"),
        ("print('{')", "Expecting"),
        ("print('[' * 100000)", "recursion"),
        ("print('[1]')", "list indices"),
        ('print(\'{"key": "a", "shape": [9], "dtype": "<f8"}\')', r"its library ended \(status 0\)"),
        ('print(\'{"key": "a", "shape": [1], "dtype": "O"}\')', "object"),
        ('print(\'{"key": "a", "shape": [9], "dtype": "<f8", "offset": 999999}\')', "of a file of"),
    ],
)
def test_whatever_becomes_of_the_process_that_reads_is_one_error(tmp_path, monkeypatch, program, reason):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(hdf5, "PROGRAM", tmp_path / "child.py")
    monkeypatch.setattr(apart, "SILENCE", 1.0)
    started = time.monotonic()
    with pytest.raises(DataError, match=rf"a\.h5: .*{reason}") as caught:
        load(tmp_path / "a.h5")
    assert "\n" not in str(caught.value) and time.monotonic() - started < 30


def test_truncated_and_foreign_files_are_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file, arrays_of())
    (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:3000])
    (tmp_path / "b.h5").write_bytes(b"nothing of the kind")
    for name in "ab":
        with pytest.raises(DataError, match=rf"{name}\.h5: not readable"):
            load(tmp_path / f"{name}.h5")


def test_without_h5py_its_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r'need h5py.*pip install "pgm-fast\[hdf5\]"'):
        load(tmp_path / "a.h5")
