"""Which rows each model is fitted on, so that no row is measured by a model that has seen it."""

from __future__ import annotations

import numpy as np

from ..data.feature_set import SPLITS
from ..data.splitting import carve_validation, stratified_folds
from ..errors import ConfigError, DataError
from .members import Member
from .vectors import Rows

__all__ = ["plan", "wanted_rows"]


def wanted_rows(rows: Rows, split: str | None) -> np.ndarray:
    """Numbers of the rows of a split, all rows for None. Raises ConfigError, DataError: no such split, no such rows."""
    if split is None:
        return np.arange(len(rows.split))
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, must be one of {', '.join(SPLITS)}, or None for all rows")
    wanted = np.flatnonzero(rows.split == split)
    if not len(wanted):
        present = [name for name in SPLITS if (rows.split == name).any()]
        raise DataError(f"{rows.name} has no rows in the {split} split; it has {', '.join(present)}")
    return wanted


def plan(rows: Rows, wanted: np.ndarray, usable: np.ndarray, folds: int) -> list[Member]:
    """Members that together answer for every wanted and usable row, once.

    Test rows: one member, fitted on the training rows and stopped by the validation rows. Training and validation rows:
    cross-fitting. Both splits together are parted into ``folds`` (by sample, stratified by label, seeded); each part is
    measured by a member that was fitted on the other parts, of which 15 % stop it. Test rows are never fitted on.

    Args:
        rows: all rows.
        wanted: int64, rows that are asked for.
        usable: bool ``[n]``, rows that have what these models look at.
        folds: at least 2.

    Raises:
        DataError: too few usable rows to fit on.
    """
    asked = np.zeros(len(usable), bool)
    asked[wanted] = True
    asked &= usable
    split = rows.split
    members = []
    if (asked & (split == "test")).any():
        members.append(_member(usable & (split == "train"), usable & (split == "valid"), asked & (split == "test")))
    known = split != "test"
    if (asked & known).any():
        samples, first, position = np.unique(rows.sample[known], return_index=True, return_inverse=True)
        label = rows.labels[known][first] if len(samples) == int(known.sum()) else None
        fold_of = stratified_folds(len(samples), label, folds)
        for fold in range(folds):
            parts = carve_validation(np.where(fold_of == fold, "score", "train").astype("<U5"), label)
            of_row = np.full(len(split), "", "<U5")
            of_row[known] = parts[position]
            members.append(
                _member(*(usable & (of_row == name) for name in ("train", "valid")), asked & (of_row == "score"))
            )
    if not members or min(min(len(member.fit), len(member.stop)) for member in members) < 1:
        raise DataError(
            f"{rows.name} has too few rows: of {int((usable & known).sum())} training and validation rows with the "
            f"modalities looked at, {folds} folds leave a model none to fit on or to stop by; give more rows"
        )
    return members


def _member(fit: np.ndarray, stop: np.ndarray, score: np.ndarray) -> Member:
    return Member(*(np.flatnonzero(chosen) for chosen in (fit, stop, score)))
