"""Folders that ``datasets``' ``save_to_disk`` wrote, of a Dataset or a DatasetDict: their Arrow files are read as they
are, without that library, so that nothing in such a folder can name code or an address."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from ..archives import UNREADABLE, require_free
from ..raw import Problem, Raw, RefusedData, Request, listing, one_line
from .arrow import arrays_of_columns, import_arrow
from .columns import interpret_table, require_unique
from .parts import parts_of, places_of

__all__ = ["is_saved", "read_saved"]

LONGEST_JSON = 16 << 20  # bytes
NUMBER = 8


def is_saved(path: Path) -> bool:
    """Whether a folder is one."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved(path: Path, request: Request) -> Raw:
    """A saved Dataset, or the splits of a saved DatasetDict; columns as in a table, see :mod:`.columns`.

    The names of a ``ClassLabel`` are those of the classes. A DatasetDict of one split has none.
    """
    pa = import_arrow(path)
    if not (path / "dataset_dict.json").is_file():
        return _interpret(path, _read(path), request)
    names = _json(path / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
        raise RefusedData(Problem(str(path / "dataset_dict.json"), "splits", None, "not a list of names of folders"))
    tables = {name: _read(path / name) for name in names if name not in request.ignore}
    if len(tables) == 1:
        (name, table), *_ = tables.items()
        return _interpret(path, table, request, names=names, labels=path / name)
    held = {name: dict(zip(table.column_names, table.columns, strict=True)) for name, table in tables.items()}
    splits = parts_of(path, held | {name: {} for name in names if name in request.ignore}, request)
    columns = list(dict.fromkeys(key for part in splits.values() for key in part if key not in request.ignore))
    for split, part in splits.items():
        for key in columns:
            first = next(other[key] for other in splits.values() if key in other)
            if key not in part or part[key].type != first.type:
                what = "no such column" if key not in part else f"type {part[key].type}, and {first.type} elsewhere"
                message = f"{what}; splits have the same columns, or leave it out by data.ignore=[{key}]"
                raise RefusedData(Problem(str(path), f"{split}/{key}", None, message))
    sizes = [len(next(iter(part.values()), ())) for part in splits.values()]
    pieces = {key: [chunk for part in splits.values() for chunk in part[key].chunks] for key in columns}
    kinds = {key: next(iter(splits.values()))[key].type for key in columns}
    table = pa.table({key: pa.chunked_array(chunks, kinds[key]) for key, chunks in pieces.items()})
    raw = _interpret(path, table, request, np.repeat(list(splits), sizes), names, path / next(iter(tables)))
    raw.parts = places_of(list(splits), sizes)
    return raw


def _interpret(
    path: Path, table, request: Request, split: np.ndarray | None = None, names: list = (), labels: Path | None = None
) -> Raw:
    if not table.num_rows:
        raise RefusedData(Problem(str(path), "", None, f"no rows; columns are {listing(table.column_names)}"))
    arrays = arrays_of_columns(path, table, request)
    if split is not None:
        arrays["split"] = split
    raw = interpret_table(path, arrays, request, [*names, *table.column_names])
    features = _json((labels or path) / "dataset_info.json").get("features")
    feature = features.get(raw.label_key) if isinstance(features, dict) else None
    if raw.label is not None and raw.class_names is None and isinstance(feature, dict):
        classes = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(classes, list) and raw.label.dtype.kind in "iu":
            raw.class_names = [str(name) for name in classes]
    return raw


def _read(folder: Path):
    """The table of a saved Dataset."""
    pa = import_arrow(folder)
    files = _json(folder / "state.json").get("_data_files")
    names = [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    tables = []
    for name in names:
        if not _is_name(name) or (folder / name).resolve().parent != folder.resolve():
            message = f"names the file {str(name)[:80]!r}, which is not in this folder; save the data set again"
            raise RefusedData(Problem(str(folder / "state.json"), "", None, message))
        tables.append(_read_stream(folder / name))
    if not tables:
        raise RefusedData(Problem(str(folder / "state.json"), "", None, "names no data file; save the data set again"))
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        message = f"its data files do not fit together ({one_line(error)}); save the data set again"
        raise RefusedData(Problem(str(folder), "", None, message)) from None


def _read_stream(file: Path):
    """The table in an Arrow stream, in memory. Its buffers are parts of the file: compressed ones are refused, since
    what they take is known only once it is taken."""
    pa = import_arrow(file)
    try:
        size = file.stat().st_size
        require_free(size)
        content = pa.py_buffer(file.read_bytes())
        for message in pa.ipc.MessageReader.open_stream(content):
            if message.type not in ("schema", "record batch"):
                raise ValueError(f"a message of kind {message.type}, which save_to_disk does not write")
            if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
                raise ValueError("compressed, which save_to_disk does not write")
        with pa.ipc.open_stream(content) as stream:
            require_unique(stream.schema.names)
            batches, rows = [], 0
            for batch in stream:
                rows += batch.num_rows
                require_free(NUMBER * rows)
                batch.validate(full=True)
                batches.append(batch)
            return pa.Table.from_batches(batches, stream.schema)
    except (pa.ArrowException, *UNREADABLE) as error:
        reason = f"not a readable Arrow stream ({one_line(error)}); truncated? Save the data set again"
        raise RefusedData(Problem(str(file), "", None, reason)) from None


def _is_compressed(metadata: bytes) -> bool:
    """Whether the flatbuffer of a message, which Arrow has verified, is of a record batch with a compression.

    Fields by their places in Arrow's Message.fbs: ``Message.header`` is 2, ``RecordBatch.compression`` is 3.
    """
    message = struct.unpack_from("<I", metadata)[0]
    header = _field(metadata, message, 2)
    if header is None:
        raise ValueError("a record batch without a header")
    return _field(metadata, header + struct.unpack_from("<I", metadata, header)[0], 3) is not None


def _field(buffer: bytes, table: int, place: int) -> int | None:
    """Where a field of a table of a flatbuffer lies, None where it is left out."""
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    slot = 4 + 2 * place
    if slot >= struct.unpack_from("<H", buffer, fields)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, fields + slot)[0]
    return table + offset if offset else None


def _json(file: Path) -> dict:
    try:
        if file.stat().st_size > LONGEST_JSON:
            raise ValueError(f"longer than {LONGEST_JSON >> 20} MB")
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except UNREADABLE as error:
        message = f"not readable ({type(error).__name__}: {one_line(error)}); save the data set again"
        raise RefusedData(Problem(str(file), "", None, message)) from None


def _is_name(name) -> bool:
    return isinstance(name, str) and bool(name) and name not in (".", "..") and not any(c in name for c in "/\\\0:")
