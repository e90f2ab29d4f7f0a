"""Columns of Arrow as arrays: numbers, text, and lists of numbers, or of lists of them, per row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..archives import require_free
from ..packages import import_package
from ..raw import Problem, RefusedData, Request

__all__ = ["arrays_of_columns", "import_arrow"]

KINDS = "numbers, text, and lists of numbers or of lists of them are read"


def import_arrow(path: Path, module: str = "pyarrow"):
    return import_package(module, str(path), "tables (.csv, .tsv, .parquet) and folders of datasets", "tables")


def arrays_of_columns(path: Path, table, request: Request) -> dict[str, np.ndarray]:
    """The columns of a ``pyarrow.Table`` that are not to be ignored.

    Where a cell is empty (null), numbers are NaN and text is empty. A list per row is ``[N, d]``, a list of lists
    ``[N, T, d]``, padded with zeros where the rows differ in T, which ``<key>_lengths`` gives then; a row without
    a list, or with one that is empty, is NaN.

    Raises:
        RefusedData: a column of anything else, or of lists that do not fit together; more than fits into memory.
    """
    arrays: dict[str, np.ndarray] = {}
    for key, column in zip(table.column_names, table.columns, strict=True):
        if key in request.ignore:
            continue
        try:
            array, lengths = _convert(column)
        except ValueError as error:
            leave_out = f"data.ignore=[{','.join((*request.ignore, key))}]"
            message = f"{error}; {KINDS}; store it so, or leave it out by {leave_out}"
            raise RefusedData(Problem(str(path), key, None, message)) from None
        arrays[key] = array
        if lengths is not None:
            arrays.setdefault(f"{key}_lengths", lengths)
    return arrays


def _convert(column) -> tuple[np.ndarray, np.ndarray | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _convert(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _decode(column)
    if _is_text(kind):
        return _text(column), None
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _text(pc.cast(column, pa.string())), None
    if _is_list(kind):
        return _sequences(column) if _is_list(kind.value_type) else (_vectors(column), None)
    return _numbers(column), None


def _is_text(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _decode(column) -> tuple[np.ndarray, None]:
    """A column whose values are places in a list of different ones."""
    column = column.unify_dictionaries().combine_chunks()
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    pieces = []
    for chunk in chunks:
        values, _ = _convert(_chunked(chunk.dictionary))
        places = _numbers(_chunked(chunk.indices))
        if values.ndim != 1:
            raise ValueError(f"type {column.type}")
        empty = np.isnan(places) if places.dtype.kind == "f" else np.zeros(len(places), bool)
        require_free(len(places) * values.dtype.itemsize)
        if values.dtype.kind != "U" and empty.any():
            values = values.astype(np.float64)
        filled = np.append(values, "" if values.dtype.kind == "U" else 0)
        if empty.any() and values.dtype.kind != "U":
            filled[-1] = np.nan
        pieces.append(filled[np.where(empty, len(values), places).astype(np.int64)])
    return np.concatenate(pieces) if pieces else np.empty(0), None


def _chunked(array):
    import pyarrow as pa

    return pa.chunked_array([array], array.type)


def _text(column) -> np.ndarray:
    import pyarrow.compute as pc

    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    require_free(4 * max(1, longest) * len(column))
    return np.array(["" if value is None else value for value in column.to_pylist()], f"<U{max(1, longest)}")


def _numbers(column) -> np.ndarray:
    """``[N]``; empty cells are NaN, and then whole numbers floats."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_null(kind):
        require_free(4 * len(column))
        return np.full(len(column), np.nan, np.float32)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if not pa.types.is_decimal(kind):
            raise ValueError("bytes, no UTF-8 text" if pa.types.is_binary(kind) else f"type {str(kind)[:80]}")
        column, kind = pc.cast(column, pa.float64()), pa.float64()
    require_free(len(column) * max(1, kind.bit_width // 8))
    if column.null_count:
        column = pc.cast(column, pa.float64(), safe=False) if not pa.types.is_floating(kind) else column
        column = pc.fill_null(column, pa.scalar(np.nan, column.type))
    return np.asarray(column.to_numpy())


def _vectors(column) -> np.ndarray:
    """``[N, d]`` of lists of numbers."""
    import pyarrow.compute as pc

    values = _numbers(_flat(column))
    width, held = _one_length(pc.list_value_length(column))
    if held.all():
        return values.reshape(len(held), width)
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    require_free(len(held) * width * values.itemsize)
    out = np.full((len(held), width), np.nan, values.dtype)
    out[held] = values.reshape(-1, width)
    return out


def _sequences(column) -> tuple[np.ndarray, np.ndarray | None]:
    """``[N, T, d]`` of lists of lists of numbers, and the valid steps of each row where they differ."""
    import pyarrow.compute as pc

    steps = _vectors(_flat(column))
    lengths = _counts(pc.list_value_length(column))
    longest = int(lengths.max(initial=0))
    if (lengths == longest).all():
        return steps.reshape(len(lengths), longest, -1), None
    absent = lengths == 0
    steps = steps if steps.dtype.kind == "f" or not absent.any() else steps.astype(np.float64)
    require_free(len(lengths) * longest * steps.shape[1] * steps.itemsize)
    out = np.zeros((len(lengths), longest, steps.shape[1]), steps.dtype)
    out[np.arange(longest) < lengths[:, None]] = steps
    out[absent] = np.nan if absent.any() else 0
    return out, np.maximum(lengths, 1)


def _flat(column):
    import pyarrow.compute as pc

    return pc.list_flatten(column)


def _counts(lengths) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(lengths, 0).to_numpy()).astype(np.int64)


def _one_length(lengths) -> tuple[int, np.ndarray]:
    """The length that all lists have but those that are empty, and which are not."""
    counts = _counts(lengths)
    held = counts > 0
    kinds = np.unique(counts[held])
    if len(kinds) > 1:
        raise ValueError(f"lists of {kinds[0]} to {kinds[-1]} numbers, where all rows need as many")
    return int(kinds[0]) if len(kinds) else 0, held
