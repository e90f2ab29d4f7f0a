"""Row weights of means over some of the rows."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

__all__ = ["among", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Number of processes that train together; 1 without ``torch.distributed``."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """x itself with one rank; every rank must call it. Not differentiated."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def among(weight: Tensor, counted: Tensor, joined: bool = False) -> Tensor:
    """``weight`` ``[n]`` for a mean over the rows where ``counted`` ``[n]`` only: 0 elsewhere, the same sum over ranks.

    Args:
        joined: the rows are those of all ranks already, so that nothing is to be summed over them.
    """
    kept = weight * counted
    sums = torch.stack([weight.sum(), kept.sum()])
    sums = sums if joined else sum_over_ranks(sums)
    return kept * (sums[0] / sums[1].clamp(min=1e-12))
