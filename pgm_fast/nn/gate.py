"""The gate that says, for every sample, how much each component counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["InteractionGate"]


class InteractionGate(nn.Module):
    """Gate logits from components: MLP ``K dim -> hidden -> K`` (DMIL, Yang et al., arXiv 2606.11614).

    :func:`pgm_fast.ops.gated_mixture` takes the softmax and mixes the components' predictions::

        gate = InteractionGate(dim=64, components=4)
        fused, weights = gated_mixture([head(c) for head, c in zip(heads, components)], gate(components))

    Args:
        dim: width of each component.
        components: how many, K.
        hidden: width inside; 0 for ``dim``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        components: int,
        hidden: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        hidden = hidden or dim
        self.hidden = nn.Linear(components * dim, hidden, device=device, dtype=dtype)
        self.out = nn.Linear(hidden, components, device=device, dtype=dtype)

    def forward(self, components: Sequence[Tensor], usable: Sequence[Tensor | None] | None = None) -> Tensor:
        """Gate logits ``[..., K]``, before the softmax.

        Args:
            components: K tensors ``[..., dim]``.
            usable: for each component a bool tensor ``[...]``, or None for everywhere; where it is False the logit is
                -inf, a weight of 0. At least one component must be usable in every row.
        """
        logits = self.out(torch.relu(self.hidden(torch.cat(tuple(components), dim=-1))))
        if usable is None or all(mask is None for mask in usable):
            return logits
        everywhere = torch.ones_like(logits[..., 0], dtype=torch.bool)
        masks = torch.stack([everywhere if mask is None else mask for mask in usable], dim=-1)
        return logits.masked_fill(~masks, -torch.inf)
