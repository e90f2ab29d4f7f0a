"""The cumulative softmax, what the partitions take of its gates, and the derivatives, in plain PyTorch: the definition
every kernel is held against.

Source: ON-LSTM, Shen et al., ICLR 2019 (cumulative softmax, chunked gates). The share of a partition is the mean of
what it takes over the gates of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .dtypes import accumulation_dtype

__all__ = [
    "Gate",
    "chunk_sum",
    "cumsoftmax",
    "cumsoftmax_backward",
    "dual_grad_gates",
    "dual_masses",
    "dual_share",
    "dual_share_backward",
    "empty_share",
    "expand_gate",
    "single_share",
    "single_share_backward",
    "softmax",
    "softmax_backward",
]


class Gate(NamedTuple):
    """``gate = cumsum(p)``, ``complement = 1 - gate``, ``p = softmax(z / temperature)``; each ``[..., d]``."""

    gate: Tensor
    complement: Tensor
    p: Tensor


# below it z / temperature may be past what fp32 holds
SHARP = 1e-30


def softmax(z: Tensor, temperature: float) -> Tensor:
    """``softmax(z / temperature)`` over the last dimension, for any temperature > 0."""
    if temperature < SHARP:
        # the largest logits share all of it, whatever the temperature rounds to
        return torch.softmax((z - z.amax(-1, keepdim=True)) / max(temperature, torch.finfo(z.dtype).tiny), dim=-1)
    return torch.softmax(z / temperature, dim=-1)


def cumsoftmax(z: Tensor, temperature: float) -> Gate:
    """Inclusive cumulative softmax over the last dimension, in the accumulation dtype.

    The complement has its own scan from the right: 1 - gate turns negative by rounding in a tenth of all rows and has
    no correct digit where the gate is near 1. Rounding can carry either scan past 1 by a few ulp, hence the clamp.
    """
    p = softmax(z.to(accumulation_dtype(z.dtype)), temperature)
    gate = p.cumsum(-1).clamp(max=1)
    from_right = p.flip(-1).cumsum(-1).flip(-1).clamp(max=1)
    complement = torch.cat([from_right[..., 1:], torch.zeros_like(p[..., :1])], dim=-1)
    return Gate(gate, complement, p)


def cumsoftmax_backward(grad_gate: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Gradient with respect to z: s_j = sum of grad_gate from j on, dz = p * (s - <p, s>) / temperature."""
    return softmax_backward(grad_gate.flip(-1).cumsum(-1).flip(-1), p, temperature)


def softmax_backward(grad: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Gradient with respect to z of p = softmax(z / temperature)."""
    return p * (grad - (p * grad).sum(-1, keepdim=True)) / max(temperature, torch.finfo(p.dtype).tiny)


def expand_gate(gate: Tensor, d: int) -> Tensor:
    """One value per chunk ``[..., d/c]`` to one per dimension ``[..., d]``."""
    chunk = d // gate.shape[-1]
    return gate if chunk == 1 else gate.repeat_interleave(chunk, dim=-1)


def chunk_sum(x: Tensor, gates: int) -> Tensor:
    """The adjoint of :func:`expand_gate`: ``[..., d]`` to ``[..., gates]``."""
    return x if x.shape[-1] == gates else x.reshape(*x.shape[:-1], gates, x.shape[-1] // gates).sum(-1)


def single_share(gate: Gate) -> Tensor:
    """``[..., 2]``: uni, paired. Each has its own sum, for the reason that the complement has its own scan."""
    return torch.stack([gate.complement.mean(-1), gate.gate.mean(-1)], dim=-1)


def single_share_backward(grad_share: Tensor, gates: int) -> Tensor:
    """What the share's gradient adds to that of each gate: ``[..., 1]``."""
    return (grad_share[..., 1:] - grad_share[..., :1]) / gates


def dual_masses(uni: Gate, paired: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """What uni-only, paired-only and shared take, per gate: e nr, r ne, e r with e = 1 - cumsoftmax(z_uni),
    r = cumsoftmax(z_paired), ne = 1 - e, nr = 1 - r."""
    ne, e, _ = uni
    r, nr, _ = paired
    return e * nr, r * ne, e * r


def dual_grad_gates(
    uni: Gate, paired: Gate, by_uni: Tensor, by_paired: Tensor, by_shared: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to both cumulative softmaxes, of z_uni and of z_paired, from those with respect to
    :func:`dual_masses`."""
    ne, e, _ = uni
    r, nr, _ = paired
    grad_e = by_uni * nr + (by_shared - by_paired) * r
    return -grad_e, by_paired * ne + (by_shared - by_uni) * e


def dual_share(uni: Gate, paired: Gate) -> Tensor:
    """``[..., 4]``: uni-only, paired-only, shared, unused (ne nr)."""
    unused = uni.gate * paired.complement
    return torch.stack([mass.mean(-1) for mass in (*dual_masses(uni, paired), unused)], dim=-1)


def dual_share_backward(grad_share: Tensor, gates: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the share's gradient adds to that of the three masses of each gate, ``[..., 1]`` each: what nobody takes is
    what they leave of 1."""
    uni, paired, shared = ((grad_share[..., :3] - grad_share[..., 3:]) / gates).unsqueeze(-2).unbind(-1)
    return uni, paired, shared


def empty_share(z: Tensor, partitions: int) -> Tensor:
    """Memory for the share of gates of these logits ``[..., g]``: ``[..., partitions]`` in the accumulation dtype."""
    return z.new_empty((*z.shape[:-1], partitions), dtype=accumulation_dtype(z.dtype))
