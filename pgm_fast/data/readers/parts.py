"""Sources that keep their splits apart, ``{train|valid|test: {key: array}}``: rows are joined in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import did_you_mean
from ..arrays import StackedRows, is_lazy
from ..feature_set import SPLITS
from ..raw import Problem, Raw, RefusedData, Request
from .generic import as_array, interpret

__all__ = ["columns_of", "has_parts", "interpret_members", "interpret_parts", "parts_of", "places_of"]

NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "test": "test"}


def has_parts(content) -> bool:
    """Whether a mapping is one of splits."""
    return isinstance(content, Mapping) and bool(content) and all(isinstance(x, Mapping) for x in content.values())


def parts_of(path: Path, content, request: Request) -> dict[str, Mapping]:
    """The parts by our names of the splits. A model may be applied to any of them; training needs train and test."""
    if not has_parts(content):
        message = "a dict of splits {train, valid, test}, each a dict of arrays, is expected"
        raise RefusedData(Problem(str(path), "", None, message))
    held = ", ".join(map(str, content))
    request.require_ignored(
        str(path), [str(key) for key in (*content, *{key: 0 for part in content.values() for key in part})]
    )
    found = {}
    for name in (name for name in content if str(name) not in request.ignore):
        split = NAMES.get(str(name).lower())
        if split is None or split in found:
            leave_out = f"data.ignore=[{','.join((*request.ignore, str(name)))}]"
            message = f"'{name}' among the splits {held}; train, valid (or val, dev) and test are read, once each; "
            message += f"leave it out by {leave_out}"
            raise RefusedData(Problem(str(path), str(name), None, message))
        found[split] = content[name]
    if not request.apply and not {"train", "test"} <= set(found):
        message = f"splits {held} found; 'train' and 'test' are needed ('valid' beside them)"
        raise RefusedData(Problem(str(path), "", None, message))
    return {name: found[name] for name in SPLITS if name in found}


def columns_of(path: Path, splits: Mapping[str, Mapping], key: str, convert: Callable = as_array) -> list[np.ndarray]:
    """One array of every part. Raises RefusedData where a part lacks it, it is none, or the shapes differ."""
    arrays = []
    for name, part in splits.items():
        if key not in part:
            hint = f"{did_you_mean(key, [str(k) for k in part])}; it holds {', '.join(map(str, part))}"
            raise RefusedData(Problem(str(path), f"{name}/{key}", None, f"no such key{hint}"))
        try:
            arrays.append(convert(part[key]))
        except (ValueError, TypeError) as error:
            message = f"not an array of numbers ({error})"
            raise RefusedData(Problem(str(path), f"{name}/{key}", None, message)) from None
    shapes = [array.shape for array in arrays]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        message = f"shapes {shapes} differ between the splits beyond the first axis"
        raise RefusedData(Problem(str(path), key, None, message))
    return arrays


def places_of(splits: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Where the rows of each part begin, as :attr:`~pgm_fast.data.raw.Raw.parts` has it."""
    return [(f"{name}/{{key}}", int(start)) for name, start in zip(splits, np.cumsum([0, *sizes])[:-1], strict=True)]


def interpret_parts(path: Path, content: Mapping, request: Request) -> Raw:
    """Parts that hold the arrays of our own layout, see :mod:`.generic`."""
    splits = parts_of(path, content, request)
    keys = list(dict.fromkeys(str(key) for part in splits.values() for key in part))
    arrays = {}
    for key in keys:
        if key not in request.ignore:
            found = columns_of(path, splits, key)
            single = key == "class_names" or found[0].ndim == 0
            arrays[key] = found[0] if single else _joined(found)
    per_row = next((key for key in arrays if arrays[key].ndim >= 2), None)
    if per_row is None:
        message = f"no modality: no array of numbers [N, d] or [N, T, d] among {', '.join(keys)}"
        raise RefusedData(Problem(str(path), "", None, message))
    sizes = [len(part[per_row]) for part in splits.values()]
    arrays["split"] = np.repeat(list(splits), sizes)
    raw = interpret(path, arrays, request, known=[*map(str, content), *keys])
    raw.parts = places_of(list(splits), sizes)
    return raw


def interpret_members(path: Path, content: Mapping, request: Request) -> Raw:
    """Arrays of our own layout, or mappings of such, which are splits; what is to be ignored is among them, empty."""
    held = {key: value for key, value in content.items() if key not in request.ignore}
    if not held:
        raise RefusedData(Problem(str(path), "", None, "holds no array; <modality>, label and split are expected"))
    if has_parts(held):
        return interpret_parts(path, {key: held.get(key, {}) for key in content}, request)
    for key, value in held.items():
        if isinstance(value, Mapping):
            leave_out = f"data.ignore=[{','.join((*request.ignore, key))}]"
            message = "holds arrays of its own, and there are others beside it: splits do, and then all of them, or "
            raise RefusedData(Problem(str(path), key, None, f"{message}leave it out by {leave_out}"))
    return interpret(path, content, request)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray | StackedRows:
    return StackedRows(parts, parts[0].shape[1:]) if any(map(is_lazy, parts)) else np.concatenate(parts)
