"""Pickles without trust: numpy arrays and plain containers, and nothing else.

A pickle is a program. The standard unpickler runs it with every importable function; this one hands out only the few
constructors below, so an unknown global is refused before anything of it runs. numpy's own constructors are not handed
out either: a made-up dtype state passed to them can describe object pointers in raw bytes. Arrays are rebuilt here from
checked parts. :data:`ARRAY_GLOBALS` gives the same constructors to torch's unpickler.
"""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..raw import Problem, RefusedData

__all__ = ["ARRAY_GLOBALS", "Refused", "load_pickle"]

SIMPLE_DTYPE = re.compile(r"^(\?|[bBhHiIlLqQefdg]|[biufcSUO]\d*)$")


class Refused(Exception):
    """A global outside the list; carries its name."""


class _DType:
    """Stands for a numpy dtype until its state is known."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if not isinstance(code, str) or not SIMPLE_DTYPE.match(code):
            raise Refused(f"numpy.dtype({code!r})")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        order, subarray, names, fields = state[1:5]
        if subarray is not None or names is not None or fields is not None:
            raise Refused("numpy.dtype with fields")
        if order not in ("<", ">", "=", "|"):
            raise Refused(f"numpy.dtype with byte order {order!r}")
        self.order = order

    def resolve(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(np.ndarray):
    """An array that checks its state before numpy sees it, and takes one once: a tensor may share its memory then."""

    def __new__(cls, *_):
        raise Refused("an array made past its checks")

    def __setstate__(self, state):
        if vars(self):
            raise Refused("an array that is filled twice")
        self.filled = True
        _, shape, dtype, fortran, data = state
        dtype, shape = dtype.resolve(), _sizes(shape)
        if not dtype.hasobject:
            data = _from_bytes(data, dtype, math.prod(shape)).tobytes()
        elif type(data) is not list or len(data) != math.prod(shape):
            raise ValueError("an object array whose list does not fit its shape")
        super().__setstate__((1, shape, dtype, bool(fortran), data))


def _sizes(shape) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise Refused("a shape that is no tuple of sizes")
    return shape


def _from_bytes(data, dtype: np.dtype, count: int) -> np.ndarray:
    """``[count]`` in memory of its own, of exactly that many bytes: never a view of what the pickle has made, which
    may be pointers, and no text that Python cannot hold."""
    if type(data) is str:
        data = data.encode("latin1")  # bytes of a pickle that Python 2 wrote
    if type(data) not in (bytes, bytearray):
        raise Refused("array data that is not bytes")
    if dtype.hasobject or dtype.itemsize == 0 or len(data) != count * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {count} values of {dtype}")
    values = np.frombuffer(bytes(data), dtype).copy()
    if dtype.kind == "U" and (values.view(dtype.byteorder + "u4") > sys.maxunicode).any():
        raise ValueError("text with a code point that does not exist")
    return values


def _reconstruct(*_) -> np.ndarray:
    return np.empty(0, np.int8).view(_Array)


def _from_buffer(data, dtype, shape, order="C", *_) -> np.ndarray:
    shape = _sizes(shape)
    return _from_bytes(data, dtype.resolve(), math.prod(shape)).reshape(shape, order=order)


def _scalar(dtype, data):
    dtype = dtype.resolve()
    return data if dtype.hasobject else _from_bytes(data, dtype, 1)[0]


def _encode(text, encoding):
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class _Constructor:
    """A callable that the pickle can call and cannot alter."""

    __slots__ = ("_function", "_name")

    def __init__(self, name, function):
        self._name, self._function = name, function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise Refused(f"a change to {self._name}")


def _not_callable(*_):
    raise Refused("numpy.ndarray called directly")


ADMITTED = {
    ("numpy", "ndarray"): _not_callable,  # named as the type to reconstruct, never called
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "bytes"): bytes,  # empty bytes in pickles of protocol 2
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
    ("_codecs", "encode"): _encode,  # bytes in pickles of protocol 2
}
for _core in ("numpy.core", "numpy._core"):
    ADMITTED[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    ADMITTED[(f"{_core}.multiarray", "scalar")] = _scalar
    ADMITTED[(f"{_core}.numeric", "_frombuffer")] = _from_buffer

ARRAY_GLOBALS = [
    (_Array, "numpy.ndarray.checked"),  # no pickle names it: its type is looked up where an array gets its state
    *((function, f"{module}.{name}") for (module, name), function in ADMITTED.items() if module.startswith("numpy")),
]
"""What numpy arrays in a torch file need, for ``torch.serialization.safe_globals``."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        try:
            return _Constructor(f"{module}.{name}", ADMITTED[(module, name)])
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise Refused("a persistent reference")


def _unpickle(file: BinaryIO) -> Any:
    return _Unpickler(file, encoding="latin1").load()


def load_pickle(path: Path) -> Any:
    """The object in a pickle of plain containers and numpy arrays (without fields; object arrays of these are allowed).

    Raises:
        RefusedData: naming the refused global, before anything of it ran; or the file is truncated or no pickle.
    """
    try:
        with open(path, "rb") as file:
            return _unpickle(file)
    except Refused as refused:
        message = (
            f"refused: the pickle uses {refused}; only numpy arrays and plain containers (dict,"
            " list, tuple, str, bytes, numbers) are read from pickles; if you trust it, convert it to .npz"
        )
        raise RefusedData(Problem(str(path), "", None, message)) from None
    # Whatever a broken byte stream makes of the pickle machine (EOFError, KeyError, MemoryError, ...) means the same to
    # the reader.
    except Exception as error:
        message = (
            f"not a readable pickle ({type(error).__name__}: {error}); truncated or another format? Write it again"
        )
        raise RefusedData(Problem(str(path), "", None, message)) from None
