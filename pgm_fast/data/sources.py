"""From a source to a feature set: :func:`load`, and :func:`check` for all that is wrong with one."""

from __future__ import annotations

import logging
from os import PathLike
from typing import Any

import numpy as np

from .arrays import CleanRows, is_lazy, kind_of
from .checks import examine, normal_split
from .feature_set import FeatureSet
from .grouping import group_array, group_members
from .labels import convert_labels, decide_task
from .raw import Problem, Raw, RefusedData, Request
from .splitting import carve_validation, redraw_split, stratified_split

__all__ = ["check", "inspect", "load"]

log = logging.getLogger(__name__)


def check(source: str | PathLike, **reading: Any) -> list[Problem]:
    """Everything that is wrong with a source, errors first; arguments as for :func:`load`. Reads every value once."""
    return _sorted(examine(Request(source, **reading))[1])


def inspect(source: str | PathLike, **reading: Any) -> tuple[list[Problem], FeatureSet | None]:
    """As :func:`check`, and the feature set where there is no error."""
    request = Request(source, **reading)
    raw, problems = examine(request)
    whole = all(problem.severity != "error" for problem in problems)
    return _sorted(problems), _assemble(raw, request) if whole else None


def _sorted(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def load(source: str | PathLike, **reading: Any) -> FeatureSet:
    """Read and check a feature set.

    Args:
        source: ``digits``, ``synthetic``, or the path of a file or folder.
        reading: how; the fields of :class:`~pgm_fast.data.Request`.

    Without splits in the source a seeded stratified 70/10/20 split is made; without validation rows 15 % of the
    training rows (stratified, seeded) become validation. Both are logged, and both depend on the data alone. Validation
    is never the test split.

    Raises:
        DataError: the first problem, and how many more there are. ConfigError: a setting of ``media``.
    """
    problems, features = inspect(source, **reading)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = len(errors) - 1
        hint = (
            f" ({more} more problem{'s' if more > 1 else ''}; `pgm-fast check-data {source}` lists all)" if more else ""
        )
        raise RefusedData(errors[0], f"{errors[0]}{hint}")
    for problem in problems:
        log.log(logging.INFO if problem.severity == "note" else logging.WARNING, "%s", problem)
    return features


def _assemble(raw: Raw, request: Request) -> FeatureSet:
    """The feature set of a source without errors."""
    modalities = raw.modalities
    lengths = {name: np.maximum(value.astype(np.int64), 1) for name, value in raw.lengths.items()}
    presence = None if raw.presence is None else raw.presence.astype(bool)
    split = None if raw.split is None else normal_split(raw.split)[0]
    ids = None if raw.ids is None else raw.ids.astype(str)
    step_lengths = None if raw.step_lengths is None else raw.step_lengths.astype(np.int64)
    label, task, num_classes, class_names = _labels(raw, request)

    if request.group_by is not None:
        order = raw.columns[request.order_by] if request.order_by is not None else None
        names, members, step_lengths = group_members(raw.columns[request.group_by], order)
        modalities = {name: group_array(array, members) for name, array in modalities.items()}
        lengths = {name: step_lengths for name in modalities}
        label = None if label is None else group_array(label, members)
        split = None if split is None else split[members[:, 0]]
        presence = None if presence is None else presence[members[:, 0]]
        ids = names.astype(str)

    if request.nonfinite == "zero":
        modalities = {name: _finite(array) for name, array in modalities.items()}
    strata = label if step_lengths is None else None
    split = _split(raw, request.apply, split, len(next(iter(modalities.values()))), strata)
    if not request.apply:
        kept_together = None if request.resplit_by is None else raw.columns[request.resplit_by]
        if kept_together is not None and request.group_by is not None:
            kept_together = kept_together[members[:, 0]]
        split = redraw_split(split, request.resplit, request.resplit_seed, strata, kept_together)
    return FeatureSet(
        name=raw.name,
        modalities=modalities,
        task=task,
        labels=None if task == "retrieval" else label,
        split=split,
        lengths=lengths,
        step_lengths=step_lengths,
        presence=None if presence is None or presence.all() else presence,
        ids=ids,
        num_classes=num_classes,
        class_names=class_names,
        relevance=_relevance(label) if task == "retrieval" and request.group_by is None else None,
    )


def _relevance(label: np.ndarray | None) -> np.ndarray | None:
    """Labels of a retrieval set that say which rows belong together: classes by number or name, or 0/1 ``[N, C]``."""
    if label is None or label.dtype.kind not in "iubUS":
        return None
    if label.ndim == 1:
        return np.unique(label, return_inverse=True)[1].astype(np.int64)
    several = label.ndim == 2 and label.dtype.kind in "iub" and np.isin(label, (0, 1)).all()
    return label.astype(bool) if several else None


def _labels(raw: Raw, request: Request) -> tuple[np.ndarray | None, str, int | None, list[str] | None]:
    """Converted labels (for stratification only where the task is retrieval), task, number of classes, class names."""
    if raw.label is None:
        return None, "retrieval", None, None
    if raw.step_lengths is None:
        flat = raw.label
    else:
        valid = np.arange(raw.label.shape[1]) < raw.step_lengths[:, None]
        flat = raw.label[valid]
    task = decide_task(flat, request.task, raw.default_task)
    if task == "retrieval":
        return (raw.label if raw.step_lengths is None else None), task, None, None
    flat, num_classes, class_names = convert_labels(flat, task, raw.num_classes, raw.class_names)
    if raw.step_lengths is None:
        return flat, task, num_classes, class_names
    label = np.zeros((*valid.shape, *flat.shape[1:]), flat.dtype)
    label[valid] = flat
    return label, task, num_classes, class_names


def _split(raw: Raw, apply: bool, split: np.ndarray | None, rows: int, label: np.ndarray | None) -> np.ndarray:
    if apply:
        return np.full(rows, "test") if split is None else split
    if split is None:
        log.warning("%s: no 'split'; made a seeded stratified one, 70 %% train, 10 %% valid, 20 %% test", raw.file)
        split = stratified_split(rows, label)
    if not (split == "valid").any():
        split = carve_validation(split, label)
        log.warning(
            "%s: no valid rows; %d of the train rows (15 %%, stratified, seeded) became validation",
            raw.file,
            (split == "valid").sum(),
        )
    return split


def _finite(array):
    if kind_of(array) != "features":
        return array  # decoded from files, always finite
    return CleanRows(array) if is_lazy(array) or not np.isfinite(array).all() else array
