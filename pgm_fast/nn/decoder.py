"""The uni-paired decoder: a representation rebuilt from its uni-modal and paired features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..errors import ConfigError
from .parts import mark_part

__all__ = ["UniPairedDecoder"]


class UniPairedDecoder(nn.Module):
    """decoded = W_u u + W_p p + b, with its reconstruction loss (PgM, Hu et al., arXiv 2507.11661; our reconstruction).

    With ``identity_start`` W_u = W_p = 1/2 and b = 0 at first (the one weight is 1 where there is one learner): the
    mean of features that are the parts themselves, for :meth:`forward`'s ``around``.

    Args:
        dim: width of the representation.
        uni_features: width of u; 0 where there is no uni-modal learner.
        paired_features: width of p; 0 where there is no paired learner.
        identity_start: both widths are then ``dim`` or 0.

    Raises:
        ConfigError: both widths are 0, or not ``dim`` with ``identity_start``.
    """

    def __init__(self, dim: int, uni_features: int, paired_features: int, identity_start: bool = False):
        super().__init__()
        if uni_features + paired_features == 0:
            raise ConfigError("a decoder needs uni-modal or paired features, both widths are 0")
        bound = 1.0 / math.sqrt(uni_features + paired_features)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.uni_weight = parameter(dim, uni_features) if uni_features else None
        self.paired_weight = parameter(dim, paired_features) if paired_features else None
        self.bias = parameter(dim)
        if identity_start:
            self._start_as_identity(dim)
        mark_part(self, part="decoder")

    @torch.no_grad()
    def _start_as_identity(self, dim: int) -> None:
        weights = [w for w in (self.uni_weight, self.paired_weight) if w is not None]
        for weight in weights:
            if weight.shape != (dim, dim):
                raise ConfigError(f"identity_start takes features of the width {dim} of h, got {weight.shape[1]}")
            weight.copy_(torch.eye(dim) / len(weights))
        self.bias.zero_()

    def forward(
        self,
        uni: Tensor | None,
        paired: Tensor | None,
        target: Tensor,
        row_weight: Tensor | None = None,
        around: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(decoded[..., dim], loss)``, loss = sum over rows of row_weight * mean over dim of (decoded - target)^2.

        Args:
            uni: ``[..., uni_features]``, None where the width is 0.
            paired: ``[..., paired_features]``, None where the width is 0.
            target: ``[..., dim]``; detach it unless the loss is meant to move it too.
            row_weight: ``[...]``, None for 1 / rows.
            around: ``(h, parts)``, each ``[..., dim]``: decoded is then h + (W_u u + W_p p + b - parts), which is h
                itself, to the bit, where what is decoded are the parts.
        """
        if around is not None:
            h, parts = around
            decoded, loss = self(uni, paired, parts + (target - h), row_weight)
            return h + (decoded - parts), loss
        if self.uni_weight is not None and self.paired_weight is not None:
            return ops.reconstruction(
                uni, paired, self.uni_weight, self.paired_weight, self.bias, target, row_weight=row_weight
            )
        one, weight = (uni, self.uni_weight) if self.paired_weight is None else (paired, self.paired_weight)
        decoded = F.linear(one, weight, self.bias)
        error = (decoded.float() - target.float() if decoded.dtype.itemsize < 4 else decoded - target).square().mean(-1)
        if row_weight is None:
            return decoded, error.sum() / max(error.numel(), 1)
        return decoded, (error * row_weight).sum()
