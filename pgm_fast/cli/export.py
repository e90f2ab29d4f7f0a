"""``predict``: what a model says about every row, as one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.feature_set import FeatureSet
from ..errors import ConfigError
from ..train import predict
from ..train.features import features_of_run
from ..train.run.checkpoints import load_run
from ..train.run.files import atomic_write, require_place, write_csv
from ..train.run.folder import RunFolder
from ..train.scores.predictions import Predictions
from ..train.scores.shares import PARTITIONS

__all__ = ["check_name", "write_predictions"]


def check_name(path: Path) -> None:
    """Raises ConfigError unless the file can lie there and its name says how to write it."""
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; it takes a file, such as {path / 'predictions.csv'}")
    require_place(path.parent, f"--out {path} cannot be written: ")
    if not path.suffix:
        raise ConfigError(f"--out {path} has no ending; it takes .npz or .csv, such as {path}.csv")
    if path.suffix not in (".npz", ".csv"):
        raise ConfigError(f"--out {path} has the ending {path.suffix!r}; it takes .npz or .csv")


def write_predictions(run: Path, path: Path, *, data: str | None, split: str | None, checkpoint: str) -> int:
    """Write the predictions of a run's model to ``path``, all or nothing.

    The arrays, each with a row per row of the data: ``index``, ``id``, ``step`` (where labels belong to steps),
    ``split``, ``label``, ``prediction`` (class, 0/1 per label, or value), ``logits``; per modality m ``logits.m``,
    ``embedding.m`` (retrieval) and ``share.m`` with the columns uni and paired, or uni_only, paired_only, shared and
    unused, NaN in rows that lack m, which ``presence.m`` says where some do; per component c of a method with a gate
    ``gate.c``. In a csv an array with columns is spread over columns
    ``name.column``.

    Args:
        run, data, split, checkpoint: as :func:`pgm_fast.train.predict` takes them.
        path: ending in ``.npz`` or ``.csv``.

    Returns:
        The number of rows.
    """
    folder = RunFolder(run)
    folder.require()
    state = load_run(folder.best)
    task = state["spec"]["task"]
    features = features_of_run(state, data, labels=False)
    predictions = predict(run, data=features, split=split, checkpoint=checkpoint)
    arrays = dict(_arrays(predictions, features, task))
    if path.suffix == ".npz":
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)
    else:
        with atomic_write(path, "w") as file:
            _write_csv(file, arrays)
    return len(predictions.index)


def _arrays(predictions: Predictions, features: FeatureSet, task: str) -> Iterator[tuple[str, np.ndarray]]:
    samples, steps = features.locate(predictions.index)
    yield "index", predictions.index
    yield "id", (samples if features.ids is None else np.asarray(features.ids)[samples]).astype(str)
    if features.per_step:
        yield "step", steps
    yield "split", features.split[samples].astype(str)
    if predictions.labels is not None:
        yield "label", predictions.labels
    if predictions.logits is not None:
        yield "prediction", _decide(predictions.logits, task)
        yield "logits", predictions.logits
    for kind, named in (
        ("logits", predictions.unimodal),
        ("embedding", predictions.embeddings),
        ("share", predictions.shares),
    ):
        for modality, values in named.items():
            yield f"{kind}.{modality}", _where_present(values, predictions.presence.get(modality))
    for modality, present in predictions.presence.items():
        yield f"presence.{modality}", present.astype(np.int64)
    for component, weights in predictions.gates.items():
        yield f"gate.{component}", weights


def _where_present(values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
    """What a model says of a modality that is not there is made up: NaN."""
    return values if present is None else np.where(present[:, None], values, np.nan).astype(values.dtype)


def _decide(logits: np.ndarray, task: str) -> np.ndarray:
    if task == "classification":
        return logits.argmax(axis=1)
    return (logits > 0).astype(np.int64) if task == "multilabel" else logits


def _write_csv(file, arrays: dict[str, np.ndarray]) -> None:
    columns: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        if values.ndim == 1:
            columns[name] = values
        else:
            labels = PARTITIONS[values.shape[1]] if name.startswith("share.") else range(values.shape[1])
            columns.update({f"{name}.{label}": values[:, number] for number, label in enumerate(labels)})
    write_csv(file, columns, zip(*(column.astype(str) for column in columns.values()), strict=True))
