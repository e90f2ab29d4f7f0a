"""gated_mixture: predictions mixed by a softmaxed gate, with the cross-entropies of the mixture and of each.

    weights = softmax(gate),  fused = sum_k weights_k logits_k
    losses = -log softmax(x)[label] for x = fused, logits_0, logits_1, ...

Forward and backward are one launch each, over all predictions at once. Sums are formed in fp32 (fp64 for fp64);
backward forms gate weights and probabilities again. A row is one program's, in an order that the number of classes
alone decides: no atomics. Whatever a program reads a second time it has just read.

The gate and the gradients that come in may be rows that lie apart, as columns of a wider table do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import cuda_capability_geq

from .groups import launch
from .mixtures import add, block, mix, real, tiles

__all__ = ["backward", "forward"]


@triton.jit
def _gate_weights(p_gate, o_row, m_row, stride, MIXED: tl.constexpr, REAL: tl.constexpr):
    """A tuple of the weights ``[rows, 1]``."""
    gates = ()
    for k in tl.static_range(MIXED):
        gates = gates + (tl.load(p_gate + o_row * stride + k, m_row, other=0.0).to(REAL),)
    peak = gates[0]
    for k in tl.static_range(1, MIXED):
        peak = tl.maximum(peak, gates[k])
    total = tl.zeros_like(peak)
    for k in tl.static_range(MIXED):
        total += tl.exp(gates[k] - peak)
    weights = ()
    for k in tl.static_range(MIXED):
        weights = weights + (tl.exp(gates[k] - peak) / total,)
    return weights


@triton.jit
def _statistics(
    p_logits, weights, o_row, m_row, classes, MIXED: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Peaks and sums of the mixture and of every prediction, in tuples."""
    peak = tl.full(o_row.shape, float("-inf"), REAL)
    total = tl.zeros(o_row.shape, REAL)
    for step in range(STEPS):
        o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = mix(p_logits, weights, o_row, m_row, o_class, classes, MIXED, REAL)
        peak, total = add(peak, total, tl.where(o_class < classes, x, float("-inf")))
    peaks, totals = (peak,), (total,)
    for k in tl.static_range(len(p_logits)):
        peak = tl.full(o_row.shape, float("-inf"), REAL)
        total = tl.zeros(o_row.shape, REAL)
        for step in range(STEPS):
            o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
            peak, total = add(peak, total, block(p_logits[k], o_row, m_row, o_class, classes, REAL))
        peaks, totals = peaks + (peak,), totals + (total,)
    return peaks, totals


@triton.jit(do_not_specialize=["rows"])
def gated_mixture_kernel(
    p_gate, p_logits, p_labels, p_fused, p_weights, p_losses, stride_gate, rows, classes,
    MIXED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows, BLOCK classes at a time. Writes fused, weights and, given labels, losses."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m_row = o_row < rows
    REAL: tl.constexpr = p_weights.dtype.element_ty
    weights = _gate_weights(p_gate, o_row, m_row, stride_gate, MIXED, REAL)
    for k in tl.static_range(MIXED):
        tl.store(p_weights + o_row * MIXED + k, weights[k], m_row)
    if p_labels is not None:
        SCORED: tl.constexpr = len(p_logits)
        label = tl.load(p_labels + o_row, m_row, other=0)
        peaks, totals = _statistics(p_logits, weights, o_row, m_row, classes, MIXED, BLOCK, STEPS, REAL)
        # a label outside of the classes reads nothing and shows as NaN
        known = (label >= 0) & (label < classes)
        mixed = tl.zeros(o_row.shape, REAL)
        for k in tl.static_range(SCORED):
            x = tl.load(p_logits[k] + o_row * classes + label, m_row & known, other=0.0).to(REAL)
            if k < MIXED:
                mixed += x * weights[k]
            loss = tl.where(known, peaks[k + 1] - x + tl.log(totals[k + 1]), float("nan"))
            tl.store(p_losses + o_row * (SCORED + 1) + (k + 1), loss, m_row)
        loss = tl.where(known, peaks[0] - mixed + tl.log(totals[0]), float("nan"))
        tl.store(p_losses + o_row * (SCORED + 1), loss, m_row)
    for step in range(STEPS):
        o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
        fused = mix(p_logits, weights, o_row, m_row, o_class, classes, MIXED, REAL)
        tl.store(p_fused + o_row * classes + o_class, fused.to(p_fused.dtype.element_ty), m_row & (o_class < classes))


@triton.jit
def _error(x, peak, total, hit):
    """softmax(x) - 1[label], 0 past the last class."""
    return tl.exp(x - peak) * (1.0 / total) - hit


@triton.jit(do_not_specialize=["rows"])
def gated_mixture_backward_kernel(
    p_grad_fused, p_grad_weights, p_grad_losses, p_gate, p_logits, p_labels, p_grad_gate, p_grad_logits,
    stride_grad_fused, stride_grad_weights, stride_grad_losses, stride_gate, rows, classes,
    MIXED: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """``grad = grad_fused + grad_loss * (softmax(fused) - 1[label])`` is the mixture's; a prediction gets its weight's
    share of it and what comes by its own loss, a weight ``<grad, logits>``.

    A program owns ROWS rows. Writes the gradients of the gate and, one after the other, of all predictions.
    """
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m_row = o_row < rows
    REAL: tl.constexpr = p_grad_weights.dtype.element_ty
    element: tl.constexpr = p_grad_logits.dtype.element_ty
    # with the assembler of triton 3.6 labels cost a stack on sm_100 if read late, and many registers on sm_90 if early
    EARLY: tl.constexpr = cuda_capability_geq(10)
    weights = _gate_weights(p_gate, o_row, m_row, stride_gate, MIXED, REAL)
    if p_labels is not None:
        if EARLY:
            label = tl.load(p_labels + o_row, m_row, other=0)
        peaks, totals = _statistics(p_logits, weights, o_row, m_row, classes, MIXED, BLOCK, STEPS, REAL)
        if not EARLY:
            label = tl.load(p_labels + o_row, m_row, other=0)
        p_by_loss = p_grad_losses + o_row * stride_grad_losses
        by_mixture = tl.load(p_by_loss, m_row, other=0.0).to(REAL)
    o_mixed = tl.arange(0, PADDED)[None, :]
    by_weights = tl.zeros((ROWS, PADDED), REAL)
    for step in range(STEPS):
        o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = m_row & (o_class < classes)
        grad = tl.load(p_grad_fused + o_row * stride_grad_fused + o_class, mask, other=0.0).to(REAL)
        if p_labels is not None:
            hit = tl.where(o_class == label, 1.0, 0.0)
            fused = mix(p_logits, weights, o_row, m_row, o_class, classes, MIXED, REAL)
            grad += by_mixture * _error(fused, peaks[0], totals[0], hit)
        for k in tl.static_range(len(p_logits)):
            x = block(p_logits[k], o_row, m_row, o_class, classes, REAL)
            grad_x = tl.zeros_like(x)
            if p_labels is not None:
                by_own = tl.load(p_by_loss + (k + 1), m_row, other=0.0).to(REAL)
                grad_x = by_own * _error(x, peaks[k + 1], totals[k + 1], hit)
            if k < MIXED:
                grad_x += weights[k] * grad
                dot = tl.sum(tl.where(mask, grad * x, 0.0), 1, keep_dims=True)
                by_weights += tl.where(o_mixed == k, dot, 0.0)
            at = k * rows.to(tl.int64) * classes + o_row * classes + o_class
            tl.store(p_grad_logits + at, grad_x.to(element), mask)
    m_mixed = m_row & (o_mixed < MIXED)
    by_weights += tl.load(p_grad_weights + o_row * stride_grad_weights + o_mixed, m_mixed, other=0.0).to(REAL)
    own = tl.zeros_like(by_weights)
    for k in tl.static_range(MIXED):
        own = tl.where(o_mixed == k, weights[k], own)
    grad_gate = own * (by_weights - tl.sum(own * by_weights, 1, keep_dims=True))
    tl.store(p_grad_gate + o_row * MIXED + o_mixed, grad_gate.to(p_grad_gate.dtype.element_ty), m_mixed)


def forward(gate: Tensor, logits: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``(fused[B, C], weights[B, K], losses[B, 1 + n])`` of ``gate[B, K]`` and n contiguous logits, of which the first
    K are mixed; losses are empty without labels."""
    wide = real(logits[0].dtype)
    (rows, mixed), classes = gate.shape, logits[0].shape[1]
    fused, weights = logits[0].new_empty(rows, classes), gate.new_empty((rows, mixed), dtype=wide)
    losses = gate.new_empty(0 if labels is None else (rows, 1 + len(logits)), dtype=wide)
    programs, constants = tiles(rows, classes, logits[0].dtype)
    launch(
        gated_mixture_kernel, programs, gate, tuple(logits), labels, fused, weights, losses, gate.stride(0), rows,
        classes, MIXED=mixed, **constants,
    )  # fmt: skip
    return fused, weights, losses


def backward(
    grad_fused: Tensor,
    grad_weights: Tensor,
    grad_losses: Tensor,
    gate: Tensor,
    logits: list[Tensor],
    labels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the gate, and of all logits in one tensor ``[n, B, C]``."""
    (rows, mixed), classes = gate.shape, logits[0].shape[1]
    grad_gate, grad_logits = gate.new_empty(gate.shape), logits[0].new_empty(len(logits), rows, classes)
    programs, constants = tiles(rows, classes, logits[0].dtype)
    strides = grad_fused.stride(0), grad_weights.stride(0), grad_losses.stride(0), gate.stride(0)
    launch(
        gated_mixture_backward_kernel, programs, grad_fused, grad_weights, grad_losses, gate, tuple(logits), labels,
        grad_gate, grad_logits, *strides, rows, classes, MIXED=mixed, PADDED=triton.next_power_of_2(mixed), **constants,
    )  # fmt: skip
    return grad_gate, grad_logits
