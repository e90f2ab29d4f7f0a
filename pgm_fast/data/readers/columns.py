"""Tables: columns of one value per row are put together to vectors by their names.

Columns called by one name, one separator (``_``, ``.``, ``:`` or none) and the numbers 0, 1, 2, ... or 1, 2, 3, ...
without a gap are an array ``[N, d]`` of that name, in the order of the numbers: ``audio_0``, ``audio_1`` are ``audio``,
and ``label_0``, ``label_1`` the labels. Any other column stays one. Those of numbers that nothing uses are an error: in
a table they may as well be meant to be learned from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..raw import Problem, Raw, RefusedData, Request, listing
from .generic import RESERVED, interpret

__all__ = ["interpret_table", "require_unique"]

NUMBERED = re.compile(r"([^\W\d].*?)([_.:]?)(\d{1,9})", re.DOTALL)
INDEX = ("", "__index_level_0__")  # what pandas calls an index without a name, in text and in Parquet
NUMBERS = "fiub"


def interpret_table(path: Path, arrays: dict[str, np.ndarray], request: Request, known: Sequence[str]) -> Raw:
    """A :class:`Raw` of the columns of a table.

    Args:
        path: for messages.
        arrays: column -> ``[N]``, ``[N, d]`` or ``[N, T, d]``; emptied, so that no number is held twice.
        request: how it is read.
        known: the names of all columns, those to be ignored among them.

    Raises:
        RefusedData: no modality, a name that is taken twice, or text among the numbers of a vector.
    """
    for name in INDEX:
        if name in arrays:
            arrays["index" if "id" in arrays or "ids" in arrays else "id"] = arrays.pop(name)
    plain = {request.label, request.group_by, request.order_by, request.resplit_by, *RESERVED}
    torn = _join_numbered(path, arrays, plain)
    for name in request.modalities or ():
        if name in arrays and arrays[name].ndim == 1 and arrays[name].dtype.kind in NUMBERS:
            arrays[name] = arrays[name][:, None]
    if request.modalities is None and not any(x.ndim > 1 for key, x in arrays.items() if key not in plain):
        message = (
            f"no modality among the columns {listing(list(arrays))}: call those of one by its name and a number, "
            "audio_0, audio_1, ..., or name single columns by data.modalities=[...]"
        )
        message += f" ({'; '.join(torn[:3])})" if torn else ""
        raise RefusedData(Problem(str(path), "", None, message))
    raw = interpret(path, arrays, request, [*known, *arrays])
    if raw.label is not None and raw.label.dtype.kind == "U" and not request.apply and (raw.label == "").any():
        row = int(np.flatnonzero(raw.label == "")[0])
        raise RefusedData(raw.problem(raw.label_key, row, "an empty cell; every row needs a label"))
    unread = [key for key, x in raw.columns.items() if key not in (*plain, raw.label_key) and x.dtype.kind in NUMBERS]
    if unread and (request.modalities is None or request.apply):
        _note_columns(raw, unread, torn, request)
    return raw


def require_unique(names: Sequence[str]) -> None:
    """Raises ValueError where two columns have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called '{twice}'; rename one")


def _join_numbered(path: Path, arrays: dict[str, np.ndarray], plain: set) -> list[str]:
    """Put vectors in the place of their columns. Returns what keeps numbered columns apart, for messages."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for key, array in arrays.items():
        found = NUMBERED.fullmatch(key) if array.ndim == 1 and key not in plain else None
        if found:
            groups.setdefault((found[1], found[2]), []).append((int(found[3]), key))
    torn = []
    for (name, _), group in groups.items():
        group.sort()
        numbers, keys = [number for number, _ in group], [key for _, key in group]
        held = [key for key in keys if arrays[key].dtype.kind in NUMBERS]
        if not held:
            continue
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            if len(numbers) > 1:
                torn.append(f"{listing(keys)} are no run of numbers from 0 or 1 without a gap")
            continue
        if len(held) < len(keys):
            _refuse_text(path, next(key for key in keys if key not in held), arrays, keys)
        if name in arrays:
            message = f"another column or vector is called so, and so are {listing(keys)} together; rename one"
            raise RefusedData(Problem(str(path), name, None, message))
        dtype = np.result_type(*(arrays[key].dtype for key in keys))
        vector = np.empty((len(arrays[keys[0]]), len(keys)), dtype)
        for place, key in enumerate(keys):
            vector[:, place] = arrays.pop(key)
        arrays[name] = vector
    return torn


def _refuse_text(path: Path, key: str, arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> None:
    for row, cell in enumerate(arrays[key].tolist()):
        try:
            float(cell)
        except ValueError:
            message = (
                f"{cell[:40]!r} is no number, and {listing(keys)} are a vector; leave the cell empty where it lacks"
            )
            raise RefusedData(Problem(str(path), key, row, message)) from None
    raise RefusedData(Problem(str(path), key, None, f"text, and {listing(keys)} are a vector of numbers"))


def _note_columns(raw: Raw, keys: Sequence[str], torn: Sequence[str], request: Request) -> None:
    few = listing(keys)
    what = f"{'a column' if len(keys) == 1 else f'{len(keys)} columns ({few})'} of numbers that nothing uses"
    what += f" ({'; '.join(torn[:3])})" if torn else ""
    names = ",".join((*request.ignore, *keys)) if len(keys) <= 20 else "..."
    cure = f"name all that counts by data.modalities=[...], or leave out the rest by data.ignore=[{names}]"
    message = what if request.apply else f"{what}: {cure}"
    raw.notes.append(raw.problem(keys[0], None, message, "warning" if request.apply else "error"))
