"""From a configuration to the data of its run: read, checked, and matched with what a model was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import check_features, load
from ..data.arrays import AbsentRows
from ..data.feature_set import DataSpec, FeatureSet
from ..data.raw import RefusedData
from ..errors import ConfigError, DataError
from .config import Config
from .configure import from_yaml, make_config, to_dict
from .run import checkpoints
from .run.fingerprints import has_other_splits, require_same_data

__all__ = ["features_of_run", "load_features", "match_data", "require_splits", "resolve_config"]

_OBJECT = "object:"  # data.source of a run on a FeatureSet that was handed in, followed by its name
_EMBEDDED = ("digits", "synthetic")

log = logging.getLogger(__name__)


def resolve_config(
    config: Config | Mapping[str, Any] | str | Path | None, data: FeatureSet | str | None, overrides: Mapping[str, Any]
) -> Config:
    """One checked configuration from another, a mapping or a YAML file, the data asked for, and dotted overrides.

    Raises:
        ConfigError: see :func:`~pgm_fast.train.configure.make_config`.
    """
    changes = dict(overrides)
    if data is not None:
        changes["data.source"] = f"{_OBJECT}{data.name}" if isinstance(data, FeatureSet) else str(data)
    if isinstance(config, Config):
        if changes.get("preset"):
            raise ConfigError(
                f"preset={changes['preset']!r} would change nothing: a Config says every value, and those come after a "
                "preset's; start from make_config(overrides={'preset': ...}), or give a mapping or a file"
            )
        result = make_config(None, {**to_dict(config), **changes})
    elif isinstance(config, Mapping):
        result = make_config(None, {**config, **changes})
    else:
        result = make_config(config, changes)
    source = Path(result.data.source)
    if result.data.source not in _EMBEDDED and source.exists():
        # A run is taken up again from anywhere.
        result.data.source = str(source.resolve())
    return result


def load_features(
    config: Config,
    data: FeatureSet | str | None = None,
    *,
    task: str | None = None,
    modalities: Sequence[str] | None = None,
    labels: bool = True,
    apply: bool = False,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> FeatureSet:
    """The run's data, or other data read in the same way.

    Args:
        config: of the run.
        data: a feature set, which is returned as it is; a source; None for the run's own source.
        task: in place of ``data.task``.
        modalities: of the model, in place of ``data.modalities`` where other data than the run's own is read.
        apply: the data is only for a trained model to be applied to.
        class_names, num_classes: of the model; another source's classes are coded by them (see
            :func:`pgm_fast.data.load`).
        labels: False where the labels may be missing or unusable: the data then comes without.

    Raises:
        DataError: unusable data, or the run's data was an object and nothing was handed in.
    """
    if isinstance(data, FeatureSet):
        check_features(data, apply=apply)
        return data
    if data is None and config.data.source.startswith(_OBJECT):
        name = config.data.source.removeprefix(_OBJECT)
        raise DataError(
            f"this run was trained on the feature set {name!r} that a program made, which "
            "no file holds; pass it as data="
        )
    own = data is None or str(data) == config.data.source
    settings = config.data

    def read(task: str) -> FeatureSet:
        return load(
            settings.source if own else str(data),
            format=settings.format if own else "auto",
            task=task,
            modalities=settings.modalities if own or modalities is None else modalities,
            ignore=settings.ignore,
            label=settings.label,
            labels=settings.labels,
            group_by=settings.group_by,
            order_by=settings.order_by,
            nonfinite=settings.nonfinite,
            options=dict(settings.options) if own else None,
            media=config.media,
            **(_resplit(config) if own else {}),
            **({} if own else {"apply": apply, "class_names": class_names, "num_classes": num_classes}),
        )

    try:
        return read(task or settings.task)
    except RefusedData:
        if labels:
            raise
        return read("retrieval")  # where it was refused for its labels alone


def _resplit(config: Config) -> dict[str, Any]:
    return {key: getattr(config.data, key) for key in ("resplit", "resplit_seed", "resplit_by")}


def features_of_run(state: Mapping[str, Any], data: FeatureSet | str | None = None, *, labels: bool) -> FeatureSet:
    """What a trained model is shown: the data of its run, or ``data`` in its place.

    Args:
        state: content of a checkpoint.
        data, labels: as for :func:`load_features`. Where labels are not needed, a source may lack modalities: they are
            absent in every row, and a warning says so.

    Raises:
        DataError: as :func:`load_features`, or the run's own source holds other data than the run was trained on.
    """
    config = from_yaml(state["config"])
    with checkpoints.reading("modalities"):
        spec = DataSpec.from_dict(state["spec"])
    features = load_features(
        config,
        data,
        task=spec.task,
        modalities=list(spec.modalities),
        labels=labels,
        apply=True,
        class_names=state.get("class_names"),
        num_classes=spec.num_outputs if spec.task == "classification" else None,
    )
    if data is None:
        require_same_data(features, state["data"])
    elif labels and has_other_splits(features, state["data"]):
        log.warning(
            "%s holds the rows that this run was trained on, in other splits: scores of them say nothing of new data; "
            "without other data the run's own splits are scored",
            features.name,
        )
    return features if labels or isinstance(data, FeatureSet) else _with_absent(features, spec)


def _with_absent(features: FeatureSet, spec: DataSpec) -> FeatureSet:
    """The features of a file with the modalities that it lacks, absent in every row; as they are where it has none."""
    missing = [m for m in spec.modalities if m not in features.modalities]
    if not missing or len(missing) == len(spec.modalities):
        return features
    log.warning("%s lacks %s, which the model knows: absent in every row", features.name, ", ".join(missing))
    rows, steps = len(features), 1
    if features.per_step:
        steps = next(iter(features.modalities.values())).shape[1]
    held = np.ones((rows, len(features.modalities)), bool) if features.presence is None else features.presence
    absent = {
        m: AbsentRows((rows, steps, s.dim) if (s := spec.modalities[m]).sequence else (rows, s.dim), s.kind)
        for m in missing
    }
    presence = np.concatenate([held, np.zeros((rows, len(missing)), bool)], axis=1)
    return replace(features, modalities={**features.modalities, **absent}, presence=presence)


def require_splits(features: FeatureSet, task: str = "auto") -> None:
    """Raises DataError unless the data serves ``task`` and has rows to train and to validate on."""
    if task not in ("auto", features.task):
        what = "has no labels" if features.labels is None else f"is a {features.task} set"
        raise DataError(
            f"{features.name} {what}, but data.task is {task}; name the labels' key with "
            "data.label, or change data.task"
        )
    if features.labels is None and features.task != "retrieval":
        raise DataError(
            f"{features.name} has no labels, which {features.task} needs for training; name their key with data.label"
        )
    if features.task == "classification" and features.spec.num_outputs < 2:
        raise DataError(
            f"{features.name} has labels of one class only, and there is nothing to tell apart; name the labels' key "
            "with data.label, or train without labels by data.task=retrieval"
        )
    for split in ("train", "valid"):
        if not len(features.rows(split)):
            raise DataError(
                f"{features.name} has no rows in the {split} split, and training needs some; "
                "name them in the data's split"
            )


def match_data(features: FeatureSet, spec: DataSpec, run: str) -> FeatureSet:
    """``features`` as a model for ``spec`` takes them, the modalities in its order.

    Data without labels, or with fewer classes than the model knows, is fine.

    Raises:
        DataError: names the first difference.
    """
    missing = [m for m in spec.modalities if m not in features.modalities]
    if missing:
        raise DataError(
            f"{features.name} lacks {', '.join(missing)}, which {run} was trained on; it has "
            f"{', '.join(features.modalities)}"
        )
    for modality, wanted in spec.modalities.items():
        values = features.modalities[modality]
        if values.shape[-1] != wanted.dim or (values.ndim == 3) != wanted.sequence:
            kind = f"[N, T, {wanted.dim}]" if wanted.sequence else f"[N, {wanted.dim}]"
            raise DataError(f"{features.name}, {modality}: shape {list(values.shape)}, but {run} was trained on {kind}")
    if features.per_step != spec.per_step:
        raise DataError(
            f"{features.name} has labels per {'step' if features.per_step else 'sample'}, the data "
            f"of {run} the other; set data.group_by"
        )
    if features.labels is not None:
        if features.task != spec.task:
            raise DataError(
                f"{features.name} is a {features.task} set, but {run} was trained for "
                f"{spec.task}; name the task with data.task"
            )
        outputs = features.spec.num_outputs
        if outputs > spec.num_outputs or (spec.task != "classification" and outputs != spec.num_outputs):
            raise DataError(
                f"{features.name} has {outputs} classes or targets, but {run} was trained with {spec.num_outputs}"
            )
    order = list(features.modalities)
    presence = features.presence
    if presence is not None:
        presence = presence[:, [order.index(m) for m in spec.modalities]]
    return replace(
        features,
        modalities={m: features.modalities[m] for m in spec.modalities},
        lengths={m: x for m, x in features.lengths.items() if m in spec.modalities},
        presence=presence,
        task=spec.task,
        num_classes=spec.num_outputs if spec.task == "classification" else features.num_classes,
    )
