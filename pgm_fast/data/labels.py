"""Which task the labels mean, what is wrong with them, and their final form. Labels here are flat: one per row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import did_you_mean

__all__ = ["LABELS", "convert_labels", "decide_task", "doubt_of", "label_problems", "recode"]

LABELS = ("auto", "classes", "onehot", "sign")  # what the values of labels can be said to mean

# Floats of more distinct values than this are taken for measurements without a doubt, whole or not.
MANY_CLASSES = 100


def decide_task(label: np.ndarray, requested: str, default: str | None) -> str:
    """The task: as requested, else the format's own, else by the labels' type.

    Integers, booleans and names ``[n]`` mean classification; integers 0/1 ``[n, C]`` multilabel; floats regression.
    Labels of no known meaning count as classification, whose checks then say what is wrong.
    """
    if requested != "auto":
        return requested
    if default is not None:
        return default
    if label.dtype.kind == "f":
        return "regression"
    return "multilabel" if label.ndim == 2 and label.shape[1] > 1 else "classification"


def doubt_of(label: np.ndarray) -> str | None:
    """A doubt where labels whose type means another task look like classes, or classes like none, else None."""
    if label.ndim == 1 and label.dtype.kind in "iuUS" and 10 <= len(label) == len(np.unique(label)):
        return f"{len(label)} classes of one row each: an id, or numbers for data.task=regression?"
    if label.dtype.kind not in "iubf" or len(label) < 2:
        return None
    if label.ndim == 2 and label.shape[1] > 1:
        if np.isin(label, (0, 1)).all() and (label.sum(axis=1) == 1).all():
            return f"shape {label.shape}, one 1 in every row: data.labels=onehot for classes?"
        return None
    if label.dtype.kind == "f" and label.size == len(label):
        values = np.unique(label)
        if 2 <= len(values) <= min(MANY_CLASSES, len(label) // 2) and np.array_equal(values, np.rint(values)):
            if np.array_equal(values, np.arange(len(values))):
                return f"{label.dtype}, all of them whole numbers 0..{len(values) - 1}: data.task=classification?"
            shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
            return f"{label.dtype}, all of them one of {len(values)} whole numbers ({shown}): data.labels=classes?"
    return None


def recode(
    label: np.ndarray, used: np.ndarray, meaning: str, class_names: list[str] | None
) -> tuple[np.ndarray, int, list[str] | None]:
    """Labels whose values mean what ``data.labels`` says, as labels of classes.

    Args:
        label: ``[N, ...]``, the last axis one-hot where that is what they mean.
        used: ``[n, ...]``, the labels without padding.
        meaning: one of :data:`LABELS`, not ``auto``.
        class_names: of the source, where it names them.

    Returns:
        Labels (numbers, or names), how many classes there are, and their names in order, None for numbers.

    Raises:
        ValueError: the values cannot mean that; says which one.
    """
    if meaning == "onehot":
        if used.ndim < 2 or used.dtype.kind not in "iubf" or not np.isin(used, (0, 1)).all():
            raise ValueError(f"{used.dtype} {used.shape}, and labels=onehot needs [N, C] of 0 and 1")
        if (ones := used.sum(axis=-1) != 1).any():
            raise ValueError(f"{used[ones][0].tolist()}, and labels=onehot needs one 1 per row")
        return label.argmax(axis=-1), label.shape[-1], class_names
    if used.size != len(used):
        raise ValueError(f"shape {used.shape}, and labels={meaning} needs one value per row")
    label, used = label.reshape(label.shape[: label.ndim - used.ndim + 1]), used.reshape(-1)
    if meaning == "sign":
        if used.dtype.kind not in "iubf" or not np.isfinite(used).all():
            raise ValueError(f"{used.dtype}, and labels=sign needs finite numbers")
        return (label > 0).astype(np.int64), 2, class_names
    values = np.unique(used)
    if values.dtype.kind not in "iubfUS" or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
        raise ValueError(
            f"{values[-1]!r}, and labels=classes needs whole numbers or names; labels=sign makes two classes"
        )
    names = class_names if class_names is not None and len(class_names) == len(values) else [_name(v) for v in values]
    every, place = np.unique(label, return_inverse=True)
    table = {value: name for value, name in zip(values.tolist(), names, strict=True)}
    coded = np.array([table.get(value, names[0]) for value in every.tolist()])  # others are padding
    return coded[place.reshape(label.shape)], len(names), names


def _name(value) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    return str(value) if isinstance(value, str) else str(int(value))


def _flat(label: np.ndarray) -> np.ndarray:
    return label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label


def _first(bad: np.ndarray) -> int:
    """The first row that holds a True."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])


def label_problems(
    label: np.ndarray, task: str, num_classes: int | None, class_names: list[str] | None
) -> Iterator[tuple[int | None, str]]:
    """``(row or None, message)`` for everything that keeps flat labels from being used for ``task``."""
    label = _flat(label) if task == "classification" else label
    if label.dtype.kind not in "iubf" and not (task == "classification" and label.dtype.kind in "US"):
        yield None, f"dtype {label.dtype}: numbers are needed for {task}"
        return
    if len(label) == 0:
        yield None, "no labels"
        return
    if label.dtype.kind == "f" and not np.isfinite(label).all():
        bad = ~np.isfinite(label)
        yield _first(bad), f"{int(bad.sum())} labels are NaN or infinite; every row needs a finite label"
        return
    if task == "multilabel":
        if label.ndim != 2:
            yield None, f"shape {label.shape}: multilabel needs [N, C] of 0 and 1"
        elif not np.isin(label, (0, 1)).all():
            row = _first(~np.isin(label, (0, 1)))
            value = next(v for v in label[row].tolist() if v not in (0, 1))
            yield row, f"label {value} out of range: multilabel needs 0 and 1"
    elif task == "regression":
        if label.ndim > 2:
            yield None, f"shape {label.shape}: regression needs [N] or [N, K]"
    elif task == "classification":
        yield from _class_problems(label, num_classes, class_names)


def _class_problems(
    label: np.ndarray, num_classes: int | None, class_names: list[str] | None
) -> Iterator[tuple[int | None, str]]:
    if label.ndim != 1:
        yield (
            None,
            f"shape {label.shape}: classification needs one class per row [N]; [N, C] of 0/1 is multilabel",
        )
        return
    if label.dtype.kind in "US":
        names = [str(name) for name in np.unique(label.astype(str))]
        if class_names is None and num_classes is not None:
            yield 0, f"label '{label[0]}' is a name, and the classes are the numbers 0..{num_classes - 1}"
        elif class_names is not None and not set(names) <= set(class_names):
            unknown = next(name for name in names if name not in class_names)
            row = int(np.flatnonzero(label.astype(str) == unknown)[0])
            allowed = ", ".join(class_names)
            yield (
                row,
                f"label '{unknown}' is not in class_names{did_you_mean(unknown, class_names)}; allowed are {allowed}",
            )
        return
    if label.dtype.kind == "f" and (label != np.rint(label)).any():
        row = int(np.flatnonzero(label != np.rint(label))[0])
        yield row, f"label {label[row]} is no class number: whole numbers 0..C-1 are needed, or task=regression"
        return
    values = label.astype(np.int64)
    classes = np.unique(values)
    limit = num_classes if num_classes is not None else len(class_names) if class_names is not None else None
    if classes[0] < 0:
        row = int(np.flatnonzero(values < 0)[0])
        cure = " (data.labels=classes renumbers those of a file)" if limit is None else ""
        yield row, f"label {values[row]} out of range: classes are numbered 0..C-1{cure}"
    if limit is not None and classes[-1] >= limit:
        row = int(np.flatnonzero(values >= limit)[0])
        yield row, f"label {values[row]} out of range: there are {limit} classes, 0..{limit - 1}"
    elif limit is None and classes[0] >= 0:
        gaps = np.flatnonzero(classes != np.arange(len(classes)))
        if len(gaps):
            value = classes[gaps[0]]
            row = int(np.flatnonzero(values == value)[0])
            advice = f"subtract {value}" if gaps[0] == 0 and classes[-1] == value + len(classes) - 1 else "renumber"
            yield (
                row,
                f"label {value} but no row holds class {gaps[0]}: classes are numbered 0..C-1 without gaps "
                f"({advice}; data.labels=classes does it for a file)",
            )


def convert_labels(
    label: np.ndarray, task: str, num_classes: int | None, class_names: list[str] | None
) -> tuple[np.ndarray, int | None, list[str] | None]:
    """Flat labels in their final form, the number of classes and their names, of labels without problems."""
    if task == "classification":
        label = _flat(label)
        if label.dtype.kind in "US":
            label = label.astype(str)
            class_names = class_names or [str(name) for name in np.unique(label)]
            label = np.asarray([class_names.index(name) for name in np.unique(label)])[
                np.unique(label, return_inverse=True)[1]
            ]
        label = label.astype(np.int64)
        return label, num_classes or (len(class_names) if class_names else int(label.max()) + 1), class_names
    if task == "multilabel":
        return label.astype(np.int64), None, class_names
    return label.astype(np.float32), None, None
