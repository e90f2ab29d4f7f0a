"""The loss terms of an epoch, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..distributed import Ranks

__all__ = ["LossTable"]


class LossTable:
    """One line per update: its number of rows, then its loss terms.

    The updates' means are joined into the mean over rows exactly, whatever the batch sizes and however the rows are
    spread over ranks, since each line is summed over ranks before it is weighted.

    Args:
        count: number of updates.
        device: where the terms are.
    """

    def __init__(self, count: int, device: torch.device):
        self._device = device
        self._names: list[str] = []
        self._rows = [0.0] * count  # the host knows them
        self._terms: Tensor | None = None

    def add(self, number: int, losses: Mapping[str, Tensor], rows: int) -> None:
        """Note the terms of update ``number`` and how many ``rows`` it has. Every update has the same terms. No host
        synchronisation."""
        if self._terms is None:
            self._names = list(losses)
            self._terms = torch.zeros(len(self._rows), len(losses), device=self._device)
        self._rows[number] = float(rows)
        torch.stack([losses[name] for name in self._names], out=self._terms[number])

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Mean over rows of every term, over the updates in which all were finite; empty where nothing was noted."""
        if self._terms is None:
            return {}
        table = ranks.sum_(self._table()).cpu().double()
        rows, terms = table[:, :1], table[:, 1:] / ranks.world
        used = torch.isfinite(terms).all(dim=1, keepdim=True) & (rows > 0)
        rows = rows * used
        total = rows.sum()
        if total == 0:
            return {name: float("nan") for name in self._names}
        means = (torch.where(used, terms, 0.0) * rows).sum(dim=0) / total
        return dict(zip(self._names, means.tolist(), strict=True))

    def rows(self, ranks: Ranks) -> int:
        """Of all updates that were noted, over all ranks; every rank calls it."""
        return 0 if self._terms is None else int(ranks.sum_(self._column(torch.float64)).sum())

    def _table(self) -> Tensor:
        """A copy: rows, then the terms."""
        return torch.cat([self._column(torch.float32), self._terms], dim=1)

    def _column(self, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self._rows, dtype=dtype, device="cpu").to(self._device).unsqueeze(1)

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """Names, and the table summed over ranks; every rank calls it."""
        table = None if self._terms is None else ranks.sum_(self._table())
        return {"names": self._names, "table": table, "world": ranks.world}

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Rank 0 takes over the sum, the others begin with zeros: the sum over ranks is again the same.

        Terms hold the number of ranks, which may be another now."""
        self._names = list(state["names"])
        self._terms = None
        if state["table"] is not None:
            table = state["table"] if ranks.is_main else torch.zeros_like(state["table"])
            terms = table[:, 1:] * (ranks.world / state.get("world", ranks.world))
            self._rows, self._terms = table[:, 0].tolist(), terms.to(self._device)
