"""Using a trained model from Python: the functions behind ``pgm-fast evaluate`` and ``pgm-fast predict``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.feature_set import SPLITS, DataSpec, FeatureSet
from ..errors import CheckpointError, ConfigError, DataError, did_you_mean
from .assembly import Encoders, Run
from .config import Config
from .configure import from_yaml
from .distributed import Ranks, current_ranks
from .evaluation import collect
from .features import features_of_run, match_data
from .limits import explained
from .run import checkpoints
from .run.folder import RunFolder
from .run.shards import with_shards
from .scores.gates import mean_gates
from .scores.measure import measure
from .scores.predictions import Predictions
from .scores.shares import mean_shares

__all__ = ["evaluate", "extract_features", "predict"]


def evaluate(
    run: str | Path,
    *,
    data: FeatureSet | str | None = None,
    encoders: Encoders | None = None,
    split: str = "test",
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Score a trained model.

    Args:
        run: its folder.
        data: other labelled data with the same modalities; None for the run's own.
        encoders: those that the run was trained with.
        split: ``train``, ``valid`` or ``test``.
        checkpoint: ``best``, ``last``, ``previous`` (the one before last.pt), or a path.

    Returns:
        ``{"split", "checkpoint", "task", "epoch", "rows", "fused": {...}, "unimodal": {...}, "losses": {...},
        "shares": {...}, "gates": {...}}``.

    Raises:
        CheckpointError: no such checkpoint. DataError: the data does not fit the model, or has no such rows or no
            labels.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, must be one of {', '.join(SPLITS)}")
    trained, state, name = _open(run, data, encoders, checkpoint, labels=True)
    with explained(trained.config, training=False):
        predictions = _collect(trained, split, labels=True)
    return {
        "split": split,
        "checkpoint": name,
        "task": trained.spec.task,
        "epoch": state["position"]["epoch"],
        "rows": len(predictions.index),
        **measure(predictions, trained.spec.task, trained.spec.num_outputs, trained.features.relevance),
        "shares": mean_shares(predictions),
        "gates": mean_gates(predictions, trained.spec.task, state.get("class_names")),
    }


def predict(
    run: str | Path,
    *,
    data: FeatureSet | str | None = None,
    encoders: Encoders | None = None,
    split: str | None = None,
    checkpoint: str = "best",
) -> Predictions:
    """What a trained model says about every row: logits, per modality too, gate shares and weights, features.

    Args:
        split: ``train``, ``valid`` or ``test``; None for all rows. The other arguments are those of :func:`evaluate`;
            ``data`` needs no labels, and a source may lack modalities: they are absent in every row.

    Returns:
        Rows in ascending order of their number in the feature set; labels where the data has them.

    Raises:
        As :func:`evaluate`.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split is {split!r}, must be one of {', '.join(SPLITS)} or None for all rows")
    trained, _, _ = _open(run, data, encoders, checkpoint, labels=False)
    with explained(trained.config, training=False):
        return _collect(trained, split, labels=False)


def extract_features(
    run: str | Path,
    *,
    data: FeatureSet | str | None = None,
    encoders: Encoders | None = None,
    split: str | None = None,
    checkpoint: str = "best",
) -> dict[str, np.ndarray]:
    """The learned features, ``"<modality>/<uni|paired>"`` -> float32 ``[n, *]``.

    Arguments, order of rows and errors as for :func:`predict`.
    """
    return predict(run, data=data, encoders=encoders, split=split, checkpoint=checkpoint).features


def _open(
    run: str | Path, data: FeatureSet | str | None, encoders: Encoders | None, checkpoint: str, labels: bool
) -> tuple[Run, dict[str, Any], str]:
    """A trained model, its checkpoint, and the checkpoint's name."""
    folder = RunFolder(run)
    named = {"best": folder.best, "last": folder.last, "previous": folder.previous}
    if checkpoint in named:
        folder.require()
    path = named.get(checkpoint, Path(checkpoint))
    if checkpoint not in named and not path.suffix and not path.exists():
        near = did_you_mean(checkpoint, named)
        raise CheckpointError(f"checkpoint is {checkpoint!r}{near}; it takes {', '.join(named)}, or the path of one")
    state = with_shards(path, checkpoints.load_run(path))
    config = from_yaml(state["config"])
    if checkpoint in named:
        _require_own(path, config, from_yaml(folder.read_config()))
    features = features_of_run(state, data, labels=labels)
    ranks = Ranks(device=current_ranks("cpu" if config.train.device == "cpu" else "auto").device)
    features = match_data(features, DataSpec.from_dict(state["spec"]), str(run))
    return Run.from_checkpoint(state, config, features, encoders, ranks), state, path.name


def _require_own(path: Path, config: Config, written: Config) -> None:
    """Raises CheckpointError where a checkpoint in a run's folder is of another run."""
    found, wanted = ((c.method, c.data.source) for c in (config, written))
    if found != wanted:
        raise CheckpointError(
            f"{path} is of a run of {found[0]} on {found[1]}, and this run's config.yaml says {wanted[0]} on "
            f"{wanted[1]}; put back the one that belongs there, or give the checkpoint by its path"
        )


def _collect(trained: Run, split: str | None, labels: bool) -> Predictions:
    if split is None:
        trained.features = replace(trained.features, split=np.full(len(trained.features), "test"))
    elif not len(trained.features.rows(split)):
        present = [name for name in SPLITS if len(trained.features.rows(name))]
        raise DataError(
            f"{trained.features.name} has no rows in the {split} split; it has {', '.join(present) or 'no rows at all'}"
        )
    labelled = trained.features.labels is not None
    if labels and not labelled and trained.spec.task != "retrieval":
        raise DataError(
            f"{trained.features.name} has no labels to score against; use predict, or name their key with data.label"
        )
    loader = trained.loader(split or "test", with_labels=labelled)
    precision = trained.config.train.precision
    return collect(trained.method, loader, trained.ranks, precision=precision, features=not labels)
