"""Seeded, stratified splits: a property of the data and how it is read, whatever the run's own seed."""

from __future__ import annotations

import numpy as np

from .feature_set import SPLITS

__all__ = ["RESPLITS", "carve_validation", "redraw_split", "stratified_folds", "stratified_split"]

SEED = 0
PERIOD = 100  # of the pattern below: fractions are whole percents
RESPLITS = ("none", "all", "validation")  # which rows are dealt anew


def _shuffled_by_class(rows: np.ndarray, label: np.ndarray | None, seed: int = SEED) -> np.ndarray:
    """The rows in random order within each class, class after class; of one class where labels are not one per row."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = rng.permutation(rows)
    if label is None or label.ndim != 1 or label.dtype.kind not in "iub":
        return rows
    return rows[np.argsort(label[rows], kind="stable")]


def _pattern(fractions: tuple[float, ...], count: int) -> np.ndarray:
    """Part numbers ``[count]`` in which every stretch holds the parts in these fractions, to within about one."""
    parts = np.empty(PERIOD, np.int64)
    given = np.zeros(len(fractions))
    for k in range(PERIOD):
        # The part that lags most; rounded, so that a tie is a tie on every machine.
        parts[k] = np.argmax(np.round(np.asarray(fractions) * (k + 1) - given, 6))
        given[parts[k]] += 1
    return np.resize(parts, count)


def stratified_split(
    rows: int, label: np.ndarray | None = None, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> np.ndarray:
    """Split names ``[rows]`` in these fractions, within each class of integer labels ``[rows]``, else over all."""
    split = np.empty(rows, dtype="<U5")
    split[_shuffled_by_class(np.arange(rows), label)] = np.asarray(SPLITS)[_pattern(fractions, rows)]
    return split


def carve_validation(split: np.ndarray, label: np.ndarray | None, fraction: float = 0.15) -> np.ndarray:
    """The split with this fraction of the training rows, stratified, moved to validation; at least one row moves."""
    split = split.copy()
    train = _shuffled_by_class(np.flatnonzero(split == "train"), label)
    moved = train[_pattern((1 - fraction, fraction), len(train)) == 1]
    split[moved if len(moved) else train[:1]] = "valid"
    return split


def redraw_split(
    split: np.ndarray,
    which: str,
    seed: int,
    label: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The split with its rows dealt anew, in the proportions that it has.

    Args:
        split: names ``[N]``.
        which: one of :data:`RESPLITS`: no row, every row, or those of train and validation, the test rows staying.
        seed: another one, another split.
        label: integer labels ``[N]``, within each class of which the proportions hold.
        groups: ``[N]``; rows with one value come into one split, and the proportions are those of the groups.
    """
    if which == "none":
        return split
    dealt = np.arange(len(split)) if which == "all" else np.flatnonzero(split != "test")
    names = [name for name in SPLITS if (split[dealt] == name).any()]
    fractions = tuple(float(np.mean(split[dealt] == name)) for name in names)
    if groups is None:
        units, unit_of = _shuffled_by_class(dealt, label, seed), np.arange(len(split))
    else:
        _, unit_of = np.unique(groups, return_inverse=True)
        units = _shuffled_by_class(np.unique(unit_of[dealt]), None, seed)
    part = np.zeros(int(unit_of.max()) + 1, np.int64)
    part[units] = _pattern(fractions, len(units))
    split = split.copy()
    split[dealt] = np.asarray(names)[part[unit_of[dealt]]]
    return split


def stratified_folds(rows: int, label: np.ndarray | None, folds: int) -> np.ndarray:
    """Fold numbers int64 ``[rows]``, 0 to ``folds - 1``, equally many to within one, within each class as well."""
    fold = np.empty(rows, np.int64)
    fold[_shuffled_by_class(np.arange(rows), label)] = np.arange(rows) % folds
    return fold
