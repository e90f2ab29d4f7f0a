"""Which samples form which batch, on which rank, with which weights. Host arithmetic; no feature is touched here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .feature_set import FeatureSet

__all__ = ["Plan", "Sampler", "draw_presence"]


@dataclass
class Plan:
    """One rank's part of one batch: B samples, n rows.

    Attributes:
        samples: int64 ``[B]``, positions within the split; padding samples repeat the first sample of the batch.
        sample_of_row: int64 ``[n]``, positions within ``samples``.
        step_of_row: int64 ``[n]``, time step of the row (0 without labels per step).
        index: int64 ``[n]``, row numbers of the feature set, -1 for padding.
        weight: float32 ``[n]``; sums to 1 over the batches that make one update (times the number of ranks).
        present: bool ``[B, M]``, or None where nothing can be missing.
        modality_weight: float32 ``[M, n]``, or None with ``present``.
        rows: how many rows are no padding.
    """

    samples: np.ndarray
    sample_of_row: np.ndarray
    step_of_row: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    present: np.ndarray | None
    modality_weight: np.ndarray | None
    rows: int


class Sampler:
    """Plans of one split. Every rank computes the order of the whole epoch, and takes its share of each batch.

    ``accumulate`` batches make one update, at an epoch's end perhaps fewer: their weights are those of the batch that
    they would be together. With ``full``, batches of fewer samples are padded to ``batch_size``.
    """

    def __init__(
        self,
        features: FeatureSet,
        split: str,
        batch_size: int,
        seed: int,
        shuffle: bool,
        modality_dropout: float,
        rank: int,
        world: int,
        accumulate: int = 1,
        full: bool = False,
    ):
        self.full = full
        self.rows = features.rows(split)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.modality_dropout = modality_dropout
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self.per_step = features.per_step
        self.num_modalities = len(features.modalities)
        presence = None if features.presence is None else features.presence[self.rows]
        self.presence = None if presence is None or presence.all() else presence
        self.first_row, self.steps = features.row_ranges(self.rows)

    @property
    def num_rows(self) -> int:
        return int(self.steps.sum())

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Order of the samples ``[N_split]`` and their presence ``[N_split, M]`` after modality dropout.

        Functions of (seed, epoch) alone; presence is None where nothing can be missing.
        """
        order = np.arange(len(self.rows))
        if self.shuffle:
            order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).permutation(order)
        if self.modality_dropout == 0:
            return order, self.presence
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, 1])))
        return order, draw_presence(rng, len(self.rows), self.num_modalities, self.modality_dropout, self.presence)

    def plan(self, number: int, order: np.ndarray, present: np.ndarray | None) -> Plan:
        """This rank's part of batch ``number`` of an epoch."""
        joined = order[number * self.batch_size : (number + 1) * self.batch_size]
        mine = joined[self.rank :: self.world]
        share = -(-(self.batch_size if self.full else len(joined)) // self.world)
        samples = np.concatenate([mine, np.repeat(joined[:1], share - len(mine))])

        # Rows per rank are padded to the most that any rank has.
        rows = max(int(self.steps[joined[rank :: self.world]].sum()) for rank in range(self.world))
        rows = rows if self.per_step else share
        steps = self.steps[mine]
        real = int(steps.sum())
        sample_of_row = (
            np.arange(rows) if not self.per_step else np.zeros(rows, np.int64)
        )  # without steps row i is sample i, padding too
        sample_of_row[:real] = np.repeat(np.arange(len(mine)), steps)
        step_of_row = np.zeros(rows, np.int64)
        step_of_row[:real] = np.arange(real) - np.repeat(np.cumsum(steps) - steps, steps)
        index = np.full(rows, -1, np.int64)
        index[:real] = np.repeat(self.first_row[mine], steps) + step_of_row[:real]

        first = number - number % self.accumulate
        together = order[first * self.batch_size : (first + self.accumulate) * self.batch_size]
        weight = np.zeros(rows, np.float32)
        weight[:real] = self.world / self.steps[together].sum()
        if present is None:
            return Plan(samples, sample_of_row, step_of_row, index, weight, None, None, real)
        counts = (present[together] * self.steps[together, None]).sum(axis=0)
        modality_weight = np.zeros((self.num_modalities, rows), np.float32)
        here = present[samples][sample_of_row[:real]].T
        modality_weight[:, :real] = here * (self.world / np.maximum(counts, 1))[:, None]
        return Plan(samples, sample_of_row, step_of_row, index, weight, present[samples], modality_weight, real)


def draw_presence(
    rng: np.random.Generator, rows: int, modalities: int, probability: float, presence: np.ndarray | None = None
) -> np.ndarray:
    """bool ``[rows, modalities]``: each modality of a row is hidden with this probability, never all that it has.

    ``presence``, of the same shape, says what the rows have; None for everything.
    """
    chance = rng.random((rows, modalities))
    if presence is not None:
        chance[~presence] = -1.0  # absent whatever is drawn, and never the one that stays
    present = chance >= probability
    present[np.arange(rows), chance.argmax(axis=1)] = True
    return present
