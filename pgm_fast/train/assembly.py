"""From a configuration to all that a run is made of: data, statistics, model, loaders, the state of the machine."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import backends
from ..data import Loader, Normalizer, check_features, load
from ..data.arrays import AbsentRows
from ..data.feature_set import DataSpec, FeatureSet
from ..data.raw import RefusedData
from ..errors import CheckpointError, ConfigError, DataError
from ..methods import METHODS, Method, build
from . import checkpoints
from .captured import why_not_captured
from .config import Config
from .configure import from_yaml, make_config, to_dict
from .distributed import Ranks, connect
from .fingerprints import require_same_data
from .limits import explained
from .shards import has_shards

__all__ = ["Run", "features_of_run", "load_features", "machine", "resolve_config"]

_OBJECT = "object:"  # data.source of a run on a FeatureSet that was handed in, followed by its name
_EMBEDDED = ("digits", "synthetic")

log = logging.getLogger(__name__)

_training = threading.Lock()  # held by the run that random numbers, threads and algorithms are set for

Encoders = Mapping[str, nn.Module]


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


@dataclass
class Run:
    """A model and the data that it meets, on one device.

    Attributes:
        config: of the run.
        features: the data.
        spec: what the model was made for.
        normalizer: of the training split; None where the data is taken as it is.
        method: the model.
        ranks: the processes.
    """

    config: Config
    features: FeatureSet
    spec: DataSpec
    normalizer: Normalizer | None
    method: Method
    ranks: Ranks

    @classmethod
    def new(cls, config: Config, features: FeatureSet, encoders: Encoders | None, ranks: Ranks) -> Run:
        """A run at its beginning: statistics of the training split, weights from the seed. Every rank calls it."""
        normalizer = None
        if config.data.standardize:
            normalizer = Normalizer.from_state_dict(ranks.on_main(lambda: Normalizer.fit(features).state_dict()))
        torch.manual_seed(config.train.seed)
        method = _build(config, features.spec, encoders).to(ranks.device)
        # The same weights everywhere, then other dropout masks on every rank.
        torch.manual_seed(config.train.seed + ranks.rank)
        return cls(config, features, features.spec, normalizer, method, ranks)

    @classmethod
    def from_checkpoint(
        cls, state: Mapping[str, Any], config: Config, features: FeatureSet, encoders: Encoders | None, ranks: Ranks
    ) -> Run:
        """The model of a checkpoint with its weights.

        Raises:
            CheckpointError: the weights do not fit, or the run had encoders of its own and they are not given.
        """
        with checkpoints.reading("modalities"):
            spec = DataSpec.from_dict(state["spec"])
        given = sorted(encoders or {})
        if given != state["encoders"]:
            wanted = ", ".join(state["encoders"]) or "none"
            raise CheckpointError(
                f"this run was trained with encoders handed in for: {wanted}; given now: "
                f"{', '.join(given) or 'none'}. Pass the same as encoders="
            )
        with checkpoints.reading("statistics"):
            normalizer = None if state["normalizer"] is None else Normalizer.from_state_dict(state["normalizer"])
        with checkpoints.reading("modalities"):
            method = _build(config, spec, encoders)
        with checkpoints.reading("weights"):
            if not has_shards(state):  # which are read when there is something to read them into
                method.load_state_dict(state["model"])
        return cls(config, features, spec, normalizer, method.to(ranks.device), ranks)

    def training_loader(self) -> Loader:
        """Shuffled batches of the training split, with modality dropout and what the pictures' settings draw.

        With ``train.capture=auto`` they stay in the same memory, unless something stands against it, which is said."""
        settings = self.config
        fixed = settings.train.capture == "auto"
        if fixed:
            reason = why_not_captured(self.method, self.ranks, settings.train, len(self.features.rows("train")))
            fixed = reason is None
            if reason is not None:
                log.warning("train.capture: steps are not captured, %s", reason)
        return self._loader(
            "train",
            settings.train.batch_size,
            True,
            shuffle=True,
            augment=True,
            modality_dropout=settings.data.modality_dropout,
            accumulate=settings.train.accumulate,
            fixed=fixed,
        )

    def loader(self, split: str, with_labels: bool = True) -> Loader:
        """Batches of a split in order, every row once."""
        return self._loader(split, self.config.train.eval_batch_size, with_labels)

    def training_loader_in_order(self) -> Loader:
        """The whole training split in order, on every rank, with nothing drawn."""
        return self._loader("train", self.config.train.eval_batch_size, True, rank=0, world=1)

    def _loader(self, split: str, batch_size: int, with_labels: bool, **more: Any) -> Loader:
        own = {"rank": self.ranks.rank, "world": self.ranks.world}
        return Loader(
            self.features,
            split,
            batch_size=batch_size,
            device=self.ranks.device,
            seed=self.config.train.seed,
            normalizer=self.normalizer,
            resident=self.config.data.resident,
            with_labels=with_labels,
            workers=self.config.train.workers,
            **{**own, **more},
        )


@contextmanager
def machine(config: Config) -> Iterator[Ranks]:
    """The state that a run wants of torch, for the block: processes, threads, backend, repeatable algorithms.

    Raises:
        ConfigError: the device is not there, or another run is being trained in this process.
        TrainingStopped: the block asks for more than the machine has, see :mod:`.limits`.
    """
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.get_deterministic_debug_mode()
    with ExitStack() as stack:
        if not _training.acquire(blocking=False):
            raise ConfigError(
                "another run is being trained in this process, and the two would draw from the same random numbers; "
                "train one after the other, or each in a process of its own"
            )
        stack.callback(_training.release)
        ranks = stack.enter_context(connect(config.train.device))
        stack.enter_context(explained(config))
        if ranks.device.type == "cuda":
            # cuBLAS reads this when its first handle is made; without it two runs may differ in the last bit.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.train.backend != "auto":
            stack.enter_context(backends.backend(config.train.backend))
        try:
            if config.train.threads:
                torch.set_num_threads(config.train.threads)
            # as torch.use_deterministic_algorithms, which imports torch's compiler: seconds
            torch.set_deterministic_debug_mode("warn")
            torch.utils.deterministic.fill_uninitialized_memory = (
                False  # costs a pass over every new tensor and mends no result here
            )
            yield ranks
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill


def _build(config: Config, spec: DataSpec, encoders: Encoders | None) -> Method:
    wanted = METHODS[config.method].config_class
    section = next(value for value in vars(config).values() if isinstance(value, wanted))
    unknown = [name for name in encoders or {} if name not in spec.modalities]
    if unknown:
        raise ConfigError(f"encoders are given for {', '.join(unknown)}; the data has {', '.join(spec.modalities)}")
    for name, encoder in (encoders or {}).items():
        if not isinstance(encoder, nn.Module):
            raise ConfigError(
                f"the encoder for {name} is a {type(encoder).__name__}, must be a torch.nn.Module; "
                "make an instance of it and pass that"
            )
    # Copies: two runs of one call (seeds) must not train the same modules, nor a run change what its caller holds.
    return build(config.method, spec, config.model, section, copy.deepcopy(dict(encoders)) if encoders else None)
