"""float32 master weights as a bfloat16 parameter and the 16 bits that it lacks.

The parameter is the nearest bfloat16 with ties away from zero: with ties to even the distance of the two bit patterns
would need one value more than 16 bits hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["join_remainder", "split_remainder"]


def split_remainder(value: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as the nearest bfloat16, ties away from zero, and the int16 distance of their bit patterns."""
    bits = torch.where(value.isnan(), 0x7FC00000, value.view(torch.int32))
    # the sum wraps as the bits of a float carry into its exponent
    high = ((bits + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
    return high, bits.to(torch.int16)


def join_remainder(high: Tensor, low: Tensor) -> Tensor:
    """The float32 that :func:`split_remainder` took apart, bit by bit."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)
