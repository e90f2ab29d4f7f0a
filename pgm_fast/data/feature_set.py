"""The one in-memory form that every reader produces and everything downstream consumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from .arrays import kind_of

__all__ = ["SPLITS", "TASKS", "DataSpec", "FeatureSet", "ModalitySpec"]

SPLITS = ("train", "valid", "test")
TASKS = ("classification", "multilabel", "regression", "retrieval")


@dataclass(frozen=True)
class ModalitySpec:
    """What a model must know of one modality.

    Attributes:
        dim: width of a vector, or of a step.
        sequence: whether there are steps.
        kind: ``features``; ``frames``, each step an RGB picture of ``3 * size * size`` values, channels first;
            ``spectrogram``, steps times frequencies.
    """

    dim: int
    sequence: bool = False
    kind: str = "features"


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of a data set; small, picklable, stored in checkpoints.

    Attributes:
        modalities: name -> :class:`ModalitySpec`, in the order of the feature set.
        task: one of ``classification``, ``multilabel``, ``regression``, ``retrieval``.
        num_outputs: classes, labels or regression targets; 0 for retrieval.
        per_step: True where labels belong to time steps of the sequences.
    """

    modalities: Mapping[str, ModalitySpec]
    task: str
    num_outputs: int
    per_step: bool = False

    def to_dict(self) -> dict:
        """Plain containers only, for ``weights_only`` checkpoints."""
        return {
            "modalities": {m: asdict(s) for m, s in self.modalities.items()},
            "task": self.task,
            "num_outputs": self.num_outputs,
            "per_step": self.per_step,
        }

    @classmethod
    def from_dict(cls, value: Mapping) -> DataSpec:
        return cls(
            modalities={m: ModalitySpec(**s) for m, s in value["modalities"].items()},
            task=value["task"],
            num_outputs=value["num_outputs"],
            per_step=value["per_step"],
        )


@dataclass
class FeatureSet:
    """Features of N samples in M modalities, with what is known about each sample.

    Attributes:
        name: for messages and reports.
        modalities: name -> ``[N, d]`` or ``[N, T, d]`` float array or memory map (never read whole by this class).
        task: one of :data:`TASKS`.
        labels: ``[N]`` int (classification), ``[N, C]`` 0/1 (multilabel), ``[N]`` or ``[N, K]`` float (regression),
            each with a time axis after N where ``per_step``; None for retrieval.
        split: ``[N]`` of ``train`` / ``valid`` / ``test``.
        lengths: sequence modality -> int64 ``[N]`` (1 <= length <= T). A sequence modality that is missing here is full
            length (``step_lengths`` long where those exist).
        step_lengths: int64 ``[N]``, how many of a sample's steps carry a label, where ``per_step``; else None. With
            ``per_step`` every modality is a sequence over the same T.
        presence: bool ``[N, M]`` in the order of ``modalities``, or None where nothing is missing.
        ids: ``[N]`` strings, or None (the row number serves). With ``per_step`` the id is the sequence's.
        num_classes: given, or found from the labels.
        class_names: optional names of the classes.
        relevance: for retrieval, what makes two rows relevant to each other: int ``[N]`` classes, relevant where equal,
            or 0/1 ``[N, C]`` labels, relevant where one is shared; None where that is not known. Metrics alone read it,
            no model does.
    """

    name: str
    modalities: dict[str, np.ndarray]
    task: str
    labels: np.ndarray | None
    split: np.ndarray
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    step_lengths: np.ndarray | None = None
    presence: np.ndarray | None = None
    ids: np.ndarray | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    relevance: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def per_step(self) -> bool:
        return self.step_lengths is not None

    @property
    def spec(self) -> DataSpec:
        if self.task == "retrieval":
            outputs = 0
        elif self.task == "classification":
            outputs = self.num_classes if self.num_classes is not None else int(self.labels.max()) + 1
        else:
            label_axes = 2 if self.per_step else 1
            outputs = 1 if self.labels.ndim == label_axes else self.labels.shape[-1]
        return DataSpec(
            modalities={m: ModalitySpec(x.shape[-1], x.ndim == 3, kind_of(x)) for m, x in self.modalities.items()},
            task=self.task,
            num_outputs=outputs,
            per_step=self.per_step,
        )

    def rows(self, split: str) -> np.ndarray:
        """int64 numbers of the samples of one split, ascending."""
        return np.flatnonzero(self.split == split)

    def row_ranges(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the first labelled row of each sample, and how many rows it has: int64 ``[n]`` each.

        Without labels per step a row is a sample. With them rows are numbered through all samples' valid steps, so that
        a row's number is unique in the feature set: this is ``Batch.index``.
        """
        if self.step_lengths is None:
            return samples, np.ones(len(samples), np.int64)
        first = np.cumsum(self.step_lengths) - self.step_lengths
        return first[samples], self.step_lengths[samples]

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample and time step of rows given by their number (``Batch.index``), int64 ``[n]`` each."""
        if self.step_lengths is None:
            return index, np.zeros_like(index)
        ends = np.cumsum(self.step_lengths)
        sample = np.searchsorted(ends, index, side="right")
        return sample, index - (ends - self.step_lengths)[sample]
