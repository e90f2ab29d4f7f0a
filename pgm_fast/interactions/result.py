"""What an estimate found, row by row and in the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bootstrap import intervals
from .estimates import Interaction, decompose, shift_of, shifted
from .settings import Settings

__all__ = ["Interactions", "Pair", "joint_name", "pair_of"]


def joint_name(first: str, second: str) -> str:
    """Name of two modalities together."""
    return f"{first}+{second}"


@dataclass(frozen=True)
class Pair:
    """Interactions of two modalities.

    Attributes:
        modalities: their names, in the order of ``uniqueness_1`` and ``uniqueness_2``.
        values: ``[n]`` each, the data set's shift included; NaN in rows where a modality is absent.
        shift: the constant a.
        means: of the values over the rows that have both modalities.
        intervals: (low, high) of each mean.
        rows: how many rows that is.
    """

    modalities: tuple[str, str]
    values: Interaction
    shift: float
    means: Interaction
    intervals: list[tuple[float, float]]
    rows: int


def pair_of(
    modalities: tuple[str, str],
    information: Mapping[str, np.ndarray],
    entropy: Mapping[str, np.ndarray],
    settings: Settings,
) -> Pair:
    """The decomposition of two modalities from what was measured, ``[n]`` each, of which some row is without NaN."""
    first, second = modalities
    raw = decompose(
        information[first],
        information[second],
        information[joint_name(first, second)],
        entropy.get(first),
        entropy.get(second),
    )
    whole = np.isfinite(np.stack(raw)).all(axis=0)
    known = Interaction(*(value[whole] for value in raw))
    means = Interaction(*(value.mean() for value in known))
    shift = float(shift_of(means))
    return Pair(
        modalities=modalities,
        values=Interaction(*(np.where(whole, value, np.nan) for value in shifted(raw, shift))),
        shift=shift,
        means=Interaction(*map(float, shifted(means, shift))),
        intervals=intervals(known, settings.resamples, settings.level, settings.seed),
        rows=int(whole.sum()),
    )


@dataclass(frozen=True)
class Interactions:
    """An estimate. Rows are in ascending order of ``index``; all values are float64 nats.

    Attributes:
        data: name of the data.
        split: the split that was asked for, None for all rows.
        settings: that it was made with.
        index: int64 ``[n]``, number of the row in the feature set.
        ids: strings ``[n]``.
        splits: ``[n]`` of train / valid / test.
        labels: int64 ``[n]``.
        classes: number of classes.
        information: view (``a``, ``a+b``) -> ``[n]``, pointwise information about the label.
        entropy: modality -> ``[n]``, negative log-density. Empty with ``rule="information"``.
        pairs: name (``a+b``) -> :class:`Pair`, for every two modalities.
        members: how many models of each kind were trained.
        projected: modalities whose density is that of principal components, and how many.
        association: share -> pair -> quantity -> ``{"pearson", "spearman", "rows"}``, for a run that has shares.
        run: the run whose features or shares these are.
        seconds: that it took.
    """

    data: str
    split: str | None
    settings: Settings
    index: np.ndarray
    ids: np.ndarray
    splits: np.ndarray
    labels: np.ndarray
    classes: int
    information: dict[str, np.ndarray]
    entropy: dict[str, np.ndarray]
    pairs: dict[str, Pair]
    members: int
    projected: dict[str, int] = field(default_factory=dict)
    association: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    seconds: float = 0.0

    def write(self, folder) -> list:
        """Write the folder that :func:`~pgm_fast.interactions.output.write` describes; returns the files."""
        from .output import write

        return write(self, folder)
