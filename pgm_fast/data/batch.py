"""What a training step receives.

A *row* is what carries a label: a sample, or one step of a sequence when labels are per step. Every loss of the
engine is a weighted sum over rows, and the weights come with the batch: they already hold the 1/n of the mean, the
masks of missing modalities and padding, and the factor that makes the average over data-parallel ranks equal to the
mean over the joined batch. So no loss divides, counts or synchronises.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass
class Batch:
    """One batch of B samples with n rows (n = B, or the number of labelled steps).

    Attributes:
        inputs: modality -> ``[B, d_m]`` or ``[B, T_m, d_m]`` float32. Absent modalities hold zeros.
        lengths: modality -> int64 ``[B]``, for the sequence modalities only. Always >= 1.
        labels: int64 ``[n]`` (classification), float32 ``[n, C]`` (multilabel, regression), or None (retrieval,
            prediction).
        weight: float32 ``[n]``; sums to 1 over the joined batch (times the number of ranks), or over the batches that
            make one update together. Padding rows hold 0.
        modality_weight: modality -> float32 ``[n]``, the same over the rows where the modality is present.
            Empty when nothing can be missing in this split: then ``weight`` serves for all.
        presence: modality -> bool ``[n]``, for every modality, or empty when nothing can be missing: every modality of
            every sample of the split is there, and there is no modality dropout. So all batches and ranks of an epoch
            agree.
        steps: None, or int64 ``[n]``: the row's position in the flattened ``[B*T]`` grid of time steps.
        index: int64 ``[n]``, the row's number in the feature set (unique), -1 for padding rows.
        rows: how many rows are no padding, as the host knows it; n where nobody says.
    """

    inputs: dict[str, Tensor]
    weight: Tensor
    index: Tensor
    lengths: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    modality_weight: dict[str, Tensor] = field(default_factory=dict)
    presence: dict[str, Tensor] = field(default_factory=dict)
    steps: Tensor | None = None
    rows: int | None = None

    def __post_init__(self):
        if self.rows is None:
            self.rows = len(self.weight)

    def weight_of(self, modality: str) -> Tensor:
        """Row weights ``[n]`` of a loss that concerns one modality only."""
        return self.modality_weight.get(modality, self.weight)

    def presence_of(self, modality: str) -> Tensor:
        """Bool ``[n]``: rows that have the modality; all of them where nothing can be missing."""
        found = self.presence.get(modality)
        return torch.ones_like(self.weight, dtype=torch.bool) if found is None else found

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""

        def move(value):
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return value

        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})
