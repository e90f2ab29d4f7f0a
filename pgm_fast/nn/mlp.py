"""Linear, GELU, dropout, linear: the form of every head, of the learners and of the encoders of vectors."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .. import ops
from .dropout import Dropout
from .fused import are_plain, are_small, keep_factors, serves_small_batches
from .linear import QuietLinear

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """``nn.Sequential(Linear, GELU, Dropout, Linear)``, which small batches on a CPU take through one op
    (:func:`pgm_fast.ops.mlp`) where nobody has changed its layers.

    Args:
        in_features, hidden, out_features: widths.
        dropout: of the hidden features.
        quiet: the last layer is a :class:`~pgm_fast.nn.linear.QuietLinear`: the output is zero at first.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        dropout: float = 0.0,
        quiet: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        last = QuietLinear if quiet else nn.Linear
        super().__init__(
            nn.Linear(in_features, hidden, device=device, dtype=dtype),
            nn.GELU(),
            Dropout(dropout),
            last(hidden, out_features, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        layers = tuple(self)
        if not serves_small_batches(x) or not _are_one_op(layers, x):
            return super().forward(x)
        first, _, dropout, second = layers
        keep = keep_factors(dropout, x, first.out_features)
        return ops.mlp(x, first.weight, first.bias, second.weight, second.bias, keep)


def _are_one_op(layers: tuple[Any, ...], x: Tensor) -> TypeGuard[tuple[nn.Linear, nn.GELU, Dropout, nn.Linear]]:
    if len(layers) != 4:
        return False
    first, activation, dropout, second = layers
    return (
        are_plain(x, (nn.Linear, QuietLinear), first, second)
        and are_plain(x, nn.GELU, activation)
        and activation.approximate == "none"
        and are_plain(x, Dropout, dropout)
        and first.bias is not None
        and second.bias is not None
        and are_small(first, second)
        # what does not fit a layer is its to name
        and x.shape[-1] == first.in_features
        and first.out_features == second.in_features
        and x.dtype == first.weight.dtype == first.bias.dtype == second.weight.dtype == second.bias.dtype
    )
