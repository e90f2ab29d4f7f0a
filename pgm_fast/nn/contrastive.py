"""Contrastive alignment of the modalities of one sample, over all pairs of modalities and all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.distributed
from torch import Tensor

from .. import ops
from ..ops.row_weights import equal_weights
from ..ops.tracing import surely
from .weights import among, world_size

__all__ = ["cross_modal_info_nce"]

PRODUCTS = 2**22
"""Pairs of modalities are taken together, which saves launches, as long as their products are no more than these."""


def _joined(x: Tensor) -> Tensor:
    """x of all ranks, differentiable; every rank must hold the same number of rows."""
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def cross_modal_info_nce(
    embeddings: Mapping[str, Tensor],
    temperature: float,
    weight: Tensor | None = None,
    presence: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Mean over all pairs of modalities of the symmetric InfoNCE loss (van den Oord et al. 2018; Radford et al. 2021).

    Under ``torch.distributed`` with more than one rank the rows of all ranks are each other's negatives: every rank
    must call this with the same number of rows, and receives the loss of the joined batch, whose gradient is right
    after the usual average over ranks.

    Args:
        embeddings: modality -> ``[n, e]``, the same e for all; normalised here.
        temperature: of the similarities.
        weight: ``[n]`` as in :class:`~pgm_fast.data.batch.Batch`; None for 1/n (times the number of ranks).
        presence: modality -> bool ``[n]`` for modalities that may be missing. A pair's loss is
            the mean over the rows that have both.

    Returns:
        A scalar; 0 with fewer than two modalities.
    """
    pairs = list(combinations(embeddings, 2))
    if not pairs:
        return next(iter(embeddings.values())).new_zeros(())
    presence = presence or {}
    world = world_size()
    rows = next(iter(embeddings.values()))
    if weight is None and (world > 1 or presence):
        weight = equal_weights(rows.shape[:1], rows.shape[0], device=rows.device)
    if world > 1 and weight is not None:
        embeddings = {m: _joined(x) for m, x in embeddings.items()}
        presence = {m: _joined(x.to(torch.uint8)) > 0 for m, x in presence.items()}
        weight = _joined(weight) / world
    rows = next(iter(embeddings.values())).shape[0]
    at_once = next((count for count in range(len(pairs), 1, -1) if surely(count * rows * rows <= PRODUCTS)), 1)
    losses = []
    for first in range(0, len(pairs), at_once):
        some = pairs[first : first + at_once]
        a, b = (torch.stack([embeddings[pair[side]] for pair in some]) for side in (0, 1))
        pair_weights = None if weight is None else torch.stack([_pair_weight(pair, weight, presence) for pair in some])
        losses.append(ops.info_nce(a, b, temperature, normalize=True, weight=pair_weights))
    return torch.cat(losses).mean()


def _pair_weight(pair: tuple[str, str], weight: Tensor, presence: Mapping[str, Tensor]) -> Tensor:
    both = [presence[m] for m in pair if m in presence]
    return among(weight, torch.stack(both).all(0), joined=True) if both else weight
