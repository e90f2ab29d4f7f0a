"""Arrays that stay in their ``.npy`` file: read by position, since a memory map of a file that gets shorter kills the
process that touches it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from ..errors import DataError
from .arrays import CHUNK_BYTES, LazyRows

__all__ = ["FileRows", "out_of_map"]


class FileRows(LazyRows):
    """An array ``[N, ...]`` in a file, rows end to end.

    The file is opened once: one that is put under its name later is not seen.

    Args:
        path: of the file.
        offset: of the first row, in bytes.
        shape: of the array, at least one axis.
        dtype: of its values.
    """

    def __init__(self, path: str | os.PathLike, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path = Path(path).resolve()
        self.offset = offset
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  (closed with the array)
        self._seeking = threading.Lock()

    def __reduce__(self):
        return FileRows, (self.path, self.offset, self.shape, self.dtype)

    def status(self) -> os.stat_result:
        """Of the open file."""
        return os.fstat(self._file.fileno())

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        kept = self.shape[1:] if steps is None or self.ndim == 2 else (min(steps, self.shape[1]), *self.shape[2:])
        out = np.empty((len(rows), *kept), self.dtype)
        if not out.size:
            return out
        place = out.reshape(len(rows), -1).view(np.uint8)
        together = kept == self.shape[1:] and _consecutive(rows)
        size = max(1, CHUNK_BYTES // self._row_bytes) if together else 1
        for start in range(0, len(rows), size):
            piece = memoryview(place[start : start + size].reshape(-1))
            self._read(piece, self.offset + int(rows[start]) * self._row_bytes)
        return out

    def _read(self, place: memoryview, position: int) -> None:
        """Fill ``place`` with what the file holds from ``position`` on."""
        done = 0
        while done < len(place):
            try:
                count = self._read_at(place[done:], position + done)
            except OSError as error:
                raise DataError(f"{self.path} cannot be read: {error.strerror}; mend the disk, then resume") from error
            if count == 0:
                needed = self.offset + len(self) * self._row_bytes
                raise DataError(
                    f"{self.path} got shorter while it was in use: it has {self.status().st_size} bytes, {needed} are "
                    "needed; put the whole file back, then resume (the last checkpoint is kept)"
                )
            done += count

    def _read_at(self, place: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [place], position)
        return self._seek_and_read(place, position)

    def _seek_and_read(self, place: memoryview, position: int) -> int:
        with self._seeking:  # a file has one position, and threads share it
            self._file.seek(position)
            return self._file.readinto(place)


def out_of_map(array: np.ndarray) -> np.ndarray | FileRows:
    """A memory map that ``numpy.load`` made, as an array that reads its file; any other array as it is.

    Rows that do not lie end to end (Fortran order) are read into memory.
    """
    if not isinstance(array, np.memmap):
        return array
    if array.ndim < 2 or not array.flags.c_contiguous:
        return np.array(array)
    return FileRows(array.filename, array.offset, array.shape, array.dtype)


def _consecutive(rows: np.ndarray) -> bool:
    return rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all())
