"""Predictions of several heads as one, each row trusting the heads by how certain they are of it.

    c_k = max softmax(z_k),  w = softmax_k(c_k / temperature),  fused = sum_k w_k z_k

Source: the inference of DI-MML, Fan et al., ACM MM 2024, arXiv 2407.19514.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_features, check_temperature, check_tensor
from .gates import accumulation_dtype
from .registration import define, define_autograd, define_backward

__all__ = ["certainty_weighted_logits"]


def certainty_weighted_logits(
    logits: Sequence[Tensor], temperature: float = 1.0, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the heads' logits, weighted row by row by their certainty.

    Args:
        logits: K tensors ``[B, C]`` of one floating dtype, K >= 1.
        temperature: of the certainties, which are in [1/C, 1]; finite and > 0. Large: the plain mean.
        present: bool ``[B, K]``, heads that may speak; the others weigh 0. A row without any gives zeros. None for all.

    Returns:
        ``(fused[B, C], weights[B, K])`` in the dtype of the logits; formed in fp32 (fp64 for fp64). Under autocast the
        op runs in the dtype it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ, ``present`` that is not bool, a
            temperature that is not a Python number.
        ValueError: no logits, shapes that do not fit, tensors on different devices, a temperature that is not finite
            and positive.
    """
    if isinstance(logits, Tensor) or not isinstance(logits, Sequence) or not logits:
        raise ValueError(f"logits must be a sequence of at least one tensor [B, C], got {_described(logits)}")
    first = logits[0]
    for k, z in enumerate(logits):
        check_tensor(f"logits[{k}]", z, shape=(None, None) if k == 0 else tuple(first.shape), like=first if k else None)
        check_features(f"logits[{k}]", z)
        if z.dtype != first.dtype:
            raise TypeError(f"logits[{k}] must have the dtype of logits[0] ({first.dtype}), got {z.dtype}")
    temperature = check_temperature(temperature)
    if present is not None:
        if not isinstance(present, Tensor) or present.dtype != torch.bool:
            got = present.dtype if isinstance(present, Tensor) else type(present).__name__
            raise TypeError(f"present must be a bool tensor, got {got}")
        wanted = [first.shape[0], len(logits)]
        if list(present.shape) != wanted or present.device != first.device:
            raise ValueError(
                f"present must have shape {wanted} on {first.device}, got {list(present.shape)} on {present.device}"
            )
    return _certainty(torch.stack(list(logits), dim=1), present, temperature)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of shape {list(value.shape)}"
    return f"{type(value).__name__}" if not isinstance(value, Sequence) else "none"


def _weights(z: Tensor, present: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights ``[B, K]`` and class probabilities ``[B, K, C]`` in the accumulation dtype."""
    p = z.to(accumulation_dtype(z.dtype)).softmax(-1)
    scores = p.amax(-1) / temperature
    if present is None:
        return scores.softmax(-1), p
    # a row without heads would be a softmax over nothing
    w = scores.masked_fill(~present, -torch.inf).softmax(-1)
    return torch.where(present, w, torch.zeros_like(w)), p


def _reference(z: Tensor, present: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    w, _ = _weights(z, present, temperature)
    fused = (w.unsqueeze(-1) * z.to(w.dtype)).sum(1)
    return fused.to(z.dtype), w.to(z.dtype)


def _reference_backward(
    grad_fused: Tensor, grad_weights: Tensor, z: Tensor, present: Tensor | None, temperature: float
) -> Tensor:
    w, p = _weights(z, present, temperature)
    grad_fused = grad_fused.to(w.dtype).unsqueeze(1)
    grad_w = (grad_fused * z.to(w.dtype)).sum(-1) + grad_weights
    grad_c = w * (grad_w - (w * grad_w).sum(-1, keepdim=True)) / temperature
    top, at = p.max(-1, keepdim=True)
    # d max softmax / dz = p_max (1[argmax] - p)
    grad_z = -p * (top * grad_c.unsqueeze(-1))
    grad_z.scatter_add_(-1, at, top * grad_c.unsqueeze(-1))
    return (grad_z + w.unsqueeze(-1) * grad_fused).to(z.dtype)


_certainty = define(
    "certainty_weighted_logits(Tensor z, Tensor? present, float temperature) -> (Tensor, Tensor)",
    _reference,
    lambda z, present, temperature: (z.new_empty(z.shape[0], z.shape[2]), z.new_empty(z.shape[:2])),
)
_certainty_backward = define_backward(
    "certainty_weighted_logits_backward(Tensor grad_fused, Tensor grad_weights, Tensor z, Tensor? present, float "
    "temperature) -> Tensor",
    _reference_backward,
    lambda grad_fused, grad_weights, z, present, temperature: z.new_empty(z.shape),
)


def _setup_context(ctx, inputs, output) -> None:
    z, present, ctx.temperature = inputs
    ctx.save_for_backward(z, present)


def _backward(ctx, grad_fused: Tensor, grad_weights: Tensor):
    return _certainty_backward(grad_fused, grad_weights, *ctx.saved_tensors, ctx.temperature), None, None


define_autograd(_certainty, _setup_context, _backward)
