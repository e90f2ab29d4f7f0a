"""Feature files of our own layout: ``.npz``, ``.pt``, ``.safetensors``, folders of ``.npy`` and a single one.

Every array of numbers with two or three axes is a modality, ``[N, d]`` or ``[N, T, d]``; of integers it is said, since
they may be labels of another kind. Reserved keys:

- ``label`` (or ``labels``): ``[N]`` integers, floats or names; ``[N, C]`` 0/1 or floats. ``label=`` names another key.
- ``split``: ``[N]`` of train / valid / test, or of codes 0 / 1 / 2.
- ``id`` (or ``ids``): ``[N]`` names or numbers, unique.
- ``presence``: ``[N, M]`` booleans, modalities in the order of the file (npz, pt) or of their names (safetensors,
  folder).
- ``<modality>_presence``: ``[N]`` booleans, the same for one modality.
- ``<modality>_lengths``: ``[N]`` integers, valid steps of a sequence modality.
- ``step_lengths``: ``[N]`` integers: labels are per step, ``[N, T]`` or ``[N, T, C]``, and this many of them count.
- ``class_names``: ``[C]`` strings.

Other ``[N]`` arrays are columns, for ``group_by``, ``order_by`` and ``label``. Any other array is an error, unless it
is to be ignored or the modalities are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import did_you_mean
from ..archives import UNREADABLE, unpack_npz
from ..arrays import LazyRows
from ..files import out_of_map
from ..raw import Problem, Raw, RefusedData, Request, listing

__all__ = ["arrays_of", "as_array", "interpret", "read_folder", "read_npy", "read_npz", "read_safetensors"]

RESERVED = ("label", "labels", "split", "id", "ids", "presence", "step_lengths", "class_names")


def read_npz(path: Path, request: Request) -> Raw:
    arrays, known, key = {}, [], ""
    try:
        for key, read in unpack_npz(path):
            known.append(key)
            if key not in request.ignore:
                arrays[key] = read()
    except UNREADABLE as error:
        raise RefusedData(Problem(str(path), key, None, _numpy_reason(error))) from None
    return interpret(path, arrays, request, known)


def read_folder(path: Path, request: Request) -> Raw:
    arrays, files = {}, {}
    for file in sorted(path.glob("*.npy")):
        files[file.stem] = str(file)
        arrays[file.stem] = _map_array(file)
    if not arrays:
        present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        message = (
            f"a folder without .npy files (it holds {present}); <modality>.npy, label.npy and split.npy are expected"
        )
        raise RefusedData(Problem(str(path), "", None, message))
    raw = interpret(path, arrays, request)
    raw.modalities = {key: out_of_map(array) for key, array in raw.modalities.items()}
    raw.files = files
    return raw


def read_npy(path: Path, request: Request) -> Raw:
    """One modality, called as the file is: enough for a trained model to be applied to, and for nothing else."""
    array = _map_array(path)
    if not request.apply:
        message = (
            f"a single array {array.shape}, and nothing to learn from one: put it into a folder as {path.name}, beside "
            "label.npy or, for data.task=retrieval, a second modality; `pgm-fast predict` reads it as it is"
        )
        raise RefusedData(Problem(str(path), "", None, message))
    raw = interpret(path, {path.stem: array}, request)
    raw.modalities = {key: out_of_map(array) for key, array in raw.modalities.items()}
    return raw


def _map_array(file: Path) -> np.ndarray:
    """The array of a ``.npy`` file: a memory map, or in memory where it has one axis. Raises RefusedData."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        return array if array.ndim > 1 else np.array(array)
    except UNREADABLE as error:
        raise RefusedData(Problem(str(file), "", None, _numpy_reason(error))) from None


def read_safetensors(path: Path, request: Request) -> Raw:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            arrays = {key: as_array(file.get_tensor(key)) for key in sorted(file.keys())}
    except (SafetensorError, *UNREADABLE) as error:
        message = f"not a readable safetensors file ({error}); truncated? Write it again"
        raise RefusedData(Problem(str(path), "", None, message)) from None
    return interpret(path, arrays, request)


def arrays_of(path: Path, content: Mapping, request: Request) -> dict[str, np.ndarray]:
    """The values of a mapping that are not to be ignored, as arrays. Raises RefusedData where one is none."""
    arrays = {}
    for key, value in content.items():
        try:
            if str(key) not in request.ignore:
                arrays[str(key)] = as_array(value)
        except UNREADABLE as error:
            leave_out = f"data.ignore=[{','.join((*request.ignore, str(key)))}]"
            message = f"not an array ({error}); store a tensor, an array or a flat list, or leave it out by {leave_out}"
            raise RefusedData(Problem(str(path), str(key), None, message)) from None
    return arrays


def as_array(value) -> np.ndarray:
    """A tensor, list or array as a numpy array; bfloat16, which numpy lacks, becomes float32.

    What stays in its file is handed on as it is.
    """
    import torch

    if isinstance(value, LazyRows):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    array = np.asarray(value)
    if array.dtype.hasobject and all(isinstance(item, str) for item in array.flat):
        return array.astype(str)
    if array.dtype.hasobject:
        raise ValueError(f"a {type(value).__name__} of mixed things")
    return array


def interpret(
    path: Path, arrays: Mapping[str, np.ndarray], request: Request, known: Sequence[str] | None = None
) -> Raw:
    """Sort the arrays of a file by their keys into a :class:`Raw`. Raises RefusedData where a wanted key is missing.

    ``known``: every key of the file, where those to be ignored are not among the arrays.
    """
    request.require_ignored(str(path), list(arrays) if known is None else known)
    keys = [key for key in arrays if key not in request.ignore]
    arrays = {key: arrays[key] for key in keys}
    raw = Raw(file=str(path), name=path.stem, modalities={}, keys=keys)
    raw.label_key = _label_key(request, keys)
    if raw.label_key in arrays:
        raw.label = arrays[raw.label_key]
    elif request.task != "retrieval":
        near = did_you_mean(request.label, keys)
        message = f"no key '{request.label}' for the labels{near}; the file holds {listing(keys)}"
        cure = (
            "predict needs none"
            if request.apply
            else "name one by data.label=KEY, or do without by data.task=retrieval"
        )
        raise RefusedData(Problem(str(path), request.label, None, f"{message}; {cure}"))
    raw.split = arrays.get("split")
    raw.ids = arrays.get("ids", arrays.get("id"))
    raw.step_lengths = arrays.get("step_lengths")
    if "class_names" in arrays:
        raw.class_names = [str(name) for name in np.ravel(arrays["class_names"])]

    attached = {f"{key}_{kind}" for key in keys for kind in ("lengths", "presence")}
    free = [key for key in keys if key not in (*RESERVED, raw.label_key) and key not in attached]
    found = [key for key in free if arrays[key].ndim >= 2 and arrays[key].dtype.kind in "fiu"]
    wanted = request.wanted(found, keys)
    for key in wanted:
        if key not in arrays:
            message = f"no such modality{did_you_mean(key, found)}; the file holds {listing(found)}"
            raise RefusedData(Problem(str(path), key, None, message))
    raw.modalities = {key: arrays[key] for key in wanted}
    if not wanted:
        held = listing([_shape(key, arrays[key]) for key in keys])
        message = f"no modality: no array of numbers [N, d] or [N, T, d] among {held}"
        if request.modalities is not None:
            message = f"none of the modalities {listing(list(request.modalities))}; the file holds {held}"
        raise RefusedData(Problem(str(path), "", None, message))
    raw.columns = {key: arrays[key] for key in free if arrays[key].ndim == 1}
    if request.modalities is None or request.apply:
        _note_unread(raw, {key: arrays[key] for key in free if key not in wanted}, request)
    if request.modalities is None:
        _note_integers(raw, request)
        _note_columns(raw, request)
    for key in (raw.label_key, "id", "ids"):
        if key in arrays and arrays[key].ndim == 1:
            raw.columns[key] = arrays[key]
    raw.lengths = {key: arrays[f"{key}_lengths"] for key in wanted if f"{key}_lengths" in arrays}
    raw.presence = _presence(raw, arrays, found, wanted)
    raw.label, raw.presence = (None if array is None else np.array(array) for array in (raw.label, raw.presence))
    return raw


def _note_unread(raw: Raw, others: Mapping[str, np.ndarray], request: Request) -> None:
    """Arrays that are neither modality nor column, one problem each."""
    rows = len(raw)
    for key, array in others.items():
        what = f"{array.dtype} array {array.shape}"
        if array.ndim == 1 and len(array) != rows:
            raw.note_unread(key, what, f"a column has one value per row, {rows}", request)
        elif array.ndim != 1:
            raw.note_unread(key, what, "store it as numbers [N, d] or [N, T, d]", request)


def _note_integers(raw: Raw, request: Request) -> None:
    for key, array in raw.modalities.items():
        if array.dtype.kind in "iu":
            leave_out = f"data.ignore=[{','.join((*request.ignore, key))}]"
            message = (
                f"{array.dtype} array {array.shape} is read as a modality; if it is none, {leave_out} leaves it out"
            )
            raw.notes.append(
                raw.problem(key, None, f"{message}, and data.modalities=[...] names those that count", "warning")
            )


def _note_columns(raw: Raw, request: Request) -> None:
    """Fractions, one per row, may be meant as a modality of one feature."""
    for key, column in raw.columns.items():
        if column.dtype.kind == "f" and key not in (request.group_by, request.order_by, request.resplit_by):
            leave_out = f"data.ignore=[{','.join((*request.ignore, key))}]"
            message = f"{column.dtype} array {column.shape} is a column and no modality; store [N, 1] for one, or"
            raw.notes.append(raw.problem(key, None, f"{message} {leave_out} leaves it out", "warning"))


def _label_key(request: Request, keys: list[str]) -> str:
    return "labels" if request.label == "label" and "label" not in keys and "labels" in keys else request.label


def _presence(raw: Raw, arrays: Mapping[str, np.ndarray], found: list[str], wanted: list[str]) -> np.ndarray | None:
    single = {key: arrays[f"{key}_presence"] for key in wanted if f"{key}_presence" in arrays}
    if "presence" in arrays:
        whole = arrays["presence"]
        named = found if set(wanted) <= set(found) else wanted
        if whole.ndim != 2 or whole.shape[1] != len(named):
            message = f"shape {whole.shape}: [N, {len(named)}] booleans are expected, in the order {listing(named)}"
            raise RefusedData(raw.problem("presence", None, message))
        return np.ascontiguousarray(whole[:, [named.index(key) for key in wanted]])
    if not single:
        return None
    rows = len(raw)
    columns = [single.get(key, np.ones(rows, bool)) for key in wanted]
    for key, column in zip(wanted, columns, strict=True):
        if column.shape != (rows,):
            raise RefusedData(
                raw.problem(f"{key}_presence", None, f"shape {column.shape}: [N] with N = {rows} is expected")
            )
    return np.stack(columns, axis=1)


def _numpy_reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "may not be read by this user; change its permissions"
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "refused: an array of Python objects (a pickle); store numbers or fixed-width strings"
    return f"not readable ({type(error).__name__}: {error}); truncated or another format? Write it again"


def _shape(key: str, array: np.ndarray) -> str:
    return f"{key} {array.dtype}{list(array.shape)}"
