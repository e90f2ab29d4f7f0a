"""Row weights of means over some of the rows."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

__all__ = ["among", "world_size"]


def world_size() -> int:
    """Number of processes that train together; 1 without ``torch.distributed``."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def among(weight: Tensor, counted: Tensor, joined: bool = False) -> Tensor:
    """``weight`` ``[n]`` for a mean over the rows where ``counted`` ``[n]`` only: 0 elsewhere, the same sum over ranks.

    Args:
        joined: the rows are those of all ranks already, so that nothing is to be summed over them.
    """
    kept = weight * counted
    sums = torch.stack([weight.sum(), kept.sum()])
    if not joined and world_size() > 1:
        torch.distributed.all_reduce(sums)
    return kept * (sums[0] / sums[1].clamp(min=1e-12))
