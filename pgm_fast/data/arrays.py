"""Arrays that are read by rows and never whole: memory maps, and rows that are joined, cleaned or grouped on reading.

A modality of a feature set is a numpy array, a read-only ``numpy.memmap``, or one of the classes here, which look like
an array to code that needs ``shape``, ``dtype``, ``len`` and row indexing.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

__all__ = [
    "AbsentRows",
    "Chunk",
    "CleanRows",
    "GroupedRows",
    "LazyRows",
    "StackedRows",
    "is_lazy",
    "iterate_valid",
    "kind_of",
    "read_rows",
    "release",
    "statistics_of",
    "without_filling",
]

# One piece of an array: large enough to hide the cost of a Python iteration, small enough for a core's cache.
CHUNK_BYTES = 2 << 20
# Scattered rows read before their pages are dropped: the kernel may map 2 MiB around each row that is touched.
SCATTERED = 16


class LazyRows:
    """Base: an array ``[N, ...]`` whose rows are made when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str = "features"
    # mean and deviation [d] to normalise by, where they are not to be measured
    statistics: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        """The rows ``[n, ...]`` with these numbers, in this order; of a sequence the first ``steps`` steps only."""
        raise NotImplementedError

    def __getitem__(self, key) -> np.ndarray:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = np.arange(len(self))[first]
        block = self.read(np.atleast_1d(rows))
        return block[(0 if np.ndim(rows) == 0 else slice(None), *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        block = self.read(np.arange(len(self)))
        return block if dtype is None else block.astype(dtype, copy=False)


class StackedRows(LazyRows):
    """The rows of several arrays end to end, each row reshaped to ``row_shape``, without copying the arrays."""

    def __init__(self, parts: Sequence[np.ndarray], row_shape: tuple[int, ...]):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.shape = (int(self.starts[-1]), *row_shape)
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for part, start, stop in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            here = np.flatnonzero((rows >= start) & (rows < stop))
            if len(here):
                out[here] = read_rows(part, rows[here] - start).reshape(len(here), *self.shape[1:])
        return out if steps is None or self.ndim == 2 else out[:, :steps]


class AbsentRows(LazyRows):
    """A modality that no row has, of zeros."""

    def __init__(self, shape: tuple[int, ...], kind: str):
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self.kind = kind

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        kept = self.shape[1:] if steps is None or self.ndim == 2 else (min(steps, self.shape[1]), *self.shape[2:])
        return np.zeros((len(rows), *kept), self.dtype)


class CleanRows(LazyRows):
    """Another array with NaN and infinities read as 0. What standardises reads ``source`` and fills afterwards."""

    def __init__(self, source):
        self.source = source
        self.shape = tuple(source.shape)
        self.dtype = source.dtype

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        block = np.array(read_rows(self.source, rows, steps))
        block[~np.isfinite(block)] = 0
        return block


class GroupedRows(LazyRows):
    """Rows ``[N, d]`` of another array arranged as sequences ``[G, T, d]``.

    ``members[G, T]`` holds row numbers, and -1 for padding, which reads as zeros.
    """

    def __init__(self, source, members: np.ndarray):
        self.source = source
        self.members = members
        self.shape = (*members.shape, *source.shape[1:])
        self.dtype = source.dtype

    def read(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        members = self.members[rows, :steps]
        wanted = members >= 0
        out = np.zeros((*members.shape, *self.shape[2:]), self.dtype)
        numbers, place = np.unique(members[wanted], return_inverse=True)
        out[wanted] = read_rows(self.source, numbers)[place]
        return out


def without_filling(array):
    """The array with its NaN and infinities, where it is one that reads 0 in their place."""
    return array.source if isinstance(array, CleanRows) else array


def is_lazy(array) -> bool:
    """Whether the array lives in a file rather than in memory."""
    return isinstance(array, (LazyRows, np.memmap))


def kind_of(array) -> str:
    """What the values are: see :class:`~pgm_fast.data.feature_set.ModalitySpec`."""
    return array.kind if isinstance(array, LazyRows) else "features"


def statistics_of(array) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation ``[d]`` that the values bring along, None where they are to be measured."""
    return array.statistics if isinstance(array, LazyRows) else None


def read_rows(array, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Rows of an array, memory map or :class:`LazyRows` as an array in memory, in the order of ``rows`` int64 ``[n]``.

    ``steps`` cuts the time axis of a sequence array. Of a plain array consecutive rows come back as a view: copy before
    writing.
    """
    if isinstance(array, LazyRows):
        return array.read(rows, steps)
    consecutive = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    source = array if steps is None or array.ndim == 2 else array[:, :steps]
    if not isinstance(array, np.memmap):
        return source[rows[0] : rows[-1] + 1] if consecutive else source[rows]
    out = np.empty((len(rows), *source.shape[1:]), array.dtype)
    row_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    size = max(1, CHUNK_BYTES // row_bytes) if consecutive else SCATTERED
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        _require_whole(array)
        out[start : start + size] = source[piece[0] : piece[-1] + 1] if consecutive else source[piece]
        release(array)
    return out


def _require_whole(array: np.memmap) -> None:
    """Raises DataError where the file of a map got shorter: touching what is not there would kill the process."""
    if array._mmap is None:
        return
    needed = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + len(array._mmap)
    if (size := array._mmap.size()) < needed:
        raise DataError(
            f"{array.filename} got shorter while it was in use: it has {size} bytes, {needed} are needed; "
            "put the whole file back, then resume (the last checkpoint is kept)"
        )


def release(array: np.memmap) -> None:
    """Drop a map's pages from this process: what was read stays in the system's cache, not in resident memory.

    Without it an epoch over a large folder counts as large in every limit on resident size. Only shared read-only maps:
    dropping the pages of a copy-on-write map would undo writes to it.
    """
    if array.mode == "r" and array._mmap is not None and hasattr(array._mmap, "madvise"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


@dataclass
class Chunk:
    """Some rows of one modality.

    Attributes:
        rows: int64 ``[n]``, ascending row numbers.
        counts: int64 ``[n]``, how many vectors each row gives (its valid steps; 1 for vector modalities).
        values: ``[counts.sum(), d]``.
    """

    rows: np.ndarray
    counts: np.ndarray
    values: np.ndarray

    def row_of(self, position: int) -> int:
        """Number of the row that ``values[position]`` belongs to."""
        return int(self.rows[np.searchsorted(np.cumsum(self.counts), position, side="right")])


def iterate_valid(
    array, rows: np.ndarray, lengths: np.ndarray | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Walk over ``rows`` (ascending) of a modality in chunks of bounded size, steps beyond ``lengths[N]`` left out."""
    row_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    size = max(1, chunk_bytes // row_bytes)
    sequence = array.ndim == 3
    for start in range(0, len(rows), size):
        here = rows[start : start + size]
        block = read_rows(array, here)
        if not sequence:
            yield Chunk(here, np.ones(len(here), np.int64), block)
        elif lengths is None:
            yield Chunk(here, np.full(len(here), block.shape[1]), block.reshape(-1, block.shape[-1]))
        else:
            valid = np.arange(block.shape[1]) < lengths[here, None]
            yield Chunk(here, np.minimum(lengths[here], block.shape[1]), block[valid])
