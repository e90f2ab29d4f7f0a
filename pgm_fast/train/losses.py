"""The loss terms of an epoch, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .distributed import Ranks

__all__ = ["LossTable"]


class LossTable:
    """One line per batch: its number of rows, then its loss terms.

    The batches' means are joined into the mean over rows exactly, whatever the batch sizes and however the rows are
    spread over ranks, since each line is summed over ranks before it is weighted.

    Args:
        count: number of batches.
        device: where the terms are.
    """

    def __init__(self, count: int, device: torch.device):
        self._count = count
        self._device = device
        self._names: list[str] = []
        self._table: Tensor | None = None

    def add(self, number: int, losses: Mapping[str, Tensor], rows: Tensor) -> None:
        """Note the terms of batch ``number`` and how many ``rows`` it has. Every batch has the same terms. No host
        synchronisation."""
        if self._table is None:
            self._names = list(losses)
            self._table = torch.zeros(self._count, 1 + len(losses), device=self._device)
        terms = [losses[name].detach().float() for name in self._names]
        self._table[number] = torch.stack([rows.float(), *terms])

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Mean over rows of every term, over the batches in which all were finite; empty where nothing was noted."""
        if self._table is None:
            return {}
        table = ranks.sum_(self._table.clone()).cpu().double()
        rows, terms = table[:, :1], table[:, 1:] / ranks.world
        used = torch.isfinite(terms).all(dim=1, keepdim=True) & (rows > 0)
        rows = rows * used
        total = rows.sum()
        if total == 0:
            return {name: float("nan") for name in self._names}
        means = (torch.where(used, terms, 0.0) * rows).sum(dim=0) / total
        return dict(zip(self._names, means.tolist(), strict=True))

    def rows(self, ranks: Ranks) -> int:
        """Of all batches that were noted, over all ranks; every rank calls it."""
        return 0 if self._table is None else int(ranks.sum_(self._table[:, 0].double()).sum())

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """Names, and the table summed over ranks; every rank calls it."""
        table = None if self._table is None else ranks.sum_(self._table.clone())
        return {"names": self._names, "table": table, "world": ranks.world}

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Rank 0 takes over the sum, the others begin with zeros: the sum over ranks is again the same.

        Terms hold the number of ranks, which may be another now."""
        self._names = list(state["names"])
        self._table = None
        if state["table"] is not None:
            self._table = state["table"].to(self._device, copy=True)
            self._table[:, 1:] *= ranks.world / state.get("world", ranks.world)
            if not ranks.is_main:
                self._table.zero_()
