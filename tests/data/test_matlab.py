"""MATLAB files of any version: what is saved is read; other kinds of arrays and broken files end in one error."""

from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import pytest

from pgm_fast.data import load
from pgm_fast.data.readers import mat5
from pgm_fast.errors import DataError

ROWS = 12


def arrays_of(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "audio": rng.standard_normal((rows, 4, 3)),
        "audio_lengths": rng.integers(1, 5, rows).astype(float),
        "text": rng.standard_normal((rows, 5)).astype(np.float32),
        "age": rng.integers(0, 9, (rows, 1)).astype(float),
        "presence": np.ones((rows, 2), bool),
        "label": np.resize([1.0, 2.0], rows),
        "id": np.array([f"ä{seed}{k}" for k in range(rows)]),
    }


def write_5(path, content, compressed=False):
    io = pytest.importorskip("scipy.io", reason="pip install 'pgm-fast[av]'")

    def saved(x):
        if isinstance(x, dict):
            return {key: saved(value) for key, value in x.items()}
        return x.astype(object)[:, None] if x.dtype.kind == "U" else x

    io.savemat(path, saved(content), do_compression=compressed)


def write_7(path, content):
    write_5(path, content, compressed=True)


def write_73(path, content):
    """As MATLAB does: the last axis first, text as numbers, cells as places of other datasets."""
    h5py = pytest.importorskip("h5py", reason="pip install 'pgm-fast[hdf5]'")

    def put(place, name, x):
        if isinstance(x, dict):
            group = place.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, value in x.items():
                put(group, key, value)
        elif x.dtype.kind == "U":
            cells = []
            for text in x.tolist():
                units = np.frombuffer(text.encode("utf-16-le"), np.uint16)
                cell = refs.create_dataset(str(len(refs)), data=units[:, None])
                cell.attrs["MATLAB_class"] = np.bytes_("char")
                cells.append(cell.ref)
            place.create_dataset(name, data=np.array([cells], h5py.ref_dtype)).attrs["MATLAB_class"] = np.bytes_("cell")
        else:
            kind = {"float64": "double", "float32": "single", "bool": "logical"}[str(x.dtype)]
            data = (x.reshape(len(x), -1) if x.ndim == 1 else x).T
            stored = place.create_dataset(
                name, data=data.astype(np.uint8) if x.dtype == bool else data, chunks=True, compression="gzip"
            )
            stored.attrs["MATLAB_class"] = np.bytes_(kind)

    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        for name, x in content.items():
            put(file, name, x)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124) + b"\0\2IM")


WRITERS = pytest.mark.parametrize("write", [write_5, write_7, write_73])


def assert_held(features, arrays, rows):
    assert list(features.modalities) == ["audio", "text"]
    for name in features.modalities:
        assert features.modalities[name].dtype == arrays[name].dtype
        assert np.array_equal(np.asarray(features.modalities[name])[rows], arrays[name])
    assert np.array_equal(features.labels[rows] + 1, arrays["label"])
    assert features.ids[rows].tolist() == [*arrays["id"]]
    assert np.array_equal(features.lengths["audio"][rows], arrays["audio_lengths"])


@WRITERS
def test_what_is_saved_is_read(tmp_path, write):
    write(tmp_path / "a.mat", arrays_of())
    assert_held(load(tmp_path / "a.mat", labels="classes"), arrays_of(), np.arange(ROWS))
    named = load(tmp_path / "a.mat", labels="classes", modalities=["age", "text"], ignore=["presence"])
    assert np.array_equal(named.modalities["age"], arrays_of()["age"])


@WRITERS
def test_structs_are_splits(tmp_path, write):
    sizes = {"train": ROWS, "val": 4, "test": 5}
    parts = {name: arrays_of(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
    write(tmp_path / "a.mat", parts | {"made": np.array(["x"])})
    with pytest.raises(DataError, match=r"(train|test): holds arrays of its own, and there are others beside it"):
        load(tmp_path / "a.mat", labels="classes")
    features = load(tmp_path / "a.mat", labels="classes", ignore=["made", "presence"])
    for name in sizes:
        assert_held(features, parts[name], features.rows({"val": "valid"}.get(name, name)))


def element(kind, data, order="<", size=None):
    return struct.pack(f"{order}II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def matrix(kind, shape, name, *parts, flags=0, order="<"):
    head = element(6, struct.pack(f"{order}II", kind | flags << 8, 0), order)
    head += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + element(1, name.encode(), order)
    return element(14, head + b"".join(parts), order)


def doubles(name, x, order="<"):
    return matrix(6, np.shape(x), name, element(9, np.asarray(x, f"{order}f8").tobytes("F"), order), order=order)


def text(name, shape, x, order="<", codec="utf-16-{}", kind=4):
    data = x.encode(codec.format("le" if order == "<" else "be"))
    return matrix(4, shape, name, element(kind, data, order), order=order)


def mat(*elements, order="<"):
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark + b"".join(elements)


def packed(data):
    data = zlib.compress(data)
    return struct.pack("<II", 15, len(data)) + data


WHOLE = (doubles("a", np.arange(24.0).reshape(ROWS, 2)), doubles("label", np.arange(ROWS)[:, None] % 2))


def read(tmp_path, content, **options):
    (tmp_path / "a.mat").write_bytes(content)
    return load(tmp_path / "a.mat", labels="classes", **options)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("codec", "kind"), [("utf-16-{}", 4), ("utf-16-{}", 17), ("utf-8", 16), ("utf-32-{}", 18)])
def test_text_and_numbers_are_read_as_any_program_stores_them(tmp_path, order, codec, kind):
    lines = [f"ä{k:<2}" for k in range(ROWS)]
    columns = "".join(line[k] for k in range(3) for line in lines)
    cells = matrix(
        1,
        (1, ROWS),
        "cells",
        *(text("", (1, 1 + len(str(k))), f"ж{k}", order, codec, kind) for k in range(ROWS)),
        order=order,
    )
    small = matrix(6, (ROWS, 1), "label", element(2, bytes(k % 2 for k in range(ROWS)), order), order=order)
    one = matrix(6, (1, 1), "fs", struct.pack(f"{order}I", 1 << 16 | 2) + b"\7\0\0\0", order=order)
    content = mat(
        doubles("a", np.arange(24.0).reshape(ROWS, 2), order),
        text("id", (ROWS, 3), columns, order, codec, kind),
        *(cells, small, one),
        order=order,
    )
    with pytest.raises(DataError, match=r"fs: .*data\.ignore=\[fs\]"):
        read(tmp_path, content)
    features = read(tmp_path, content, ignore=["fs"])
    assert features.ids.tolist() == [line.rstrip() for line in lines]
    assert np.array_equal(features.modalities["a"], np.arange(24.0).reshape(ROWS, 2))
    named = read(tmp_path, content, ignore=["fs", "id", "label"], label="cells")
    assert named.class_names == sorted(f"ж{k}" for k in range(ROWS))


def part_of_struct(shape=(1, 1), *fields):
    names = b"".join(f"f{k}".encode().ljust(8, b"\0") for k in range(len(fields)))
    return matrix(2, shape, "s", element(5, struct.pack("<i", 8)), element(1, names), *fields)


OTHERS = {
    "complex": (
        doubles("x", np.ones((ROWS, 2)))[:17] + b"\x08" + doubles("x", np.ones((ROWS, 2)))[18:],
        "complex numbers",
    ),
    "sparse": (matrix(5, (ROWS, 2), "x"), r"a sparse matrix \(store full\(x\)\)"),
    "object": (matrix(3, (1, 1), "x"), "an object"),
    "handle": (matrix(16, (1, 1), "x"), "a function handle"),
    "opaque": (element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"x")), "an object"),
    "unknown": (matrix(99, (1, 1), "x"), "of no known class"),
    "cell of numbers": (matrix(1, (1, 1), "x", doubles("", np.ones((2, 2)))), "a cell array of something else"),
    "cell of nothing": (matrix(1, (1, 1), "x", element(14, b"")), "a cell array of something else"),
    "cells": (matrix(1, (2, 2), "x"), "a cell array 2 x 2"),
    "lines": (matrix(1, (1, 1), "x", text("", (2, 1), "ab")), "several lines"),
    "block of text": (text("x", (1, 1, 2), "ab"), "characters 1 x 1 x 2"),
    "structs": (part_of_struct((1, 2)), "an array of structs 1 x 2"),
    "struct in struct": (part_of_struct((1, 1), part_of_struct()), "a struct in a struct"),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_arrays_of_other_kinds_are_refused_until_they_are_ignored(tmp_path, name):
    bytes_, reason = OTHERS[name]
    for content in (mat(*WHOLE, bytes_), mat(*WHOLE, packed(bytes_))):
        key = "s" if name.startswith("struct") else "x"
        with pytest.raises(DataError, match=rf"a\.mat: {key}.*{reason}.*data\.ignore="):
            read(tmp_path, content)
        assert len(read(tmp_path, content, ignore=[key])) == ROWS


BROKEN = {
    "more axes than bytes": (matrix(6, (1 << 30, 1 << 30), "x", element(9, bytes(8))), "memory|numbers in an array|GB"),
    "negative": (matrix(6, (-1, 2), "x", element(9, b"")), "shape"),
    "one axis": (matrix(6, (2,), "x", element(9, bytes(16))), "shape"),
    "axes": (matrix(6, (1,) * 40, "x", element(9, bytes(8))), "shape"),
    "no such type": (matrix(6, (1, 1), "x", element(999, bytes(8))), "numbers of type 999"),
    "text as numbers": (matrix(6, (1, 1), "x", element(16, bytes(8))), "numbers of type 16"),
    "numbers as text": (matrix(4, (1, 1), "x", element(9, bytes(8))), "text of type 9"),
    "longer than its array": (matrix(6, (1, 1), "x", element(9, bytes(8), size=1 << 31)), "left"),
    "longer than the file": (element(14, bytes(8), size=1 << 31), "are there"),
    "no array": (element(9, bytes(8)), "an element of type 9"),
    "bad text": (matrix(4, (1, 2), "x", element(16, b"\xff\xfe")), "utf-8"),
    "half a number": (matrix(6, (1, 1), "x", element(9, bytes(7))), "7 bytes"),
    "twice": (WHOLE[0], "a second array"),
    "fields twice": (
        matrix(2, (1, 1), "s", element(5, struct.pack("<i", 1)), element(1, b"ff"), *(doubles("", [[1.0]]),) * 2),
        "a second field",
    ),
    "fields of no length": (matrix(2, (1, 1), "s", element(5, bytes(4)), element(1, b"f")), "names of"),
    "checksum": (packed(WHOLE[0])[:-1] + b"\0", "check"),
    "more behind": (packed(doubles("x", np.ones((ROWS, 2))) + bytes(8)), "does not end where its array does"),
    "less than it says": (packed(doubles("x", np.ones((ROWS, 2)))[:-8]), "bytes where"),
    "nested": (matrix(1, (1, 1), "x", b"".join(struct.pack("<II", 14, 1 << 20) for _ in range(1 << 16))), "left"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_arrays_end_in_one_error(tmp_path, name):
    bytes_, reason = BROKEN[name]
    with pytest.raises(DataError, match=rf"a\.mat: .*({reason})") as caught:
        read(tmp_path, mat(*WHOLE, bytes_))
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    for content in (mat(*WHOLE), mat(*map(packed, WHOLE))):
        last = content.rindex(struct.pack("<I", 14 if content[128] == 14 else 15))
        for size in [*range(0, len(content), 7), len(content) - 1]:
            with pytest.raises(DataError):
                read(tmp_path, content[:size])
        assert last and len(read(tmp_path, content)) == ROWS


def test_what_is_packed_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    head = matrix(6, (1 << 28, 1), "x")[8:]
    pieces, packer = [], zlib.compressobj()
    pieces.append(
        packer.compress(struct.pack("<II", 14, len(head) + 8 + (1 << 31)) + head + struct.pack("<II", 9, 1 << 31))
    )
    pieces += [packer.compress(bytes(1 << 20)) for _ in range(1 << 6)] + [packer.flush()]
    bomb = b"".join(pieces)
    monkeypatch.setattr("pgm_fast.data.archives.free_bytes", lambda device: 1 << 30)
    content = mat(*WHOLE, struct.pack("<II", 15, len(bomb)) + bomb)
    assert len(content) < 1 << 20
    with pytest.raises(DataError, match=r"x: not readable \(its arrays take 4\.3 GB"):
        read(tmp_path, content)


def test_more_texts_or_arrays_than_anybody_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "MOST_TEXTS", 5)
    monkeypatch.setattr(mat5, "MOST_VARIABLES", 9)
    three = matrix(1, (3, 1), "{}", *(text("", (1, 1), "x"),) * 3)
    with pytest.raises(DataError, match="y: 6 cells, and 5 are read"):
        read(tmp_path, mat(three.replace(b"{}", b"x\0"), three.replace(b"{}", b"y\0")))
    with pytest.raises(DataError, match="more than 9 arrays"):
        read(tmp_path, mat(*(doubles(f"x{k}", np.ones((ROWS, 2))) for k in range(10))))


def strange_73(h5py, file):
    """Everything that is not read, by its key."""
    file.create_dataset("complex", data=np.zeros((2, ROWS), [("real", "f8"), ("imag", "f8")]))
    file.create_group("sparse").attrs["MATLAB_sparse"] = np.uint64(2)
    file.create_group("map").attrs["MATLAB_class"] = np.bytes_("containers.Map")
    table = file.create_dataset("table", data=np.zeros((1, 6), np.uint32))
    table.attrs.update({"MATLAB_class": np.bytes_("table"), "MATLAB_object_decode": np.int32(3)})
    handle = file.create_dataset("handle", data=np.zeros((1, 6), np.uint32))
    handle.attrs["MATLAB_class"] = np.bytes_("function_handle")
    long = file["#refs#"].create_dataset("long", (1 << 20, 1), "u2", chunks=True, compression="gzip")
    long.attrs["MATLAB_class"] = np.bytes_("char")
    for name, place in (("numbers", file["audio"]), ("struct", file["#refs#"]), ("longest", long)):
        cells = file.create_dataset(name, data=np.array([[place.ref] * 3], h5py.ref_dtype))
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
    empty = file.create_dataset("empty", data=np.array([3, 4], np.uint64))
    empty.attrs.update({"MATLAB_class": np.bytes_("double"), "MATLAB_empty": np.uint8(1)})


REASONS_73 = {
    "complex": "values of",
    "sparse": "a sparse matrix",
    "map": "of class containers.Map",
    "table": "of class table",
    "handle": "of class function_handle",
    "numbers": "a cell array of something else than text",
    "struct": "a cell array of something else than text",
    "longest": "a text of 1048576 characters",
    "empty": "an empty array of shape",
}


def test_of_version_7_3_other_kinds_are_refused_until_they_are_ignored(tmp_path):
    h5py = pytest.importorskip("h5py", reason="pip install 'pgm-fast[hdf5]'")
    write_73(tmp_path / "a.mat", arrays_of())
    with h5py.File(tmp_path / "a.mat", "r+") as file:
        strange_73(h5py, file)
    left = list(REASONS_73)
    while left:
        ignored = [key for key in REASONS_73 if key not in left]
        with pytest.raises(DataError, match="data.ignore=") as caught:
            load(tmp_path / "a.mat", labels="classes", ignore=ignored)
        [key] = [key for key in left if f": {key}: {REASONS_73[key]}" in str(caught.value)]
        left.remove(key)
    assert_held(load(tmp_path / "a.mat", labels="classes", ignore=list(REASONS_73)), arrays_of(), np.arange(ROWS))


def test_other_versions_and_missing_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(struct.pack("<5i", 0, 2, 2, 0, 2) + b"x\0" + bytes(32))  # version 4
    with pytest.raises(DataError, match=r"no MAT-file of version 5 to 7\.3.*Save it again with -v7"):
        load(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r'version 7\.3 need h5py.*pip install "pgm-fast\[hdf5\]"'):
        load(tmp_path / "a.mat")
