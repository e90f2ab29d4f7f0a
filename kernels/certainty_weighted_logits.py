"""certainty_weighted_logits: heads' logits summed row by row by how certain each head is of the row.

    c_k = max softmax(z_k),  w = softmax_k(c_k / temperature),  fused = sum_k w_k z_k

One launch forward, which names each row's class and counts the right ones where it is asked to, and one backward. The
certainty is 1 / sum of exp(z_k - max z_k): nothing but that sum is formed of a softmax. Sums are formed in fp32 (fp64
for fp64), a row's by one program, in an order that the number of classes alone decides. The one atomic addition is of
whole numbers, whose sum is the same in any order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import LN_2, read_number, scale_argument
from .groups import launch
from .mixtures import add, block, mix, tiles

__all__ = ["backward", "forward", "predict"]


@triton.jit
def _weights(certainties, p_present, o_row, m_row, scale):
    """A tuple of the weights ``[rows, 1]``, 0 for heads that are not present."""
    HEADS: tl.constexpr = len(certainties)
    scores = ()
    for k in tl.static_range(HEADS):
        score = certainties[k]
        if p_present is not None:
            there = tl.load(p_present + o_row * HEADS + k, m_row, other=0) != 0
            score = tl.where(there, score, float("-inf"))
        scores = scores + (score,)
    peak = scores[0]
    for k in tl.static_range(1, HEADS):
        peak = tl.maximum(peak, scores[k])
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.zeros_like(peak)
    for k in tl.static_range(HEADS):
        total += tl.exp2((scores[k] - peak) * scale)
    # a row without heads has a sum of 0 and weights of 0
    total = tl.where(total == 0.0, 1.0, total)
    weights = ()
    for k in tl.static_range(HEADS):
        weights = weights + (tl.exp2((scores[k] - peak) * scale) / total,)
    return weights


@triton.jit
def _first(x, peak, o_class, classes):
    """The first class at which ``x`` is ``peak``."""
    return tl.min(tl.where(x == peak, o_class, classes), 1, keep_dims=True)


@triton.jit(do_not_specialize=["rows", "scale"])
def certainty_kernel(
    p_logits, p_present, p_labels, p_fused, p_weights, p_prediction, p_correct, rows, classes, scale,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows, BLOCK classes at a time. Writes fused and weights; prediction and the count of right
    ones where there is a place for them."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m_row = o_row < rows
    scale = read_number(scale, p_fused)
    REAL: tl.constexpr = scale.dtype
    HEADS: tl.constexpr = len(p_logits)
    element: tl.constexpr = p_fused.dtype.element_ty
    certainties = ()
    for k in tl.static_range(HEADS):
        peak = tl.full(o_row.shape, float("-inf"), REAL)
        total = tl.zeros(o_row.shape, REAL)
        for step in range(STEPS):
            o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
            peak, total = add(peak, total, block(p_logits[k], o_row, m_row, o_class, classes, REAL))
        certainties = certainties + (1.0 / total,)
    weights = _weights(certainties, p_present, o_row, m_row, scale)
    for k in tl.static_range(HEADS):
        tl.store(p_weights + o_row * HEADS + k, weights[k].to(element), m_row)
    peak = tl.full(o_row.shape, float("-inf"), REAL)
    chosen = tl.zeros(o_row.shape, tl.int32)
    for step in range(STEPS):
        o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = m_row & (o_class < classes)
        fused = mix(p_logits, weights, o_row, m_row, o_class, classes, HEADS, REAL).to(element)
        tl.store(p_fused + o_row * classes + o_class, fused, mask)
        if p_prediction is not None:
            # the class is of what is returned
            seen = tl.where(mask, fused.to(REAL), float("-inf"))
            largest = tl.max(seen, 1, keep_dims=True)
            chosen = tl.where(largest > peak, _first(seen, largest, o_class, classes), chosen)
            peak = tl.maximum(peak, largest)
    if p_prediction is not None:
        tl.store(p_prediction + o_row, chosen.to(tl.int64), m_row)
    if p_labels is not None:
        label = tl.load(p_labels + o_row, m_row, other=-1)
        right = tl.sum(tl.where(label == chosen.to(tl.int64), 1, 0).to(tl.int64))
        tl.atomic_add(p_correct, right, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "scale"])
def certainty_backward_kernel(
    p_grad_fused, p_grad_weights, p_logits, p_present, p_grad_logits, stride_grad_fused, stride_grad_weights,
    rows, classes, scale,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """With c_k the certainties:

        grad_w_k = grad_weights_k + <grad_fused, z_k>,  grad_c = w (grad_w - <w, grad_w>) / temperature
        grad_z_k = w_k grad_fused + grad_c_k c_k (1[first class of the maximum] - softmax(z_k))

    A program owns ROWS rows. Writes the gradients of all heads, one after the other.
    """
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m_row = o_row < rows
    scale = read_number(scale, p_grad_logits)
    REAL: tl.constexpr = scale.dtype
    HEADS: tl.constexpr = len(p_logits)
    certainties, peaks, firsts, by_weights = (), (), (), ()
    for k in tl.static_range(HEADS):
        peak = tl.full(o_row.shape, float("-inf"), REAL)
        total = tl.zeros(o_row.shape, REAL)
        first = tl.zeros(o_row.shape, tl.int32)
        dot = tl.load(p_grad_weights + o_row * stride_grad_weights + k, m_row, other=0.0).to(REAL)
        for step in range(STEPS):
            o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
            mask = m_row & (o_class < classes)
            x = block(p_logits[k], o_row, m_row, o_class, classes, REAL)
            largest = tl.max(x, 1, keep_dims=True)
            first = tl.where(largest > peak, _first(x, largest, o_class, classes), first)
            peak, total = add(peak, total, x)
            grad = tl.load(p_grad_fused + o_row * stride_grad_fused + o_class, mask, other=0.0).to(REAL)
            dot += tl.sum(tl.where(mask, grad * x, 0.0), 1, keep_dims=True)
        certainties, peaks = certainties + (1.0 / total,), peaks + (peak,)
        firsts, by_weights = firsts + (first,), by_weights + (dot,)
    weights = _weights(certainties, p_present, o_row, m_row, scale)
    mean = tl.zeros(o_row.shape, REAL)
    for k in tl.static_range(HEADS):
        mean += weights[k] * by_weights[k]
    by_certainties = ()
    for k in tl.static_range(HEADS):
        by_certainties = by_certainties + (weights[k] * (by_weights[k] - mean) * (scale * LN_2) * certainties[k],)
    for step in range(STEPS):
        o_class = step * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = m_row & (o_class < classes)
        grad = tl.load(p_grad_fused + o_row * stride_grad_fused + o_class, mask, other=0.0).to(REAL)
        for k in tl.static_range(HEADS):
            x = block(p_logits[k], o_row, m_row, o_class, classes, REAL)
            softmax = tl.exp(x - peaks[k]) * certainties[k]
            grad_x = weights[k] * grad + by_certainties[k] * (tl.where(o_class == firsts[k], 1.0, 0.0) - softmax)
            at = k * rows.to(tl.int64) * classes + o_row * classes + o_class
            tl.store(p_grad_logits + at, grad_x.to(p_grad_logits.dtype.element_ty), mask)


def forward(logits: list[Tensor], present: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """``(fused[B, C], weights[B, K])`` of K contiguous logits, in their dtype."""
    return _run(logits, present, None, temperature, None, None)


def predict(
    logits: list[Tensor], present: Tensor | None, labels: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`forward`, with each row's class, int64 ``[B]``, and how often it is the label, an int64 scalar."""
    prediction = logits[0].new_empty(logits[0].shape[0], dtype=torch.int64)
    correct = logits[0].new_zeros((), dtype=torch.int64)
    return *_run(logits, present, labels, temperature, prediction, correct), prediction, correct


def _run(logits, present, labels, temperature, prediction, correct) -> tuple[Tensor, Tensor]:
    first = logits[0]
    rows, classes = first.shape
    fused, weights = torch.empty_like(first), first.new_empty(rows, len(logits))
    programs, constants = tiles(rows, classes, first.dtype)
    launch(
        certainty_kernel, programs, tuple(logits), present, labels, fused, weights, prediction, correct, rows, classes,
        scale_argument(temperature, first.dtype), **constants,
    )  # fmt: skip
    return fused, weights


def backward(
    grad_fused: Tensor, grad_weights: Tensor, logits: list[Tensor], present: Tensor | None, temperature: float
) -> Tensor:
    """Gradients of all logits in one tensor ``[K, B, C]``; the incoming ones may be rows that lie apart."""
    first = logits[0]
    rows, classes = first.shape
    grad_logits = first.new_empty(len(logits), rows, classes)
    programs, constants = tiles(rows, classes, first.dtype)
    launch(
        certainty_backward_kernel, programs, grad_fused, grad_weights, tuple(logits), present, grad_logits,
        grad_fused.stride(0), grad_weights.stride(0), rows, classes, scale_argument(temperature, first.dtype),
        **constants,
    )  # fmt: skip
    return grad_logits
