"""What the values of modalities say: files that cannot be read, NaN and infinities, rows that lack a modality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from .arrays import Chunk, iterate_valid
from .media import MediaRows
from .raw import Problem, Raw, Request

__all__ = ["value_problems"]


def value_problems(raw: Raw, request: Request, shapes_fit: bool, absent_rows: bool) -> Iterator[Problem]:
    """Problems of every modality, each value read once.

    Args:
        raw: where ``absent_rows``, rows of NaN alone are marked as absent here, in ``presence``.
        request: how it is read.
        shapes_fit: whether every array has a row per sample.
        absent_rows: whether a row of NaN alone lacks the modality; else its values are NaN like others.
    """
    for name, array in list(raw.modalities.items()):
        if isinstance(array, MediaRows):
            yield from _unreadable(raw, name, array)
        elif array.ndim in (2, 3) and array.dtype.kind in "fiub" and len(array) and array.shape[-1]:
            scan = _scan(raw, name, shapes_fit, absent_rows)
            # which rows these are is not known before every array has a row for each sample
            if scan.absent and shapes_fit:
                yield from _mark_absent(raw, name, np.concatenate(scan.absent), request)
            yield from _remarks(raw, name, scan, request)


def _unreadable(raw: Raw, name: str, array: MediaRows) -> Iterator[Problem]:
    """Files that cannot be read. Only their heads are looked at: decoded values are always finite."""
    for row, file, reason in array.unreadable(np.arange(len(array))):
        yield replace(
            raw.problem(name, row, f"cannot be read: {reason}; replace it or leave the row out"), file=str(file)
        )


@dataclass
class _Scan:
    """What was found in the present rows and valid steps of a modality, as float32, which is what training sees.

    Attributes:
        rows: how many were looked at.
        counts: of NaN, +inf and -inf outside of rows of NaN alone.
        first_row: the first with one of these.
        absent: row numbers of rows of NaN alone, in pieces.
        first: the first vector.
        constant: features that have held its value so far.
    """

    rows: int
    counts: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    first_row: int | None = None
    absent: list[np.ndarray] = field(default_factory=list)
    first: np.ndarray | None = None
    constant: np.ndarray | None = None


def _scan(raw: Raw, name: str, shapes_fit: bool, absent_rows: bool) -> _Scan:
    array = raw.modalities[name]
    rows = np.arange(len(array))
    if shapes_fit and raw.presence is not None and raw.presence.shape == (len(array), len(raw.modalities)):
        rows = rows[raw.presence.astype(bool)[:, list(raw.modalities).index(name)]]
    lengths = raw.lengths.get(name)
    whole = lengths is not None and lengths.ndim == 1 and lengths.dtype.kind in "iu"
    if not (whole and array.ndim == 3 and len(lengths) == len(array)):
        lengths = None
    scan = _Scan(len(rows))
    for chunk in iterate_valid(array, rows, lengths):
        if len(chunk.values):
            _take(scan, chunk, absent_rows)
    return scan


def _take(scan: _Scan, chunk: Chunk, absent_rows: bool) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        values = chunk.values.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    row_of = None
    if not finite.all():
        row_of = np.repeat(chunk.rows, chunk.counts)
        if absent_rows and len(absent := _rows_of_nan(chunk, values)):
            scan.absent.append(absent)
            kept = ~np.isin(row_of, absent)
            values, finite, row_of = values[kept], finite[kept], row_of[kept]
    if not len(values):
        return
    if scan.first is None:
        scan.first, scan.constant = values[0].copy(), np.arange(values.shape[1])
    if len(scan.constant):
        scan.constant = scan.constant[(values[:, scan.constant] == scan.first[scan.constant]).all(axis=0)]
    if not finite.all():
        if scan.first_row is None:
            scan.first_row = int(row_of[np.flatnonzero(~finite.all(axis=1))[0]])
        scan.counts += [np.isnan(values).sum(), np.isposinf(values).sum(), np.isneginf(values).sum()]


def _rows_of_nan(chunk: Chunk, values: np.ndarray) -> np.ndarray:
    """Numbers of the rows of a chunk whose valid values are all NaN."""
    held = chunk.counts > 0
    starts = (np.cumsum(chunk.counts) - chunk.counts)[held]
    return chunk.rows[held][np.logical_and.reduceat(np.isnan(values).all(axis=1), starts)]


def _mark_absent(raw: Raw, name: str, rows: np.ndarray, request: Request) -> Iterator[Problem]:
    array = raw.modalities[name]
    if len(rows) == len(array) and not request.apply:
        message = f"every row is NaN; leave it out by data.ignore=[{','.join((*request.ignore, name))}]"
        yield raw.problem(name, None, message)
        return
    groups = raw.columns.get(request.group_by)
    if groups is not None and len(groups) == len(array):
        others = np.isin(np.arange(len(array)), rows, invert=True)
        parted = rows[np.isin(groups[rows], groups[others])]
        if len(parted):
            found = f"{len(parted)} rows are NaN and others with the same '{request.group_by}' are not, first this one"
            if request.nonfinite == "error":
                yield raw.problem(name, int(parted[0]), f"{found}; {_as_zero(request)}")
            else:
                yield raw.problem(name, int(parted[0]), f"{found}; read as 0", "note")
            rows = rows[~np.isin(rows, parted)]
    if raw.presence is None:
        raw.presence = np.ones((len(raw), len(raw.modalities)), bool)
    if raw.presence.shape != (len(array), len(raw.modalities)) or not len(rows):
        return
    raw.presence = raw.presence.astype(bool)
    raw.presence[rows, list(raw.modalities).index(name)] = False
    yield raw.problem(name, int(rows[0]), f"{len(rows)} rows are NaN, first this one: they lack {name}", "warning")


def _as_zero(request: Request) -> str:
    if request.apply:
        return "put 0 there, or train with data.nonfinite=zero"
    return "data.nonfinite=zero reads them as 0"


def _remarks(raw: Raw, name: str, scan: _Scan, request: Request) -> Iterator[Problem]:
    if scan.first_row is not None:
        kinds = zip(scan.counts.tolist(), ("NaN", "+inf", "-inf"), strict=True)
        found = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
        found = f"{found} in shape {tuple(raw.modalities[name].shape)}, first in this row"
        if request.nonfinite == "error":
            yield raw.problem(name, scan.first_row, f"{found}; finite numbers are needed ({_as_zero(request)})")
        else:
            yield raw.problem(name, scan.first_row, f"{found}; read as 0", "note")
    if scan.constant is not None and len(scan.constant) and scan.rows > 1:
        message = f"{len(scan.constant)} of {len(scan.first)} features hold one value in every row"
        yield raw.problem(name, None, f"{message} (first: {scan.constant[0]})", "note")
