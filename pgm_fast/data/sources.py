"""From a source to a feature set: :func:`load`, and :func:`check` for all that is wrong with one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..settings import check_settings
from .arrays import CleanRows, is_lazy, kind_of
from .checks import examine, normal_split
from .feature_set import FeatureSet
from .grouping import group_array, group_members
from .labels import convert_labels, decide_task
from .media_settings import MediaConfig
from .raw import Problem, Raw, RefusedData, Request, nearest
from .splitting import carve_validation, redraw_split, stratified_split

__all__ = ["check", "load"]

log = logging.getLogger(__name__)

_LISTS = ("modalities", "ignore", "class_names")  # of names, in a request as tuples


def _request(source: str | PathLike, reading: Mapping[str, Any]) -> Request:
    lists = {key: tuple(reading[key]) for key in _LISTS if reading.get(key) is not None}
    others = {"options": dict(reading.get("options") or {}), "media": _media(reading.get("media"))}
    return Request(source=str(source), **{**reading, **lists, **others})


def _media(given: MediaConfig | Mapping[str, Any] | None) -> MediaConfig:
    """Raises ConfigError for a setting that there is not, or a value that it does not take."""
    if not isinstance(given, MediaConfig):
        defaults = asdict(MediaConfig())
        for key, value in (given or {}).items():
            if key not in defaults:
                near = nearest(key, list(defaults))
                raise ConfigError(f"media has no setting '{key}'{near}; there are {', '.join(defaults)}")
            if type(value) is not type(defaults[key]):
                raise ConfigError(f"media.{key}={value!r} has the wrong type; it takes one as {defaults[key]!r} is")
        given = MediaConfig(**(given or {}))
    check_settings(given, "media")
    return given


def check(source: str | PathLike, **reading: Any) -> list[Problem]:
    """Everything that is wrong with a source, errors first; arguments as for :func:`load`. Reads every value once."""
    _, problems = examine(_request(source, reading))
    return sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def load(
    source: str | PathLike,
    *,
    format: str = "auto",
    task: str = "auto",
    modalities: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    label: str = "label",
    labels: str = "auto",
    group_by: str | None = None,
    order_by: str | None = None,
    nonfinite: str = "error",
    options: Mapping | None = None,
    media: MediaConfig | Mapping[str, Any] | None = None,
    apply: bool = False,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    resplit: str = "none",
    resplit_seed: int = 0,
    resplit_by: str | None = None,
) -> FeatureSet:
    """Read and check a feature set.

    Args:
        source: ``digits``, ``synthetic``, or the path of a file or folder.
        format: ``auto`` (by name, then by content), or one of :data:`pgm_fast.data.readers.FORMATS`.
        task: ``auto`` (integers: classification; integers 0/1 ``[N, C]``: multilabel; floats: regression), or one of
            the four tasks.
        modalities: a subset in this order; None for all.
        ignore: keys (of a folder of files: names of folders or files) that are left out. Without it, and without
            ``modalities``, an array that is not read is an error.
        label: key of the labels.
        labels: what their values mean: ``auto``; ``classes``, every value is a class, numbered in order; ``onehot``,
            the column that holds the 1; ``sign``, two classes, above zero or not.
        group_by: column whose equal values make one sequence of vectors, padded to the longest, with a label per step.
        order_by: column that orders the steps of a sequence; the order of the file otherwise.
        nonfinite: ``error``, or ``zero``: NaN and infinities are read as 0, which training puts in their place after it
            has standardised. A row of NaN alone is one that lacks the modality, in either case.
        options: for ``synthetic``, arguments of :func:`pgm_fast.data.synthetic.draw`.
        media: how sounds and pictures become numbers: settings of
            :class:`~pgm_fast.data.media_settings.MediaConfig`, defaults for the others.
        apply: the data is for a trained model to be applied to: no split is made (rows without one are all ``test``),
            and no split needs rows.
        class_names: the classes in the model's order. Names as labels, and numbers in a source with ``class_names`` of
            its own, are coded by this list.
        num_classes: how many classes there are; a class may be without rows.
        resplit: ``none``; ``all``: rows are dealt to the splits anew, stratified, in the proportions that the splits
            have; ``validation``: those of train and validation are, and the test rows stay.
        resplit_seed: of that.
        resplit_by: column whose rows with one value then come into one split.

    Without splits in the source a seeded stratified 70/10/20 split is made; without validation rows 15 % of the
    training rows (stratified, seeded) become validation. Both are logged, and both depend on the data alone. Validation
    is never the test split.

    Raises:
        DataError: the first problem, and how many more there are. ConfigError: a setting of ``media``.
    """
    request = _request(
        source,
        {
            "format": format,
            "task": task,
            "modalities": modalities,
            "ignore": ignore,
            "label": label,
            "labels": labels,
            "group_by": group_by,
            "order_by": order_by,
            "nonfinite": nonfinite,
            "options": options,
            "media": media,
            "apply": apply,
            "class_names": class_names,
            "num_classes": num_classes,
            "resplit": resplit,
            "resplit_seed": resplit_seed,
            "resplit_by": resplit_by,
        },
    )
    raw, problems = examine(request)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = len(errors) - 1
        hint = (
            f" ({more} more problem{'s' if more > 1 else ''}; `pgm-fast check-data {source}` lists all)" if more else ""
        )
        raise RefusedData(errors[0], f"{errors[0]}{hint}")
    for problem in problems:
        log.log(logging.INFO if problem.severity == "note" else logging.WARNING, "%s", problem)
    return _assemble(raw, request)


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
