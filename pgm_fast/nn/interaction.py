"""Cross-modal interaction of the modalities' paired features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .parts import SHARED, mark_part

__all__ = ["INTERACTIONS", "PairedInteraction"]

INTERACTIONS = ("attention", "concat")


class PairedInteraction(nn.Module):
    """M paired features ``[..., features]`` -> one vector ``[..., M * features]`` that has seen them together.

    ``attention``: each modality is a token; one residual layer of multi-head attention over the present tokens, then
    they are concatenated. ``concat``: they are concatenated, and the head that reads the vector does the rest. An
    absent modality is no key to anyone and its place holds zeros.

    Args:
        modalities: how many, M.
        features: width of each.
        kind: one of :data:`INTERACTIONS`.
        heads: attention heads; must divide ``features``.
        device, dtype: of the parameters.

    Raises:
        ConfigError: unknown kind, or heads that do not divide ``features``.
    """

    def __init__(
        self,
        modalities: int,
        features: int,
        kind: str = "attention",
        heads: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if kind not in INTERACTIONS:
            raise ConfigError(f"interaction is {kind!r}, must be one of {', '.join(INTERACTIONS)}")
        if kind == "attention" and (heads < 1 or features % heads):
            raise ConfigError(f"model.heads is {heads}, must divide the learners' width, {features}")
        self.kind = kind
        self.heads = heads
        self.out_features = modalities * features
        if kind == "attention":
            factory = {"device": device, "dtype": dtype}
            self.norm = nn.LayerNorm(features, **factory)
            self.qkv = nn.Linear(features, 3 * features, **factory)
            self.out = nn.Linear(features, features, **factory)
        mark_part(self, SHARED, "paired")

    def forward(self, paired: Sequence[Tensor], presence: Sequence[Tensor] | None = None) -> Tensor:
        """``[..., M * features]``.

        Args:
            paired: M tensors ``[..., features]``.
            presence: M bool tensors ``[...]``, None where nothing is missing.
        """
        tokens = torch.stack(tuple(paired), dim=-2)
        present = None if presence is None else torch.stack(tuple(presence), dim=-1)
        if self.kind == "attention":
            tokens = tokens + self._attend(tokens, present)
        if present is not None:
            tokens = tokens.masked_fill(~present.unsqueeze(-1), 0.0)
        return tokens.flatten(-2)

    def _attend(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        *leading, count, features = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(*leading, count, 3, self.heads, features // self.heads)
        q, k, v = qkv.movedim((-3, -2), (0, -3)).unbind(0)
        mask = None
        if present is not None:
            # a token always sees itself, so a row without any modality stays finite
            itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
            mask = present[..., None, None, :] | itself
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(-3, -2).flatten(-2))
