"""The weights of rows in a loss that is a mean."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulation_dtype

__all__ = ["equal_weights", "weights_or_mean"]


def equal_weights(
    shape: torch.Size, rows: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Ones of this shape over the number of rows, formed on the device: the number may belong to a trace, which would
    round the quotient on its own."""
    return torch.ones(shape, dtype=dtype, device=device) / max(rows, 1)


def weights_or_mean(weight: Tensor | None, x: Tensor) -> Tensor:
    """``weight`` of the rows of x ``[..., rows, d]`` in the accumulation dtype; None for 1 / rows."""
    dtype = accumulation_dtype(x.dtype)
    if weight is None:
        return equal_weights(x.shape[:-1], x.shape[-2], dtype, x.device)
    return weight.to(dtype)
