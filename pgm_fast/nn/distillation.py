"""Handing dimensions from modality to modality, over all ordered pairs and all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.distributed
from torch import Tensor

from .. import ops
from ..ops.row_weights import equal_weights
from .weights import among, world_size

__all__ = ["cross_modal_duc"]


def cross_modal_duc(
    representations: Mapping[str, Tensor],
    dims: Mapping[tuple[str, str], Tensor],
    temperature: float,
    weight: Tensor | None = None,
    presence: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sum over ordered pairs of modalities of the loss of DI-MML (Fan et al. 2024, see :func:`pgm_fast.ops.duc_loss`).

    The paper has two modalities; the sum over the ordered pairs of more is this project's extension.

    Under ``torch.distributed`` with more than one rank the rows of all ranks are each other's negatives: every rank
    must call this with the same number of rows. Each computes the loss of its own rows against the teachers of all;
    the average over ranks is the loss of the joined batch.

    Args:
        representations: modality -> ``[n, d]``, the same d for all.
        dims: (teacher, student) -> int64 numbers of the dimensions that the teacher hands over; a pair that is not
            there has none.
        temperature: divides the products.
        weight: ``[n]`` as in :class:`~pgm_fast.data.batch.Batch`; None for 1/n.
        presence: modality -> bool ``[n]`` for modalities that may be missing. A pair's loss is the mean over the rows
            that have both.

    Returns:
        A scalar; 0 without dimensions.
    """
    first = next(iter(representations.values()))
    n, world = first.shape[0], world_size()
    presence = presence or {}
    if weight is None:
        weight = equal_weights(first.shape[:1], n, device=first.device)
    rank = torch.distributed.get_rank() if world > 1 else 0
    rows = (rank * n, (rank + 1) * n) if world > 1 else None
    if world > 1:
        representations = {m: _among_all(x, rank, world) for m, x in representations.items()}
        presence = {m: _gathered(x.to(torch.uint8), world) > 0 for m, x in presence.items()}
        weight = _gathered(weight, world)
    none = torch.zeros(0, dtype=torch.int64, device=first.device)
    total = first.new_zeros((), dtype=torch.promote_types(first.dtype, torch.float32))
    for a, b in combinations(representations, 2):
        forth, back = dims.get((b, a), none), dims.get((a, b), none)
        if not len(forth) and not len(back):
            continue
        both = [presence[m] for m in (a, b) if m in presence]
        pair_weight = among(weight, torch.stack(both).all(0), joined=True) if both else weight
        total = total + ops.duc_loss(
            representations[a],
            representations[b],
            forth,
            temperature,
            pair_weight,
            reverse_dims=back,
            rows=rows,
        )
    return total


def _gathered(x: Tensor, world: int) -> Tensor:
    """x of all ranks; every rank must hold the same number of rows. Not differentiated."""
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(world)]
    torch.distributed.all_gather(parts, x)
    return torch.cat(parts)


def _among_all(x: Tensor, rank: int, world: int) -> Tensor:
    """x of all ranks, the rows of this one differentiable: no gradient has to travel back."""
    n = x.shape[0]
    joined = _gathered(x, world)
    return torch.cat([joined[: rank * n], x, joined[(rank + 1) * n :]])
