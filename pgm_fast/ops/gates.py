"""The cumulative softmax and its derivative, in plain PyTorch: the definition every kernel is held against.

Source: ON-LSTM, Shen et al., ICLR 2019 (cumulative softmax, chunked gates).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gate", "accumulation_dtype", "chunk_sum", "cumsoftmax", "cumsoftmax_backward", "expand_gate"]


class Gate(NamedTuple):
    """``gate = cumsum(p)``, ``complement = 1 - gate``, ``p = softmax(z / temperature)``; each ``[..., d]``."""

    gate: Tensor
    complement: Tensor
    p: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cumsoftmax(z: Tensor, temperature: float) -> Gate:
    """Inclusive cumulative softmax over the last dimension, in the accumulation dtype.

    The complement has its own scan from the right: 1 - gate turns negative by rounding in a tenth of all rows and has
    no correct digit where the gate is near 1. Rounding can carry either scan past 1 by a few ulp, hence the clamp.
    """
    p = torch.softmax(z.to(accumulation_dtype(z.dtype)) / temperature, dim=-1)
    gate = p.cumsum(-1).clamp(max=1)
    from_right = p.flip(-1).cumsum(-1).flip(-1).clamp(max=1)
    complement = torch.cat([from_right[..., 1:], torch.zeros_like(p[..., :1])], dim=-1)
    return Gate(gate, complement, p)


def cumsoftmax_backward(grad_gate: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Gradient with respect to z: s_j = sum of grad_gate from j on, dz = p * (s - <p, s>) / temperature."""
    suffix = grad_gate.flip(-1).cumsum(-1).flip(-1)
    return p * (suffix - (p * suffix).sum(-1, keepdim=True)) / temperature


def expand_gate(gate: Tensor, d: int) -> Tensor:
    """One value per chunk ``[..., d/c]`` to one per dimension ``[..., d]``."""
    chunk = d // gate.shape[-1]
    return gate if chunk == 1 else gate.repeat_interleave(chunk, dim=-1)


def chunk_sum(x: Tensor, gates: int) -> Tensor:
    """The adjoint of :func:`expand_gate`: ``[..., d]`` to ``[..., gates]``."""
    return x if x.shape[-1] == gates else x.unflatten(-1, (gates, -1)).sum(-1)
