"""JSON files and files of JSON lines: written whole or not at all, and read with a word of what to do.

JSON knows no NaN: a number that is not finite is written as ``null``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError
from .files import atomic_write

__all__ = ["append_line", "json_line", "plain", "read_json", "read_jsonl", "to_json", "write_json"]


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, all or nothing. Numpy numbers and arrays become plain ones.

    Raises:
        CheckpointError: the file system refused.
    """
    with atomic_write(path, "w") as file:
        file.write(to_json(value) + "\n")


def to_json(value: Any) -> str:
    """``value`` as indented JSON. Numpy numbers and arrays become plain ones."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file. Raises CheckpointError where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; is this the folder of a finished run?") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); pgm-fast resume {_folder_of(path)} writes it anew"
        ) from error


def json_line(value: Any) -> str:
    """``value`` as a line of a JSON-lines file. Numpy numbers and arrays become plain ones."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n"


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a JSON-lines file and flush it to the disk.

    A last line without its end, as a killed writer leaves it, is removed first. If the file system refuses, nothing
    else changes.

    Raises:
        CheckpointError: the file system refused.
    """
    line = text.encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            try:
                written = file.write(line)
                if written != len(line):
                    file.write(line[written:])  # a short write: the second attempt names the reason
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; make room or choose another folder, then resume"
        ) from error


def read_jsonl(path: str | os.PathLike) -> list[Any]:
    """The values of a JSON-lines file; a last line without its end does not count. Empty where there is no file.

    Raises:
        CheckpointError: the file cannot be read, or a line of it is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number} is not valid JSON ({error}); pgm-fast resume {_folder_of(path)} writes it anew"
            ) from error
    return values


def plain(value: Any) -> Any:
    """``value`` in what JSON has: numpy types unpacked, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _folder_of(path: str | os.PathLike) -> str:
    return shlex.quote(str(Path(path).parent))
