"""A pickle of arrays and containers is read as written; anything else is refused by name and nothing of it runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgm_fast.data.readers.pickles import load_pickle
from pgm_fast.errors import DataError

SIMPLE = st.one_of(
    hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.unicode_string_dtypes(max_len=4)
)
ARRAYS = hnp.arrays(SIMPLE, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
LEAVES = st.one_of(st.integers(), st.text(max_size=5), st.binary(max_size=5), st.none(), st.booleans(), ARRAYS)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        native = a.astype(a.dtype.newbyteorder("="))  # numpy swaps bytes on reading
        return isinstance(b, np.ndarray) and a.shape == b.shape and native.tobytes() == b.astype(native.dtype).tobytes()
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(tree=TREES, protocol=st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_what_is_admitted_comes_back_unchanged(tmp_path_factory, tree, protocol):
    path = tmp_path_factory.getbasetemp() / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    assert same(tree, load_pickle(path))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_scalars_object_arrays_and_fortran_order_come_back(tmp_path, protocol):
    words = np.array(["ab", "c", None], dtype=object)
    tree = OrderedDict(
        scalar=np.float32(2.5), words=words, fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)), kinds={1, 2}
    )
    path = tmp_path / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    loaded = load_pickle(path)
    assert loaded["scalar"] == 2.5 and loaded["scalar"].dtype == np.float32
    assert loaded["words"].tolist() == ["ab", "c", None]
    assert np.array_equal(loaded["fortran"], tree["fortran"])
    assert loaded["kinds"] == {1, 2} and isinstance(loaded, OrderedDict)


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (np.load, "load"),
        (Path, "pathlib"),
    ],
)
def test_a_call_is_refused_by_name_and_not_made(tmp_path, function, name, protocol):
    witness = tmp_path / "ran"
    arguments = {os.system: f"touch {witness}", eval: f"open({str(witness)!r}, 'w')"}
    path = tmp_path / "evil.pkl"
    payload = {"text": np.ones(2), "x": Calls(function, arguments.get(function, str(witness)))}
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(DataError, match=rf"evil\.pkl.*refused.*{name}"):
        load_pickle(path)
    assert not witness.exists()


def forged_dtype() -> bytes:
    """A one-element array of pointers: eight bytes of our choice, read as an object."""
    array = np.zeros(1, np.int64)
    return pickle.dumps(array, protocol=2).replace(b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8")


def test_bytes_cannot_be_passed_off_as_object_pointers(tmp_path):
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged_dtype())
    assert b"O8" in path.read_bytes()
    with pytest.raises(DataError, match="not a readable pickle"):
        load_pickle(path)


def test_structured_arrays_are_refused(tmp_path):
    path = tmp_path / "fields.pkl"
    path.write_bytes(pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")])))
    with pytest.raises(DataError, match="numpy.dtype"):
        load_pickle(path)


def test_the_constructors_cannot_be_altered(tmp_path):
    path = tmp_path / "build.pkl"
    path.write_bytes(
        b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    )  # BUILD with a state dict on an admitted callable
    with pytest.raises(DataError, match="a change to collections.OrderedDict"):
        load_pickle(path)


@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_loads_or_says_so_in_one_line(tmp_path_factory, cut, flips):
    data = bytearray(pickle.dumps({"text": np.arange(12.0), "id": ["a", "b"]}, protocol=4))
    for position, value in flips:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(data[:cut] if cut < len(data) else data)
    try:
        load_pickle(path)
    except DataError as error:
        assert "damaged.pkl" in str(error) and "\n" not in str(error)
