"""The MAT-file format of MATLAB's versions 5 to 7.2, as "MAT-File Format" (The MathWorks) describes it.

It is read here and not by scipy, which takes the type of an array as a place in a table and does not look whether the
table is that long. Every size that a file claims is held against what is left of it, and against the memory that is
free, before it is read.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..archives import require_free

__all__ = ["NotRead", "Variables"]

HEADER = 128  # bytes
MATRIX, COMPRESSED = 14, 15  # types of elements
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16-{}", 16: "utf-8", 17: "utf-16-{}", 18: "utf-32-{}"}
CELL, STRUCT, CHAR = 1, 2, 4  # classes of arrays
NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
OTHERS = {
    3: "an object",
    5: "a sparse matrix (store full(x))",
    16: "a function handle",
    17: "an object (string, table, ...)",
}
LOGICAL, COMPLEX = 2, 8  # bits
PIECE = 1 << 16  # bytes that are unpacked at once
MOST_AXES = 32
MOST_NAME = 1 << 12  # bytes of the name of an array
MOST_VARIABLES = 1000
MOST_TEXTS = 1 << 20  # in the cell arrays of a file, a minute of work
SHORT_TEXT = 64  # bytes of a text of Python's, and of its place in a list


class NotRead(Exception):
    """An array of a kind that is not read: says which, and what to store in its place."""


class Variables:
    """What a file holds, one after the other: ``(name, array)``, or ``(name, {field: array})`` for a struct.

    Raises, while it is iterated over:
        NotRead: an array of a kind that is not read.
        others of :data:`~pgm_fast.data.archives.UNREADABLE`: no such file, or a broken one.

    Attributes:
        key: what is being read, for messages.
    """

    def __init__(self, path: Path, ignore: Sequence[str]):
        self.path = path
        self.key = ""
        self._ignore = ignore
        self._texts = 0

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | dict[str, np.ndarray]]]:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            self._order = _byte_order(file.read(HEADER))
            for _ in range(MOST_VARIABLES):
                self.key = ""
                if (begin := file.tell()) == size:
                    return
                kind, length = struct.unpack(f"{self._order}II", _whole(file.read(8), 8))
                if length > size - begin - 8:
                    raise ValueError(f"an array of {length} bytes, of which {size - begin - 8} are there")
                stream, inner = _Plain(file), length
                if kind == COMPRESSED:
                    stream = _Unpacked(file, length)
                    kind, inner = struct.unpack(f"{self._order}II", stream.read(8))
                element = _Element(stream, kind, inner, self._order)
                matrix = _Matrix(element)
                self.key = matrix.name
                if matrix.name in self._ignore:
                    yield matrix.name, np.empty(0)
                elif matrix.name:  # MATLAB's own notes have none
                    value = self._struct(matrix) if matrix.kind == STRUCT else self._array(matrix)
                    element.skip()
                    stream.close()
                    yield matrix.name, value
                file.seek(begin + 8 + length)
        raise ValueError(f"more than {MOST_VARIABLES} arrays")

    def _struct(self, matrix: _Matrix) -> dict[str, np.ndarray]:
        if matrix.count != 1:
            raise NotRead(f"an array of structs {_by(matrix.shape)}; store one struct of arrays")
        widths = matrix.element.part().numbers((5,))
        names = matrix.element.part().bytes()
        if widths.size != 1 or not 0 < (width := int(widths[0])) <= MOST_NAME:
            raise ValueError(f"names of {widths[:4].tolist()} bytes in a struct")
        fields: dict[str, np.ndarray] = {}
        for start in range(0, len(names), width):
            name = names[start : start + width].split(b"\0")[0].decode("utf-8")
            self.key = f"{matrix.name}/{name}"
            inner = matrix.element.part()
            if name in fields or not name:
                raise ValueError("a second field of this name in a struct, or one without")
            if name in self._ignore:
                fields[name] = np.empty(0)
            else:
                fields[name] = self._array(_Matrix(inner))
            inner.skip()
        self.key = matrix.name
        return fields

    def _array(self, matrix: _Matrix) -> np.ndarray:
        if matrix.kind in NUMBERS:
            return _numbers(matrix)
        if matrix.kind == CHAR:
            texts = _lines(matrix)
        elif matrix.kind == CELL:
            texts = self._cells(matrix)
        else:
            what = "a struct in a struct" if matrix.kind == STRUCT else OTHERS.get(matrix.kind, "of no known class")
            raise NotRead(f"{what}, which is not read; store numbers or text (cellstr, table2array)")
        longest = max(map(len, texts), default=1) or 1
        require_free(4 * longest * len(texts))
        return np.array(texts, f"<U{longest}")

    def _cells(self, matrix: _Matrix) -> list[str]:
        self._texts += matrix.count
        if matrix.count and max(matrix.shape) != matrix.count:
            raise NotRead(f"a cell array {_by(matrix.shape)}, and columns of text are read")
        if self._texts > MOST_TEXTS:
            raise NotRead(f"{self._texts} cells, and {MOST_TEXTS} are read; store numbers")
        texts = []
        for _ in range(matrix.count):
            inner = matrix.element.part()
            cell = _Matrix(inner)
            if cell.kind != CHAR:
                raise NotRead(
                    "a cell array of something else than text; store numbers as one array [N, d] or [N, T, d]"
                )
            lines = _lines(cell)
            if len(lines) > 1:
                raise NotRead("several lines of text in one cell; store one")
            texts.append(lines[0] if lines else "")
            inner.skip()
        return texts


def _byte_order(header: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    version = struct.unpack(f"{order}H", header[124:126])[0] if order else 0
    if version != 0x0100:
        raise ValueError("no MAT-file of version 5 to 7.3")
    return order


class _Plain:
    """The bytes of an array that is not compressed."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, size: int) -> bytes:
        require_free(size)
        return _whole(self._file.read(size), size)

    def skip(self, size: int) -> None:
        self._file.seek(size, 1)

    def close(self) -> None:
        pass


class _Unpacked:
    """The bytes of an array that zlib compressed, ``length`` bytes of ``file``."""

    def __init__(self, file: BinaryIO, length: int):
        self._file = file
        self._left = length
        self._unpacker = zlib.decompressobj()

    def _more(self, size: int) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, PIECE))
                self._left -= len(packed)
            piece = self._unpacker.decompress(packed, size)
            if piece or not packed:
                return piece
        return b""

    def read(self, size: int) -> bytes:
        require_free(size)
        place, done = bytearray(size), 0
        while done < size:
            piece = self._more(min(size - done, PIECE))
            if not piece:
                break
            place[done : done + len(piece)] = piece
            done += len(piece)
        return _whole(place[:done] if done < size else place, size)

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.read(min(size, PIECE)))

    def close(self) -> None:
        """Raises ValueError where it goes on, or its checksum is another."""
        if self._more(1) or not self._unpacker.eof:
            raise ValueError("what is compressed does not end where its array does")


class _Element:
    """A part of a file that says of which type it is and how long, and may be made of others."""

    def __init__(self, stream: _Plain | _Unpacked, kind: int, size: int, order: str, padding: int = 0):
        self.kind = kind
        self.size = size
        self.order = order
        self._stream = stream
        self._left = size
        self._padding = padding
        self._small: bytes | None = None

    def part(self) -> _Element:
        """The element that comes next in this one."""
        tag = self._take(8)
        kind, size = struct.unpack(f"{self.order}II", tag)
        if kind >> 16:  # up to four bytes are in the place of the size
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError(f"{size} bytes in the place of four")
            small = _Element(self._stream, kind, size, self.order)
            small._small = tag[4 : 4 + size]
            return small
        if size > self._left:
            raise ValueError(f"{size} bytes in an array that has {self._left} left")
        padding = min(-size % 8, self._left - size)
        self._left -= size + padding
        return _Element(self._stream, kind, size, self.order, padding)

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(f"{size} bytes of an array that has {self._left} left")
        self._left -= size
        return self._stream.read(size)

    def bytes(self) -> bytes:
        """All of it, the padding behind it left out."""
        if self._small is not None:
            return self._small
        data = self._take(self.size)
        self.skip()
        return data

    def numbers(self, kinds: Sequence[int] = tuple(STORED)) -> np.ndarray:
        if self.kind not in kinds:
            raise ValueError(f"numbers of type {self.kind}")
        dtype = np.dtype(f"{self.order}{STORED[self.kind]}")
        if self.size % dtype.itemsize:
            raise ValueError(f"{self.size} bytes of numbers of {dtype.itemsize} bytes")
        return np.frombuffer(self.bytes(), dtype)

    def skip(self) -> None:
        """To its end, and over the padding behind it."""
        self._stream.skip(self._left + self._padding)
        self._left = self._padding = 0


class _Matrix:
    """The beginning of an array: its class, shape and name."""

    def __init__(self, element: _Element):
        if element.kind != MATRIX:
            raise ValueError(f"an element of type {element.kind}, and arrays are type {MATRIX}")
        self.element = element
        self.name, self.shape, self.count, self.flags = "", (0, 0), 0, 0
        self.kind = 6
        if not element.size:  # how MATLAB writes [] in a cell
            return
        flags = element.part().numbers((6,))
        if flags.size != 2:
            raise ValueError(f"{flags.size} words of flags, and arrays have 2")
        self.kind, self.flags = int(flags[0]) & 0xFF, int(flags[0]) >> 8 & 0xFF
        if self.kind == 17:  # has a name and no shape
            self.name = _name(element.part())
            return
        shape = element.part().numbers((5, 6))  # of MATLAB 5, of other programs also 6
        if not 2 <= shape.size <= MOST_AXES or (shape < 0).any():
            raise ValueError(f"an array of shape {shape[:4].tolist()}, {shape.size} axes")
        self.shape = tuple(map(int, shape))
        self.count = math.prod(self.shape)
        self.name = _name(element.part())


def _name(element: _Element) -> str:
    if element.size > MOST_NAME:
        raise ValueError(f"a name of {element.size} bytes")
    return element.bytes().split(b"\0")[0].decode("utf-8")


def _numbers(matrix: _Matrix) -> np.ndarray:
    if matrix.flags & COMPLEX:
        raise NotRead("complex numbers, which are not read; store real and imaginary parts")
    part = matrix.element.part()
    dtype = np.dtype(bool if matrix.flags & LOGICAL else NUMBERS[matrix.kind])
    require_free(part.size + matrix.count * dtype.itemsize)
    stored = part.numbers()
    if stored.size != matrix.count:
        raise ValueError(f"{stored.size} numbers in an array {_by(matrix.shape)}")
    return np.array(stored.reshape(matrix.shape, order="F"), dtype, order="C")


def _lines(matrix: _Matrix) -> list[str]:
    """Of a matrix of characters, each without the blanks that fill it up."""
    if not matrix.count:
        return [""] * min(matrix.shape[0], 1)
    if len(matrix.shape) > 2:
        raise NotRead(f"characters {_by(matrix.shape)}; store one text per line")
    part = matrix.element.part()
    if part.kind not in TEXT:
        raise ValueError(f"text of type {part.kind}")
    rows = matrix.shape[0]
    require_free(4 * part.size + SHORT_TEXT * rows)
    text = part.bytes().decode(TEXT[part.kind].format("le" if part.order == "<" else "be"))
    if rows == 1:
        return [text]
    if len(text) != matrix.count:
        raise ValueError(f"{len(text)} characters in an array {_by(matrix.shape)}")
    return [text[row::rows].rstrip(" ") for row in range(rows)]


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes where {size} should be")
    return data


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
