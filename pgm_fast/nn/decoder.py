"""The uni-paired decoder: a representation rebuilt from its uni-modal and paired features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import ConfigError
from .fused import are_plain
from .linear import IdentityLinear, rename_loaded
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
        device, dtype: of the parameters.

    Raises:
        ConfigError: both widths are 0, or not ``dim`` with ``identity_start``.
    """

    def __init__(
        self,
        dim: int,
        uni_features: int,
        paired_features: int,
        identity_start: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        widths = [width for width in (uni_features, paired_features) if width]
        if not widths:
            raise ConfigError("a decoder needs uni-modal or paired features, both widths are 0")
        if identity_start and set(widths) != {dim}:
            raise ConfigError(f"identity_start takes features of the width {dim} of h, got {widths}")
        self.uni: nn.Linear | None = None
        self.paired: nn.Linear | None = None
        last = "paired" if paired_features else "uni"
        for side, width in (("uni", uni_features), ("paired", paired_features)):
            settings = {"bias": side == last, "device": device, "dtype": dtype}
            if identity_start and width:
                setattr(self, side, IdentityLinear(dim, 1 / len(widths), **settings))
            elif width:
                setattr(self, side, nn.Linear(width, dim, **settings))
        rename_loaded(self, {"uni_weight": "uni.weight", "paired_weight": "paired.weight", "bias": f"{last}.bias"})
        mark_part(self, part="decoder")

    def forward(
        self,
        uni: Tensor | None,
        paired: Tensor | None,
        target: Tensor,
        row_weight: Tensor | None = None,
        around: tuple[Tensor, Sequence[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(decoded[..., dim], loss)``, loss = sum over rows of row_weight * mean over dim of (decoded - target)^2.

        Args:
            uni: ``[..., uni_features]``, None where the width is 0.
            paired: ``[..., paired_features]``, None where the width is 0.
            target: ``[..., dim]``; detach it unless the loss is meant to move it too.
            row_weight: ``[...]``, None for 1 / rows.
            around: ``(h, parts)``, h and one or two parts ``[..., dim]``: decoded is then h + (W_u u + W_p p + b - mean
                of the parts), which is h itself, to the bit, where what is decoded are the parts, also under autocast.
        """
        if around is None:
            return self._decode(uni, paired, target, row_weight)
        h, parts = around
        mean = _mean(parts)
        decoded, loss = self._decode(uni, paired, mean + (target - h), row_weight)
        if decoded.dtype != mean.dtype:
            # as autocast rounds what is decoded
            mean = _mean([part.to(decoded.dtype) for part in parts])
        return h + (decoded - mean), loss

    def _decode(
        self, uni: Tensor | None, paired: Tensor | None, target: Tensor, row_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layers = self.uni, self.paired
        if uni is None or paired is None or not _are_one_op(layers, uni):
            made: list[Tensor] = [layer(x) for layer, x in zip(layers, (uni, paired), strict=True) if layer is not None]
            decoded = sum(made[1:], made[0])
            return decoded, _distance(decoded, target, row_weight)
        of_uni, of_paired = layers
        return ops.reconstruction(
            uni, paired, of_uni.weight, of_paired.weight, of_paired.bias, target, row_weight=row_weight
        )


def _are_one_op(layers: tuple[nn.Linear | None, nn.Linear | None], x: Tensor) -> TypeGuard[tuple[nn.Linear, nn.Linear]]:
    uni, paired = layers
    if uni is None or paired is None:
        return False
    return are_plain(x, (nn.Linear, IdentityLinear), uni, paired) and paired.bias is not None


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else 0.5 * (parts[0] + parts[1])


def _distance(decoded: Tensor, target: Tensor, row_weight: Tensor | None) -> Tensor:
    error = (decoded.float() - target.float() if decoded.dtype.itemsize < 4 else decoded - target).square().mean(-1)
    return error.sum() / max(error.numel(), 1) if row_weight is None else (error * row_weight).sum()
