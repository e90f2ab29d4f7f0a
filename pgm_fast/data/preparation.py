"""The host's side of a batch: values of a split as float32, normalised, with zeros for padding and what is absent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .arrays import CleanRows, read_rows, without_filling
from .feature_set import FeatureSet
from .media import Draw, MediaRows
from .normalize import Normalizer
from .sampling import Plan

__all__ = ["Preparation"]


class Preparation:
    """Reads samples of a split. Can be pickled where its arrays can.

    Args:
        features: the feature set.
        rows: int64 ``[N_split]``, its rows in the split.
        presence: bool ``[N_split, M]``, or None where nothing is missing.
        normalizer: applied to every modality; None leaves values as they are.
        seed: of what is drawn.
        augment: whether rows that vary are drawn anew in each epoch.
        hides: whether plans hide modalities that are there.

    Attributes:
        modalities: name -> array.
        lengths: name -> int64 ``[N_split]``, valid steps, for the modalities that are sequences.
    """

    def __init__(
        self,
        features: FeatureSet,
        rows: np.ndarray,
        presence: np.ndarray | None,
        normalizer: Normalizer | None,
        seed: int,
        augment: bool,
        hides: bool,
    ):
        self.modalities = dict(features.modalities)
        self._rows, self._presence, self._normalizer = rows, presence, normalizer
        self._seed, self._augment, self._hides = seed, augment, hides
        self._per_step = features.per_step
        self.lengths = {
            name: _length_of(features, name, array.shape[1])[rows]
            for name, array in self.modalities.items()
            if array.ndim == 3
        }

    @property
    def varies(self) -> bool:
        """Whether the same sample has other values in another epoch."""
        return self._augment and any(isinstance(x, MediaRows) and x.varies for x in self.modalities.values())

    def only(self, names: Iterable[str]) -> Preparation:
        """The same without the arrays of other modalities."""
        part = object.__new__(Preparation)
        part.__dict__.update(self.__dict__)
        part.modalities = {name: self.modalities[name] if name in names else None for name in self.modalities}
        return part

    def position(self, name: str) -> int:
        """Of a modality among all."""
        return list(self.modalities).index(name)

    def steps(self, samples: np.ndarray) -> dict[str, int]:
        """Steps of each sequence that these samples need: the longest; of all modalities where labels are per step."""
        longest = {name: int(lengths[samples].max(initial=1)) for name, lengths in self.lengths.items()}
        if self._per_step:
            longest = dict.fromkeys(longest, max(longest.values()))
        return longest

    def values(
        self, name: str, samples: np.ndarray, steps: int | None, epoch: int, threads: int | None = None
    ) -> np.ndarray:
        """float32 ``[len(samples), ...]`` of samples of the split (ascending).

        Args:
            name: of the modality.
            samples: int64, positions within the split.
            steps: of a sequence, the first ones; None for all.
            epoch: that what varies is drawn for.
            threads: that decode files, see :meth:`~pgm_fast.data.media.MediaRows.read`.
        """
        array, rows = self.modalities[name], self._rows[samples]
        if isinstance(array, MediaRows):
            draw = Draw(self._seed, epoch) if self._augment and array.varies else None
            block = array.read(rows, steps, draw, threads)
        else:
            block = read_rows(without_filling(array), rows, steps)
        with np.errstate(over="ignore", invalid="ignore"):  # absent rows may hold anything
            block = self._normalizer.apply(name, block) if self._normalizer is not None else block.astype(np.float32)
        if isinstance(array, CleanRows):
            block[~np.isfinite(block)] = 0  # the mean, where values are standardised
        if name in self.lengths:
            block[np.arange(block.shape[1]) >= self.lengths[name][samples, None]] = 0
        if self._presence is not None:
            block[~self._presence[samples, self.position(name)]] = 0
        return block

    def batch(self, plan: Plan, epoch: int, names: Iterable[str], threads: int | None = None) -> dict[str, np.ndarray]:
        """Values of some modalities in the order of the batch; rows are read ascending, each once."""
        samples, place = np.unique(plan.samples, return_inverse=True)
        steps = self.steps(plan.samples)
        blocks = {}
        for name in names:
            block = self.values(name, samples, steps.get(name), epoch, threads)[place]
            if self._hides:
                block[~plan.present[:, self.position(name)]] = 0
            blocks[name] = block
        return blocks


def _length_of(features: FeatureSet, name: str, longest: int) -> np.ndarray:
    lengths = features.lengths.get(name, features.step_lengths)
    return np.full(len(features), longest, np.int64) if lengths is None else lengths.astype(np.int64)
