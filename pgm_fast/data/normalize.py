"""Zero mean and unit variance per dimension (of frames, per colour), learned from the training split alone, or by
statistics that an array brings along."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..errors import DataError
from .arrays import iterate_valid, kind_of, statistics_of, without_filling
from .feature_set import FeatureSet

__all__ = ["Normalizer"]

# Relative size of rounding in a float64 mean: a smaller deviation is a constant feature, not a signal.
CONSTANT = 1e-12


class Normalizer:
    """``(x - mean) / scale`` per modality and dimension.

    Args:
        mean: modality -> float64 ``[d]``.
        scale: modality -> float64 ``[d]``, > 0. 1 where a dimension never varies.
    """

    def __init__(self, mean: Mapping[str, np.ndarray], scale: Mapping[str, np.ndarray]):
        self.mean = {name: np.asarray(value, np.float64) for name, value in mean.items()}
        self.scale = {name: np.asarray(value, np.float64) for name, value in scale.items()}

    @classmethod
    def fit(cls, features: FeatureSet) -> Normalizer:
        """Statistics of the training rows: finite values in valid steps of sequences and present modalities.

        Reads in chunks. What brings statistics along is not read.

        Chunks are joined by the update of Chan, Golub and LeVeque (1983), in float64.
        """
        mean, scale = {}, {}
        train = features.rows("train")
        for position, (name, array) in enumerate(features.modalities.items()):
            if (given := statistics_of(array)) is not None:
                mean[name], scale[name] = given
                continue
            rows = train if features.presence is None else train[features.presence[train, position]]
            lengths = features.lengths.get(name, features.step_lengths)
            count, center, squares = (np.zeros(array.shape[-1]) for _ in range(3))
            for chunk in iterate_valid(without_filling(array), rows, lengths):
                if not len(chunk.values):
                    continue
                values = chunk.values.astype(np.float64)
                gaps = ~np.isfinite(values)
                here = len(values) - gaps.sum(axis=0)
                values[gaps] = 0
                chunk_mean = values.sum(axis=0) / np.maximum(here, 1)
                values -= chunk_mean
                values[gaps] = 0
                shift = chunk_mean - center
                total = count + here
                squares += np.einsum("nd,nd->d", values, values) + shift**2 * (count * here / np.maximum(total, 1))
                center += shift * (here / np.maximum(total, 1))
                count = total
            variance = squares / np.maximum(count, 1)
            if kind_of(array) == "frames":
                center, variance = _per_colour(center, variance)
            deviation = np.sqrt(variance)
            deviation[deviation <= CONSTANT * np.abs(center)] = 1.0
            mean[name], scale[name] = center, deviation
        return cls(mean, scale)

    def apply(self, name: str, block: np.ndarray) -> np.ndarray:
        """Values ``[..., d]`` of one modality, normalised, as a new float32 array. Float64 is shifted as float64."""
        if name not in self.mean:
            raise DataError(f"modality '{name}' is unknown to the normaliser, which has {', '.join(self.mean)}")
        if block.shape[-1] != len(self.mean[name]):
            raise DataError(
                f"modality '{name}' has {block.shape[-1]} features; the normaliser was fitted on {len(self.mean[name])}"
            )
        kind = np.float64 if block.dtype == np.float64 else np.float32
        out = block.astype(kind)
        out -= self.mean[name].astype(kind)
        out /= self.scale[name].astype(kind)
        return out.astype(np.float32, copy=False)

    def state_dict(self) -> dict:
        """``{"mean": {modality: tensor}, "scale": {modality: tensor}}``, float64; loadable with ``weights_only``."""
        return {
            "mean": {name: torch.from_numpy(value.copy()) for name, value in self.mean.items()},
            "scale": {name: torch.from_numpy(value.copy()) for name, value in self.scale.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping) -> Normalizer:
        """The inverse of :meth:`state_dict`."""
        return cls(
            {name: value.cpu().numpy() for name, value in state["mean"].items()},
            {name: value.cpu().numpy() for name, value in state["scale"].items()},
        )


def _per_colour(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance ``[3 * pixels]`` over all pixels of a colour, from those of each pixel."""
    mean, variance = mean.reshape(3, -1), variance.reshape(3, -1)
    joined = mean.mean(axis=1, keepdims=True)
    spread = variance.mean(axis=1, keepdims=True) + np.square(mean - joined).mean(axis=1, keepdims=True)
    return tuple(np.broadcast_to(x, mean.shape).reshape(-1) for x in (joined, spread))
