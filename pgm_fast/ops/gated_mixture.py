"""Predictions mixed by a softmaxed gate, and the cross-entropies of the mixture and of every prediction, in one pass.

    weights = softmax(gate),  fused = sum_k weights_k logits_k

Source: the per-sample gate over interaction components of DMIL (Yang et al., CVPR 2026, arXiv 2606.11614).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..backends.native import NATIVE_DTYPES
from ..backends.triton import contiguous_rows, register_triton
from .checks import check_features, check_labels, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward

__all__ = ["gated_mixture", "gated_mixture_loss"]


def gated_mixture(logits: Sequence[Tensor], gate: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes K predictions per row.

    Args:
        logits: K tensors ``[B, C]``, floating point, of one dtype.
        gate: ``[B, K]``, unnormalised, of any floating dtype. An entry of -inf takes its prediction out; in a row where
            all are, nothing is left to mix: NaN.

    Returns:
        ``(fused[B, C], weights[B, K])``: fused in the dtype of ``logits``; weights in fp32 (fp64 for fp64), every row
        sums to 1. Sums are formed in that dtype.

    Under autocast the op runs in the dtypes it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ among ``logits``.
        ValueError: no logits, shapes that do not fit, tensors on different devices.
    """
    logits = _check(logits, (), gate)
    return _gated_mixture(gate, logits, None)[:2]


def gated_mixture_loss(
    logits: Sequence[Tensor], gate: Tensor, labels: Tensor, others: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`gated_mixture`, with the cross-entropy of the mixture and of each prediction in every row.

    Args:
        logits, gate: as there.
        labels: int64 ``[B]``, classes in [0, C).
        others: more predictions ``[B, C]`` that are scored and not mixed.

    Returns:
        ``(fused, weights, losses)``: losses in fp32 (fp64 for fp64), ``[B, 1 + K + len(others)]``: of the mixture, of
        ``logits``, of ``others``. Not summed over rows, so that each may be weighted by rows of its own.

    Raises:
        TypeError, ValueError: as there; labels that are not int64 ``[B]``.
    """
    every = _check(logits, others, gate)
    check_labels(labels, gate)
    return _gated_mixture(gate, every, labels)


def _check(logits: Sequence[Tensor], others: Sequence[Tensor], gate: Tensor) -> list[Tensor]:
    if not isinstance(logits, (list, tuple)) or not logits:
        raise ValueError(f"logits must be a list of at least one [B, C] tensor, got {logits!r:.60}")
    check_tensor("gate", gate, shape=(None, len(logits)))
    named = {f"logits[{k}]": x for k, x in enumerate(logits)} | {f"others[{k}]": x for k, x in enumerate(others)}
    first = logits[0]
    for name, x in named.items():
        classes = None if x is first else first.shape[1]
        check_tensor(name, x, shape=(gate.shape[0], classes), like=gate)
        if x.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of logits[0] ({first.dtype}), got {x.dtype}")
    check_features("logits[0]", first)
    return list(named.values())


def _wide(gate: Tensor, logits: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gate weights ``[B, K]``, predictions ``[n, B, C]`` and their mixture, in the accumulation dtype of the logits."""
    dtype = accumulation_dtype(logits[0].dtype)
    weights = torch.softmax(gate.to(dtype), dim=1)
    stacked = torch.stack(logits).to(dtype)
    return weights, stacked, (weights.t().unsqueeze(-1) * stacked[: gate.shape[1]]).sum(0)


def _reference(gate, logits, labels):
    weights, stacked, fused = _wide(gate, logits)
    losses = weights.new_empty(0)
    if labels is not None:
        scored = torch.cat([fused.unsqueeze(0), stacked])
        losses = F.cross_entropy(scored.flatten(0, 1), labels.repeat(len(scored)), reduction="none")
        losses = losses.unflatten(0, (len(scored), -1)).t().contiguous()
    return fused.to(logits[0].dtype), weights, losses


def _reference_backward(grad_fused, grad_weights, grad_losses, gate, logits, labels):
    weights, stacked, fused = _wide(gate, logits)
    grad, by_scores = grad_fused.to(weights.dtype), torch.zeros_like(stacked)
    if labels is not None:
        scored = torch.cat([fused.unsqueeze(0), stacked])
        error = torch.softmax(scored, dim=-1) - F.one_hot(labels, fused.shape[1])
        error = error * grad_losses.t().unsqueeze(-1)
        grad, by_scores = grad + error[0], error[1:]
    mixed = gate.shape[1]
    grad_stacked = torch.cat([by_scores[:mixed] + weights.t().unsqueeze(-1) * grad, by_scores[mixed:]])
    grad_weights = grad_weights + (grad * stacked[:mixed]).sum(-1).t()
    grad_gate = weights * (grad_weights - (weights * grad_weights).sum(1, keepdim=True))
    return grad_gate.to(gate.dtype), grad_stacked.to(logits[0].dtype)


def _fake(gate, logits, labels):
    dtype = accumulation_dtype(logits[0].dtype)
    losses = gate.new_empty(0 if labels is None else (gate.shape[0], 1 + len(logits)), dtype=dtype)
    return logits[0].new_empty(logits[0].shape), gate.new_empty(gate.shape, dtype=dtype), losses


_gated_mixture = define(
    "gated_mixture(Tensor gate, Tensor[] logits, Tensor? labels) -> (Tensor, Tensor, Tensor)", _reference, _fake
)
_gated_mixture_backward = define_backward(
    "gated_mixture_backward(Tensor grad_fused, Tensor grad_weights, Tensor grad_losses, Tensor gate, Tensor[] logits, "
    "Tensor? labels) -> (Tensor, Tensor)",
    _reference_backward,
    lambda grad_fused, grad_weights, grad_losses, gate, logits, labels: (
        gate.new_empty(gate.shape),
        logits[0].new_empty((len(logits), *logits[0].shape)),
    ),
)


def _matrix(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), NATIVE_DTYPES[x.dtype], x.shape[1]


def _load_native():
    import pgm_fast._native as native

    kernel, threads = native.gated_mixture, torch.get_num_threads

    def run(gate, logits, labels):
        gate, logits = gate.contiguous(), [x.contiguous() for x in logits]
        labels = None if labels is None else labels.contiguous()
        fused, weights, losses = _fake(gate, logits, labels)
        kernel(
            gate.shape[0], _matrix(gate), list(map(_matrix, logits)), 0 if labels is None else labels.data_ptr(),
            _matrix(fused), weights.data_ptr(), losses.data_ptr(), threads(),
        )  # fmt: skip
        return fused, weights, losses

    return run


def _load_native_backward():
    import pgm_fast._native as native

    kernel, threads = native.gated_mixture_backward, torch.get_num_threads

    def run(grad_fused, grad_weights, grad_losses, gate, logits, labels):
        gate, logits = gate.contiguous(), [x.contiguous() for x in logits]
        labels = None if labels is None else labels.contiguous()
        grad_fused, grad_weights, grad_losses = (x.contiguous() for x in (grad_fused, grad_weights, grad_losses))
        grad_gate, grad_logits = torch.empty_like(gate), logits[0].new_empty((len(logits), *logits[0].shape))
        kernel(
            gate.shape[0], _matrix(grad_fused), grad_weights.data_ptr(), grad_losses.data_ptr(), _matrix(gate),
            list(map(_matrix, logits)), 0 if labels is None else labels.data_ptr(), _matrix(grad_gate),
            list(map(_matrix, grad_logits)), threads(),
        )  # fmt: skip
        return grad_gate, grad_logits

    return run


# predictions that the Triton kernels are unrolled over at most: 16 take 226 registers per thread on sm_90
_TRITON_MAX_SCORED = 16


def _refuse(*arguments) -> str | None:
    """Whatever the gate's dtype, sums are formed in that of the logits; the kernel converts 16-bit gates to float."""
    gate, logits = _gate_and_logits(arguments)
    if (gate.dtype == torch.float64) != (logits[0].dtype == torch.float64) or logits[0].dtype not in NATIVE_DTYPES:
        return f"does not mix {gate.dtype} with {logits[0].dtype}"
    return None


def _refuse_on_cuda(*arguments) -> str | None:
    _, logits = _gate_and_logits(arguments)
    if len(logits) > _TRITON_MAX_SCORED:
        return f"takes at most {_TRITON_MAX_SCORED} predictions, not {len(logits)}"
    return _refuse(*arguments)


def _gate_and_logits(arguments: tuple) -> tuple[Tensor, Sequence[Tensor]]:
    """Of the arguments of forward or backward: the logits are the only list, and the gate is before them."""
    return next((x, y) for x, y in zip(arguments, arguments[1:], strict=False) if isinstance(y, (list, tuple)))


_NATIVE = {"devices": ("cpu",), "dtypes": tuple(NATIVE_DTYPES), "refuse": _refuse}
backends.register("gated_mixture", "native", _load_native, **_NATIVE)
backends.register("gated_mixture_backward", "native", _load_native_backward, **_NATIVE)
register_triton("gated_mixture", refuse=_refuse_on_cuda, prepare=contiguous_rows)


def _setup_context(ctx, inputs, output) -> None:
    gate, logits, labels = inputs
    ctx.save_for_backward(gate, labels, *logits)


def _backward(ctx, grad_fused: Tensor, grad_weights: Tensor, grad_losses: Tensor):
    gate, labels, *logits = ctx.saved_tensors
    grad_gate, grad_logits = _gated_mixture_backward(grad_fused, grad_weights, grad_losses, gate, logits, labels)
    return grad_gate, list(grad_logits.unbind(0)), None


define_autograd(_gated_mixture, _setup_context, _backward)
