"""Predictions of several heads as one, each row trusting the heads by how certain they are of it.

    c_k = max softmax(z_k),  w = softmax_k(c_k / temperature),  fused = sum_k w_k z_k

Source: the inference of DI-MML, Fan et al., ACM MM 2024, arXiv 2407.19514.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.triton import contiguous_rows, register_triton
from .checks import check_features, check_labels, check_temperature, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward

__all__ = ["CertaintyPrediction", "certainty_weighted_logits", "certainty_weighted_prediction"]


class CertaintyPrediction(NamedTuple):
    """Of B rows and K heads, all on the device of the logits; nothing of it is differentiable.

    Attributes:
        fused: ``[B, C]``; weights: ``[B, K]``, both as of :func:`certainty_weighted_logits`.
        classes: int64 ``[B]``, the first at which fused is largest.
        correct: int64 scalar, in how many rows that is the label; 0 without labels.
    """

    fused: Tensor
    weights: Tensor
    classes: Tensor
    correct: Tensor


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
    return _certainty(*_check(logits, temperature, present))


def certainty_weighted_prediction(
    logits: Sequence[Tensor],
    temperature: float = 1.0,
    present: Tensor | None = None,
    labels: Tensor | None = None,
) -> CertaintyPrediction:
    """As :func:`certainty_weighted_logits`, with the class of every row and the count of right ones, in the same pass.

    Args:
        logits, temperature, present: as there.
        labels: int64 ``[B]``; one that is no class is never right. None to count nothing.

    Raises:
        TypeError, ValueError: as there; labels that are not int64 ``[B]``.
    """
    heads, present, temperature = _check(logits, temperature, present)
    if labels is not None:
        check_labels(labels, heads[0])
    return CertaintyPrediction(*_certainty_prediction([z.detach() for z in heads], present, labels, temperature))


def _check(
    logits: Sequence[Tensor], temperature: float, present: Tensor | None
) -> tuple[list[Tensor], Tensor | None, float]:
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
    return list(logits), present, temperature


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of shape {list(value.shape)}"
    return f"{type(value).__name__}" if not isinstance(value, Sequence) else "none"


def _weights(logits: list[Tensor], present: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``[B, K]``, logits and class probabilities ``[K, B, C]`` in the accumulation dtype."""
    z = torch.stack(logits).to(accumulation_dtype(logits[0].dtype))
    p = z.softmax(-1)
    scores = p.amax(-1).t() / temperature
    if present is None:
        return scores.softmax(-1), z, p
    # a row without heads would be a softmax over nothing
    w = scores.masked_fill(~present, -torch.inf).softmax(-1)
    return torch.where(present, w, torch.zeros_like(w)), z, p


def _reference(logits: list[Tensor], present: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    w, z, _ = _weights(logits, present, temperature)
    dtype = logits[0].dtype
    return (w.t().unsqueeze(-1) * z).sum(0).to(dtype), w.to(dtype)


def _reference_prediction(
    logits: list[Tensor], present: Tensor | None, labels: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fused, w = _reference(logits, present, temperature)
    classes = fused.argmax(-1)
    correct = classes.new_zeros(()) if labels is None else (classes == labels).sum()
    return fused, w, classes, correct


def _reference_backward(
    grad_fused: Tensor, grad_weights: Tensor, logits: list[Tensor], present: Tensor | None, temperature: float
) -> Tensor:
    w, z, p = _weights(logits, present, temperature)
    grad_fused = grad_fused.to(w.dtype)
    grad_w = (grad_fused * z).sum(-1).t() + grad_weights
    grad_c = w * (grad_w - (w * grad_w).sum(-1, keepdim=True)) / temperature
    top, at = p.max(-1, keepdim=True)
    # d max softmax / dz = p_max (1[argmax] - p)
    by_top = top * grad_c.t().unsqueeze(-1)
    grad_z = (-p * by_top).scatter_add_(-1, at, by_top)
    return (grad_z + w.t().unsqueeze(-1) * grad_fused).to(logits[0].dtype)


def _fake(logits, present, temperature):
    first = logits[0]
    return first.new_empty(first.shape), first.new_empty(first.shape[0], len(logits))


def _fake_prediction(logits, present, labels, temperature):
    first = logits[0]
    counts = first.new_empty(first.shape[0], dtype=torch.int64), first.new_empty((), dtype=torch.int64)
    return *_fake(logits, present, temperature), *counts


_certainty = define(
    "certainty_weighted_logits(Tensor[] logits, Tensor? present, float temperature) -> (Tensor, Tensor)",
    _reference,
    _fake,
)
_certainty_backward = define_backward(
    "certainty_weighted_logits_backward(Tensor grad_fused, Tensor grad_weights, Tensor[] logits, Tensor? present, "
    "float temperature) -> Tensor",
    _reference_backward,
    lambda grad_fused, grad_weights, logits, present, temperature: logits[0].new_empty((len(logits), *logits[0].shape)),
)
_certainty_prediction = define(
    "certainty_weighted_prediction(Tensor[] logits, Tensor? present, Tensor? labels, float temperature) -> (Tensor, "
    "Tensor, Tensor, Tensor)",
    _reference_prediction,
    _fake_prediction,
)

# heads that the Triton kernels are unrolled over at most: 16 spill on sm_100
_TRITON_MAX_HEADS = 8


def _refuse(*arguments) -> str | None:
    (logits,) = (x for x in arguments if isinstance(x, (list, tuple)))
    if len(logits) > _TRITON_MAX_HEADS:
        return f"takes at most {_TRITON_MAX_HEADS} heads, not {len(logits)}"
    return None


_TRITON = {"refuse": _refuse, "prepare": contiguous_rows}
register_triton("certainty_weighted_logits", **_TRITON)
register_triton("certainty_weighted_prediction", "certainty_weighted_logits", "predict", **_TRITON)


def _setup_context(ctx, inputs, output) -> None:
    logits, present, ctx.temperature = inputs
    ctx.save_for_backward(present, *logits)


def _backward(ctx, grad_fused: Tensor, grad_weights: Tensor):
    present, *logits = ctx.saved_tensors
    grad_logits = _certainty_backward(grad_fused, grad_weights, logits, present, ctx.temperature)
    return list(grad_logits.unbind(0)), None, None


define_autograd(_certainty, _setup_context, _backward)
