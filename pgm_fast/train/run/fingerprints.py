"""What tells one data set from another: a hash of every value, which files that did not change spare."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.arrays import CHUNK_BYTES, CleanRows, GroupedRows, StackedRows, read_rows
from ...data.feature_set import FeatureSet
from ...data.files import FileRows
from ...data.media import MediaRows
from ...data.media_files import Place, extent_of, open_place
from ...errors import DataError
from . import checkpoints

__all__ = ["content_marks", "differences", "fingerprint", "has_other_splits", "require_same_data"]

_STAMPS = "stamps"
_RELEVANCE = "relevance"
_SETTLED = 2.0  # seconds: a file changed later than that may change again within one tick of its clock


def fingerprint(features: FeatureSet, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Shapes, and hashes of splits, labels and every value of every modality; of sound and pictures, of their files.

    Plain containers, for checkpoints.

    Args:
        features: the data.
        known: an earlier fingerprint; where a modality's files have the names, sizes and times of then, its hash is
            taken over from there.
    """
    marks: dict[str, Any] = {"rows": len(features), "task": features.task, "splits": _hash(features.split)}
    marks["labels"] = None if features.labels is None else _hash(features.labels)
    stamps = {name: _stamp(values) for name, values in features.modalities.items()}
    for name, values in features.modalities.items():
        key, shape = f"modality {name}", [int(size) for size in values.shape]
        if known is not None and stamps[name] is not None and known.get(_STAMPS, {}).get(name) == stamps[name]:
            marks[key] = known.get(key)
        else:
            marks[key] = [*shape, _content(values)]
    for name, lengths in features.lengths.items():
        marks[f"lengths of {name}"] = _hash(lengths)
    for name in ("presence", "step_lengths"):
        value = getattr(features, name)
        marks[name] = None if value is None else _hash(value)
    if features.relevance is not None:
        marks[_RELEVANCE] = _hash(features.relevance)
    return {**marks, _STAMPS: stamps}


def content_marks(features: FeatureSet) -> dict[str, Any]:
    """The fingerprint without what says where and when files were written: the same for equal data anywhere."""
    return {key: value for key, value in fingerprint(features).items() if key != _STAMPS}


def differences(features: FeatureSet, marks: Mapping[str, Any]) -> list[str]:
    """Names of what in ``features`` is not as this fingerprint says."""
    with checkpoints.reading("fingerprints"):
        present = fingerprint(features, marks)
        # runs from before relevance was kept say nothing of it
        keys = dict.fromkeys([*marks, *(key for key in present if key != _RELEVANCE or key in marks)])
        return [key for key in keys if key != _STAMPS and marks.get(key) != present.get(key)]


def require_same_data(features: FeatureSet, marks: Mapping[str, Any]) -> None:
    """Raises DataError, naming what differs, unless ``features`` has this fingerprint."""
    different = differences(features, marks)
    if different:
        raise DataError(
            f"{features.name} is not the data that this run was started with: "
            f"{', '.join(different)} differ; give the same data, or "
            "train anew in another folder"
        )


def has_other_splits(features: FeatureSet, marks: Mapping[str, Any]) -> bool:
    """Whether ``features`` has the very values of this fingerprint, and splits of its own."""
    if len(features) != marks.get("rows"):  # other data is not hashed to learn that it is another
        return False
    different = differences(features, marks)
    return "splits" in different and not any(key.startswith("modality ") for key in different)


def _content(array) -> str:
    """A hash of all values of an array, or of the files that they are decoded from."""
    if isinstance(array, MediaRows):
        return _hash_files(array.sources())
    digest = hashlib.sha256(f"{np.dtype(array.dtype).str}{tuple(array.shape)}".encode())
    row_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    size = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(array), size):
        block = read_rows(array, np.arange(start, min(start + size, len(array))))
        digest.update(np.ascontiguousarray(block).view(np.uint8).data if block.size else b"")
    return digest.hexdigest()[:16]


def _hash_files(places: list[Place]) -> str:
    digest = hashlib.sha256()
    for place in places:
        try:
            with open_place(place) as file:
                digest.update(f"{file.seek(0, os.SEEK_END)} ".encode())
                file.seek(0)
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{place} cannot be read: {error.strerror}; put the file back") from error
    return digest.hexdigest()[:16]


def _hash(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    if array.dtype == object:
        array = array.astype(str)
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def _stamp(array) -> str | None:
    """What stays the same as long as no file of an array changes; None where it is in memory, or changed just now."""
    parts = _stamp_of(array)
    return None if parts is None else hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _stamp_of(array) -> Any:
    if isinstance(array, FileRows):
        return _file_stamp(array.path, array.status(), array.offset, array.shape, array.dtype.str)
    if isinstance(array, CleanRows):
        inner = _stamp_of(array.source)
        return None if inner is None else ("clean", inner)
    if isinstance(array, GroupedRows):
        inner = _stamp_of(array.source)
        return None if inner is None else ("grouped", inner, _hash(array.members))
    if isinstance(array, StackedRows):
        inner = [_stamp_of(part) for part in array.parts]
        return None if None in inner else ("stacked", array.shape, inner)
    if isinstance(array, MediaRows):
        try:
            inner = [_file_stamp(path, os.stat(path), *more) for path, *more in map(extent_of, array.sources())]
        except OSError:
            return None
        return None if None in inner else ("media", array.shape, inner)
    return None


def _file_stamp(path: Path, status: os.stat_result, *more: Any) -> Any:
    if status.st_mtime > time.time() - _SETTLED:
        return None
    return (str(path), status.st_size, status.st_mtime_ns, status.st_ino, *more)
