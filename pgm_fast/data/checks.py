"""Everything that can be wrong with a source, in one place: loading and ``check-data`` both ask here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from ..errors import DataError, did_you_mean
from .arrays import LazyRows
from .feature_set import SPLITS, TASKS, FeatureSet
from .grouping import disagreement
from .labels import LABELS, decide_task, doubt_of, label_problems, recode
from .raw import Problem, Raw, RefusedData, Request
from .readers import read
from .splitting import RESPLITS
from .values import value_problems

__all__ = ["check_features", "examine", "find_problems", "normal_split"]

# What a model's parts that serve all modalities are called; attributes of a ModuleDict are the other reserved names.
RESERVED = "shared"  # names what serves all modalities, where learning rates are given by modality
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "test": "test",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
}
SPLIT_CODES = dict(enumerate(SPLITS))


def examine(request: Request) -> tuple[Raw | None, list[Problem]]:
    """Read a source and find all that is wrong with it. ``None`` where it could not be read at all."""
    try:
        _check_request(request)
        raw = read(request)
        _recode_labels(raw, request)
        _use_classes(raw, request)
    except RefusedData as refused:
        return None, [refused.problem]
    except DataError as error:
        file, _, message = str(error).partition(": ")
        return None, [Problem(file, "", None, message)]
    return raw, [*find_problems(raw, request), *raw.notes]


def _check_request(request: Request) -> None:
    if request.task not in ("auto", *TASKS):
        message = f"unknown task '{request.task}'{did_you_mean(request.task, TASKS)}; one of auto, {', '.join(TASKS)}"
        raise RefusedData(Problem(request.source, "task", None, message))
    if request.labels not in LABELS:
        message = f"'{request.labels}' is not one of {', '.join(LABELS)}{did_you_mean(request.labels, LABELS)}"
        raise RefusedData(Problem(request.source, "labels", None, message))
    if request.labels != "auto" and request.task not in ("auto", "classification", "retrieval"):
        message = f"'{request.labels}' makes classes, and task={request.task} needs none; leave one of them out"
        raise RefusedData(Problem(request.source, "labels", None, message))
    if request.nonfinite not in ("error", "zero"):
        raise RefusedData(
            Problem(request.source, "nonfinite", None, f"'{request.nonfinite}' is not one of error, zero")
        )
    if request.modalities is not None and (
        not request.modalities or len(set(request.modalities)) < len(request.modalities)
    ):
        message = f"{list(request.modalities)}: name each modality once, at least one, or leave it out for all"
        raise RefusedData(Problem(request.source, "modalities", None, message))
    if request.resplit not in RESPLITS:
        message = f"'{request.resplit}' is not one of {', '.join(RESPLITS)}"
        raise RefusedData(Problem(request.source, "resplit", None, message))
    if request.resplit_by is not None and request.resplit == "none":
        message = f"'{request.resplit_by}' keeps no rows together without resplit=all or resplit=validation"
        raise RefusedData(Problem(request.source, "resplit_by", None, message))
    if request.order_by is not None and request.group_by is None:
        raise RefusedData(
            Problem(request.source, "order_by", None, f"'{request.order_by}' orders nothing without group_by")
        )


def check_features(features: FeatureSet, *, apply: bool = False) -> None:
    """What :func:`load` checks of a file, for a feature set built in code. Reads every value once.

    ``apply``: the data is for a trained model to be applied to; labels may be left out, and no split needs rows.

    Raises:
        DataError: the first problem, and how many more there are.
    """
    raw = Raw(
        file=features.name,
        name=features.name,
        modalities=dict(features.modalities),
        label=None if features.task == "retrieval" else features.labels,
        label_key="labels",
        split=features.split,
        ids=features.ids,
        presence=features.presence,
        lengths=dict(features.lengths),
        step_lengths=features.step_lengths,
        num_classes=features.num_classes,
        class_names=features.class_names,
    )
    problems = list(_unusual(raw, features, apply))
    if not problems:
        request = Request(source=features.name, task=features.task, apply=apply)
        # Absent rows need a length too: here nothing comes after the checks that would give them one.
        problems = [*_lengths(replace(raw, presence=None))]
        if raw.step_lengths is not None:
            raw.lengths = dict.fromkeys(raw.modalities, raw.step_lengths) | raw.lengths
        found = find_problems(raw, request, absent_rows=False)
        problems = problems or [p for p in found if p.severity == "error"]
    if problems:
        more = len(problems) - 1
        raise RefusedData(problems[0], f"{problems[0]}" + (f" ({more} more)" if more else ""))


def _unusual(raw: Raw, features: FeatureSet, apply: bool) -> Iterator[Problem]:
    """What a reader never hands on: other types than arrays, and values that loading would have converted."""
    if features.task not in TASKS:
        message = f"unknown task '{features.task}'{did_you_mean(features.task, TASKS)}; one of {', '.join(TASKS)}"
        yield raw.problem("task", None, message)
        return
    if not raw.modalities:
        yield raw.problem("modalities", None, "none; at least one array [N, d] or [N, T, d] is needed")
    if raw.label is None and features.task != "retrieval" and not apply:
        yield raw.problem("labels", None, f"None, and {features.task} needs labels")
    if raw.split is None:
        yield raw.problem("split", None, "None; [N] of train / valid / test is needed")
    for name in raw.lengths.keys() - raw.modalities.keys():
        yield raw.problem(f"{name}_lengths", None, f"no such modality{did_you_mean(name, list(raw.modalities))}")
    named = {
        "labels": raw.label,
        "split": raw.split,
        "ids": raw.ids,
        "presence": raw.presence,
        "step_lengths": raw.step_lengths,
    }
    named |= raw.modalities | {f"{name}_lengths": value for name, value in raw.lengths.items()}
    usable = True
    for name, array in named.items():
        if array is not None and not (isinstance(array, (np.ndarray, LazyRows)) and array.ndim):
            usable = False
            message = f"a {type(array).__name__} where a numpy array of one row per sample is needed (tensor.numpy())"
            yield raw.problem(name, None, message)
    if not usable or raw.split is None:
        return
    if raw.split.ndim == 1 and len(wrong := np.flatnonzero(~np.isin(raw.split.astype(str), SPLITS))):
        message = f"'{raw.split[wrong[0]]}' is not one of {', '.join(SPLITS)}"
        yield raw.problem("split", int(wrong[0]), message)
    if raw.presence is not None and (raw.presence.ndim != 2 or raw.presence.dtype != bool):
        message = f"{raw.presence.dtype}{list(raw.presence.shape)}: bool [N, {len(raw.modalities)}] is needed"
        yield raw.problem("presence", None, message)
    if features.relevance is not None:
        yield from _wrong_relevance(raw, features)
    if (
        raw.label is not None
        and features.task in ("classification", "multilabel")
        and raw.label.dtype.kind not in "iub"
    ):
        yield raw.problem("labels", None, f"dtype {raw.label.dtype}: {features.task} needs integers")


def _wrong_relevance(raw: Raw, features: FeatureSet) -> Iterator[Problem]:
    relevance = features.relevance
    if features.task != "retrieval" or features.per_step:
        yield raw.problem("relevance", None, "given, and only retrieval of whole samples has it; leave it out")
    elif not isinstance(relevance, np.ndarray) or relevance.ndim not in (1, 2) or relevance.dtype.kind not in "iub":
        found = getattr(relevance, "dtype", type(relevance).__name__)
        shape = list(getattr(relevance, "shape", ()))
        yield raw.problem("relevance", None, f"{found}{shape}: classes, int [N], or 0/1 labels [N, C] are needed")
    elif len(relevance) != len(features):
        yield raw.problem("relevance", None, f"{len(relevance)} rows where split has {len(features)}")
    elif relevance.ndim == 2 and not np.isin(relevance, (0, 1)).all():
        yield raw.problem("relevance", None, "holds other values than 0 and 1; classes by number are [N]")


def _recode_labels(raw: Raw, request: Request) -> None:
    """Put classes in the place of labels whose values mean classes in a way that was asked for."""
    if request.labels == "auto" or raw.label is None or not len(raw.label):
        return
    label = used = raw.label
    if raw.step_lengths is not None and label.ndim > 1 and len(raw.step_lengths) == len(label):
        used = label[np.arange(label.shape[1]) < raw.step_lengths[:, None]]
    try:
        raw.label, raw.num_classes, raw.class_names = recode(label, used, request.labels, raw.class_names)
    except ValueError as error:
        raise RefusedData(raw.problem(raw.label_key, None, str(error))) from None
    raw.default_task = "classification"


def _use_classes(raw: Raw, request: Request) -> None:
    """Put the classes that were asked for in the place of the source's own, labels recoded by name."""
    if request.num_classes is not None:
        raw.num_classes = request.num_classes
    if request.class_names is None:
        return
    own, raw.class_names = raw.class_names, list(request.class_names)
    if own is None or own == raw.class_names or raw.label is None or raw.label.dtype.kind in "US":
        return
    in_range = raw.label.dtype.kind in "iu" and raw.label.size and 0 <= raw.label.min() and raw.label.max() < len(own)
    if request.task not in ("auto", "classification") or not in_range:
        message = f"{own} differ from the classes asked for, {raw.class_names}; labels by name can be recoded"
        raise RefusedData(raw.problem("class_names", None, message))
    raw.label = np.asarray(own)[raw.label]


def find_problems(raw: Raw, request: Request, absent_rows: bool = True) -> Iterator[Problem]:
    """All problems of a readable source, structure first, then values.

    With ``absent_rows`` a row of NaN alone is marked in ``raw.presence`` as one that lacks the modality.
    """
    rows = len(raw)
    shapes_fit = True
    for problem in _shapes(raw, rows):
        shapes_fit = False
        yield problem
    yield from _names(raw)
    yield from _splits(raw, request.apply)
    yield from _ids(raw, request)
    yield from _lengths(raw)
    yield from _columns(raw, request, rows)
    if request.group_by is not None:
        yield from _groups(raw, request, rows)
    if raw.label is not None:
        yield from _labels(raw, request)
    yield from value_problems(raw, request, shapes_fit, absent_rows)
    yield from _presence(raw, rows)


def _shapes(raw: Raw, rows: int) -> Iterator[Problem]:
    reference = next((name for name, array in raw.modalities.items() if len(array) == rows), raw.label_key)
    per_row = {**raw.modalities, raw.label_key: raw.label, "split": raw.split, "id": raw.ids, "presence": raw.presence}
    per_row |= {f"{name}_lengths": value for name, value in raw.lengths.items()} | {"step_lengths": raw.step_lengths}
    for name, array in per_row.items():
        if array is not None and array.ndim == 0:
            yield raw.problem(name, None, f"a single value where one per row [N] with N = {rows} is expected")
        elif array is not None and len(array) != rows:
            yield raw.problem(
                name, None, f"{len(array)} rows (shape {array.shape}) where {reference} has {rows}; all need the same N"
            )
    for name, array in raw.modalities.items():
        if array.ndim not in (2, 3):
            yield raw.problem(name, None, f"shape {array.shape}: a modality is [N, d] or [N, T, d]; flatten the rest")
        elif 0 in array.shape:
            yield raw.problem(name, None, f"shape {array.shape}: empty")
        if array.dtype.kind not in "fiub":
            yield raw.problem(name, None, f"dtype {array.dtype}: numbers are needed")
    if raw.step_lengths is not None:
        steps = {array.shape[1] for array in raw.modalities.values() if array.ndim == 3}
        if len(steps) != 1 or any(array.ndim != 3 for array in raw.modalities.values()):
            shapes = {name: array.shape for name, array in raw.modalities.items()}
            yield raw.problem(
                "step_lengths", None, f"labels per step need every modality as [N, T, d] with one T; got {shapes}"
            )
        elif raw.label is not None and (raw.label.ndim < 2 or raw.label.shape[1] != next(iter(steps))):
            yield raw.problem(
                raw.label_key, None, f"shape {raw.label.shape}: with step_lengths labels are [N, {next(iter(steps))}]"
            )


def _names(raw: Raw) -> Iterator[Problem]:
    taken = nn.ModuleDict()
    for name in raw.modalities:
        if name == RESERVED or hasattr(taken, name):
            yield raw.problem(name, None, f"modality name '{name}' is reserved; rename the key, to '{name}_' say")
        elif not name or any(c in "./" or c.isspace() for c in name):
            yield raw.problem(name, None, f"modality name '{name}' holds '.', '/' or a space; rename the key")


def normal_split(split: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Split names ``[N]`` from names, synonyms (val, dev) or codes, and the first row that is none of them, or None."""
    if split.dtype.kind in "iubf":
        table, values = SPLIT_CODES, split
    else:
        table, values = SPLIT_NAMES, np.char.strip(split.astype(str))
    kinds, place = np.unique(values, return_inverse=True)
    known = np.array([table.get(kind, "") for kind in kinds.tolist()], dtype="<U5")[place.reshape(-1)]
    wrong = np.flatnonzero(known == "")
    return known, int(wrong[0]) if len(wrong) else None


def _splits(raw: Raw, apply: bool) -> Iterator[Problem]:
    if raw.split is None:
        if len(raw) < 3 and not apply:
            yield raw.problem("split", None, f"{len(raw)} rows: too few for a train / valid / test split")
        return
    if raw.split.ndim != 1 or raw.split.dtype.kind not in "iubfUS":
        yield raw.problem(
            "split",
            None,
            f"{raw.split.dtype}{list(raw.split.shape)}: [N] of train / valid / test or 0 / 1 / 2 is needed",
        )
        return
    split, wrong = normal_split(raw.split)
    if wrong is not None:
        yield raw.problem("split", wrong, f"'{raw.split[wrong]}' is not one of train, valid, test (or 0, 1, 2)")
        return
    if apply:
        return
    for name in ("train", "test"):
        if not (split == name).any():
            message = f"no {name} rows; mark some, or leave 'split' out for a seeded 70/10/20 split"
            yield raw.problem("split", None, message, "error" if name == "train" else "note")
    if (split == "train").sum() == 1 and not (split == "valid").any():
        yield raw.problem("split", None, "one train row and no valid rows: nothing to validate on")


def _ids(raw: Raw, request: Request) -> Iterator[Problem]:
    if raw.ids is None or request.group_by is not None:
        return
    if raw.ids.ndim != 1:
        yield raw.problem("id", None, f"shape {raw.ids.shape}: one id per row [N] is needed")
        return
    values, first, counts = np.unique(raw.ids, return_index=True, return_counts=True)
    if len(values) < len(raw.ids):
        k = int(np.flatnonzero(counts > 1)[0])
        row = int(np.flatnonzero(raw.ids == values[k])[1])
        extra = int((counts - 1).sum())
        message = f"id '{values[k]}' is already in row {first[k]} ({extra} repeats); make ids unique, or leave them out"
        yield raw.problem("id", row, message)


def _whole_numbers(array: np.ndarray) -> bool:
    return array.ndim == 1 and array.dtype.kind in "iu"


def _lengths(raw: Raw) -> Iterator[Problem]:
    named = {f"{name}_lengths": (value, raw.modalities[name]) for name, value in raw.lengths.items()}
    if raw.step_lengths is not None:
        named["step_lengths"] = (raw.step_lengths, next(iter(raw.modalities.values())))
    for key, (value, array) in named.items():
        if not _whole_numbers(value):
            yield raw.problem(key, None, f"{value.dtype}{list(value.shape)}: integers [N] are needed")
            continue
        if array.ndim != 3:
            yield raw.problem(key, None, f"lengths for an array of shape {array.shape}, which is no sequence [N, T, d]")
            continue
        longest = array.shape[1]
        wrong = (value < 1) | (value > longest)
        if (
            raw.presence is not None
            and key != "step_lengths"
            and raw.presence.shape == (len(value), len(raw.modalities))
        ):
            absent = ~raw.presence.astype(bool)[:, list(raw.modalities).index(key.removesuffix("_lengths"))]
            wrong &= ~(absent & (value == 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            found = f"length {value[row]} out of range ({int(wrong.sum())} such rows)"
            message = f"{found}; 1..{longest} is allowed, the array is {array.shape}"
            yield raw.problem(key, row, message)


def _presence(raw: Raw, rows: int) -> Iterator[Problem]:
    if raw.presence is None or raw.presence.ndim != 2 or len(raw.presence) != rows:
        return
    if raw.presence.shape[1] != len(raw.modalities):
        found, names = raw.presence.shape, ", ".join(raw.modalities)
        yield raw.problem(
            "presence", None, f"shape {found}: [N, {len(raw.modalities)}] is expected, in the order {names}"
        )
    elif not np.isin(raw.presence, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(raw.presence, (0, 1)).all(axis=1))[0])
        yield raw.problem("presence", row, f"{raw.presence[row].tolist()}: true and false (or 1 and 0) are needed")
    elif not raw.presence.any(axis=1).all():
        row = int(np.flatnonzero(~raw.presence.any(axis=1))[0])
        count = int((~raw.presence.any(axis=1)).sum())
        yield raw.problem("presence", row, f"no modality is present ({count} such rows); leave such rows out")


def _columns(raw: Raw, request: Request, rows: int) -> Iterator[Problem]:
    for argument in ("group_by", "order_by", "resplit_by"):
        key = getattr(request, argument)
        if key is not None and key not in raw.columns:
            hint = f"{did_you_mean(key, list(raw.columns))}; columns are {', '.join(raw.columns) or 'none'}"
            yield raw.problem(key, None, f"no such column for {argument}{hint}")
        elif key is not None and len(raw.columns[key]) != rows:
            yield raw.problem(
                key, None, f"{len(raw.columns[key])} values for {rows} rows; {argument} needs one per row"
            )


def _groups(raw: Raw, request: Request, rows: int) -> Iterator[Problem]:
    for name, array in raw.modalities.items():
        if array.ndim == 3:
            yield raw.problem(
                name, None, f"shape {array.shape}: group_by makes sequences of vectors [N, d], this is one already"
            )
    groups = raw.columns.get(request.group_by)
    if groups is None or len(groups) != rows:
        return
    if raw.split is not None and raw.split.ndim == 1 and len(raw.split) == rows:
        found = disagreement(groups, raw.split)
        if found:
            yield raw.problem(
                "split",
                found[0],
                f"{found[1]}: a group in two splits; give all rows with one '{request.group_by}' one split",
            )
    if raw.presence is not None and len(raw.presence) == rows:
        found = disagreement(groups, raw.presence)
        if found:
            yield raw.problem(
                "presence", found[0], f"{found[1]}: a modality is present in a whole sequence or not at all"
            )
    if raw.split is None and not request.apply and len(np.unique(groups)) < 3:
        yield raw.problem(
            request.group_by, None, f"{len(np.unique(groups))} groups: too few for a train / valid / test split"
        )


def _labels(raw: Raw, request: Request) -> Iterator[Problem]:
    label, rows_of = raw.label, None
    if raw.step_lengths is not None:
        if label.ndim < 2 or not _whole_numbers(raw.step_lengths) or len(raw.step_lengths) != len(label):
            return
        valid = np.arange(label.shape[1]) < raw.step_lengths[:, None]
        label, rows_of = label[valid], np.nonzero(valid)[0]
    if label.ndim == 0:
        return
    task = decide_task(label, request.task, raw.default_task)
    if task == "retrieval":
        return
    if request.task == "auto" and raw.default_task is None and (advice := doubt_of(label)):
        yield raw.problem(raw.label_key, None, advice, "warning")
    for row, message in label_problems(label, task, raw.num_classes, raw.class_names):
        yield raw.problem(raw.label_key, row if row is None or rows_of is None else int(rows_of[row]), message)
