"""A feature set as the estimate takes it: one label and one vector per modality in every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import iterate_valid, without_filling
from ..data.feature_set import FeatureSet
from ..data.normalize import Normalizer
from ..errors import DataError

__all__ = ["Rows", "principal_components", "rows_of", "standardised"]


@dataclass
class Rows:
    """n labelled rows.

    Attributes:
        name: of the data.
        values: modality -> ``[n, d]`` float.
        present: bool ``[n, M]``, the modalities in the order of ``values``.
        labels: int64 ``[n]``.
        classes: C.
        split: ``[n]`` of train / valid / test.
        sample: int64 ``[n]``, number of the sample in the feature set; rows of one sample are never parted by folds.
        index: int64 ``[n]``, number of the row (``Batch.index``).
        ids: strings ``[n]``.
    """

    name: str
    values: dict[str, np.ndarray]
    present: np.ndarray
    labels: np.ndarray
    classes: int
    split: np.ndarray
    sample: np.ndarray
    index: np.ndarray
    ids: np.ndarray

    @property
    def modalities(self) -> list[str]:
        return list(self.values)


def rows_of(features: FeatureSet, learned: dict[str, np.ndarray] | None = None) -> Rows:
    """The rows of a feature set: vectors as they are, sequences as the mean over their valid steps.

    Where labels belong to steps a row is a step, with the vector of that step.

    Args:
        features: any set with integer class labels and at least two modalities.
        learned: modality -> ``[n, d]``, what a model made of the rows; in place of the set's own values.

    Raises:
        DataError: another task, or fewer than two modalities.
    """
    if features.task != "classification":
        raise DataError(
            f"{features.name} is a {features.task} set; interactions are estimated for integer class labels only, name "
            "such a label with data.label and set data.task=classification"
        )
    if len(features.modalities) < 2:
        raise DataError(
            f"{features.name} has one modality, {next(iter(features.modalities))}; interactions need at least two"
        )
    samples, steps = features.locate(np.arange(int(features.row_ranges(np.arange(len(features)))[1].sum())))
    labels = features.labels[samples, steps] if features.per_step else features.labels
    present = np.ones((len(features), len(features.modalities)), bool)
    present = (present if features.presence is None else features.presence)[samples]
    own = {name: _vectors(features, name) for name in features.modalities} if learned is None else learned
    ids = np.arange(len(features)) if features.ids is None else np.asarray(features.ids)
    ids = ids[samples].astype(str)
    if features.per_step:
        ids = np.array([f"{name}/{step}" for name, step in zip(ids, steps, strict=True)])
    return Rows(
        name=features.name,
        values=own,
        present=present,
        labels=np.asarray(labels, np.int64),
        classes=features.spec.num_outputs,
        split=np.asarray(features.split)[samples],
        sample=samples,
        index=np.arange(len(samples)),
        ids=ids,
    )


def _vectors(features: FeatureSet, name: str) -> np.ndarray:
    """Float ``[n, d]``: one vector per labelled row."""
    array, numbers = features.modalities[name], np.arange(len(features))
    if array.ndim == 2 or features.per_step:
        array = without_filling(array)
    lengths = features.lengths.get(name, features.step_lengths)
    blocks = []
    for chunk in iterate_valid(array, numbers, features.step_lengths if features.per_step else lengths):
        if array.ndim == 2 or features.per_step:
            blocks.append(np.array(chunk.values))
        else:
            sums = np.add.reduceat(chunk.values, np.cumsum(chunk.counts) - chunk.counts, axis=0, dtype=np.float64)
            blocks.append((sums / chunk.counts[:, None]).astype(np.float32))
    return np.concatenate(blocks)


def standardised(rows: Rows, device: torch.device, standardize: bool = True) -> dict[str, Tensor]:
    """Modality -> float32 ``[n, d]`` of zero mean and unit variance over the training rows, or (``standardize`` false)
    as they come; absent vectors are 0.

    The statistics use no label and are the same for all folds, so that all densities are in the same coordinates.
    """
    flat = FeatureSet(rows.name, rows.values, "retrieval", None, rows.split, presence=rows.present)
    normalizer = Normalizer.fit(flat)
    tensors = {}
    for position, (name, values) in enumerate(rows.values.items()):
        with np.errstate(over="ignore", invalid="ignore"):  # absent rows may hold anything
            scaled = normalizer.apply(name, values) if standardize else np.array(values, np.float32)
        scaled[~rows.present[:, position, None] | ~np.isfinite(scaled)] = 0
        tensors[name] = torch.from_numpy(scaled).to(device)
    return tensors


def principal_components(x: Tensor, fit: np.ndarray, count: int) -> Tensor:
    """The first ``count`` principal components of rows ``[n, d]``, found on the rows ``fit``, each of unit variance.

    A component that does not vary is 0. Rows no wider than ``count`` come back as they are.
    """
    if x.shape[1] <= count:
        return x
    known = x[torch.from_numpy(fit).to(x.device)].double()
    center = known.mean(0)
    _, singular, directions = torch.linalg.svd(known - center, full_matrices=False)
    deviation = singular[:count] / len(known) ** 0.5
    varies = deviation > deviation[0] * torch.finfo(torch.float32).eps
    scale = torch.where(varies, 1 / deviation.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    projection = (directions[:count].T * scale).float()
    return (x - center.float()) @ projection
