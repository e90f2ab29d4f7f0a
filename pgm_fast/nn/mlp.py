"""Linear, GELU, dropout, linear: the form of every head and of the encoders of vectors."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from .fused import are_plain, are_small, keep_factors, serves_small_batches

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """``nn.Sequential(Linear, GELU, Dropout, Linear)``, which small batches on a CPU take through one op
    (:func:`pgm_fast.ops.mlp`).

    Args:
        in_features, hidden, out_features: widths.
        dropout: of the hidden features.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, dropout: float = 0.0):
        super().__init__(
            nn.Linear(in_features, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if serves_small_batches(x) and self._is_one_op():
            first, _, dropout, second = self
            keep = keep_factors(dropout, x, first.out_features)
            return ops.mlp(x, first.weight, first.bias, second.weight, second.bias, keep)
        return super().forward(x)

    def _is_one_op(self) -> bool:
        return (
            len(self) == 4
            and are_plain(nn.Linear, self[0], self[3])
            and are_plain(nn.GELU, self[1])
            and self[1].approximate == "none"
            and are_plain(nn.Dropout, self[2])
            and self[0].bias is not None
            and self[3].bias is not None
            and are_small(self[0], self[3])
        )
