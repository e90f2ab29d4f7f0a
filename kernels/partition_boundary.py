"""Boundary partition on CUDA: the dual gate of bumps of logits around a row's boundaries,
``uni = (f + (1 - f) e) h``, ``paired = (f + (1 - f) r) h``.

    z_uni,j = -(x_j - b_uni)^2 / 2 width^2,  z_paired,j = -(x_j - (1 - b_paired))^2 / 2 width^2,  x_j = (j + 1/2) / d
    e = 1 - cumsoftmax(z_uni),  r = cumsoftmax(z_paired),  f = floor

Logits and gates are formed in registers in fp32 (fp64 for fp64), and in backward again: of a row only h, what it takes
of it and two numbers are in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import (
    LN_2,
    bump_logits,
    curve_argument,
    dual_grad_gates,
    dual_masses,
    empty_share,
    exponentials,
    gates,
    grad_by_dual_share,
    grad_by_share,
    load,
    number_argument,
    plan,
    read_number,
    softmax_statistics,
    store_dual_share,
    tile,
)

__all__ = ["backward", "forward", "forward_with_share"]

# Gates of the longest row that a program keeps in registers whole. Compiled for sm_90 by triton 3.9, registers per
# thread: forward 40, with shares 64, at 1024 bf16 (4 warps), 80 at 4096 fp32 with shares (16 warps, of at most 128);
# backward 84 and 112, and 145 at 2048 fp32 with shares (8 warps), which at 4096 spilled.
LONGEST_FORWARD = 4096
LONGEST_BACKWARD = 2048


def forward(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor]:
    """``(uni, paired)`` of contiguous ``h[..., d]``, ``b_uni`` and ``b_paired[..., 1]``, in the dtype of ``h``.
    ``detach_gates`` is for backward."""
    return _forward(h, b_uni, b_paired, None, width, floor)


def forward_with_share(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`forward`, and the mean of ``e (1 - r)``, ``r (1 - e)``, ``e r`` and ``(1 - e) (1 - r)`` per row
    ``[..., 4]``, fp32 (fp64 for fp64)."""
    share = empty_share(b_uni, 4)
    return *_forward(h, b_uni, b_paired, share, width, floor), share


def _forward(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, share: Tensor | None, width: float, floor: float
) -> tuple[Tensor, Tensor]:
    uni, paired = torch.empty_like(h), torch.empty_like(h)
    if h.numel():
        grid, constants, options = plan(h, h, LONGEST_FORWARD)
        partition_boundary_forward_kernel[grid](
            h, b_uni, b_paired, uni, paired, share, b_uni.numel(), *_numbers(h, width, floor), **constants, **options
        )
    return uni, paired


def backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    b_uni: Tensor,
    b_paired: Tensor,
    width: float,
    floor: float,
    detach_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(grad_h, grad_b_uni, grad_b_paired)`` of contiguous tensors, in the dtypes of ``h``, ``b_uni`` and
    ``b_paired``. With ``detach_gates`` the boundaries' are those of the share alone, and 0 without it."""
    grad_h, grad_b_uni, grad_b_paired = torch.empty_like(h), torch.empty_like(b_uni), torch.empty_like(b_paired)
    if h.numel():
        grid, constants, options = plan(h, h, LONGEST_BACKWARD)
        partition_boundary_backward_kernel[grid](
            grad_uni,
            grad_paired,
            grad_share,
            h,
            b_uni,
            b_paired,
            grad_h,
            grad_b_uni,
            grad_b_paired,
            b_uni.numel(),
            *_numbers(h, width, floor),
            DETACHED=detach_gates,
            **constants,
            **options,
        )
    return grad_h, grad_b_uni, grad_b_paired


def _numbers(h: Tensor, width: float, floor: float) -> tuple[float | int, float | int, float | int]:
    """curve, floor and 1 - floor as the kernels take them."""
    above = number_argument(1 - floor, h.dtype)
    return curve_argument(width, h.shape[-1], h.dtype), number_argument(floor, h.dtype), above


@triton.jit
def laid_out_as(h, logits):
    """The same logits, formed by the threads that hold ``h``. With no load of their own they would be formed one per
    thread, whose scans take more than twice the shuffles. Nothing is larger than infinity."""
    peak, tilt, curve = logits
    return tl.where(h > float("inf"), 0.0, peak), tilt, curve


@triton.jit(do_not_specialize=["rows", "curve", "floor", "above"])
def partition_boundary_forward_kernel(
    p_h,
    p_b_uni,
    p_b_paired,
    p_uni,
    p_paired,
    p_share,
    rows,
    curve,
    floor,
    above,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """A program owns ROWS rows. Writes uni and paired, and the shares where p_share is not None. A gate covers one
    entry of h: CHUNK and PIECE are 1."""
    curve, floor, above = read_number(curve, p_h), read_number(floor, p_h), read_number(above, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_h += first * GATES
    p_uni += first * GATES
    p_paired += first * GATES
    logits_e = bump_logits(p_b_uni + first, o_row, m_row, curve, False, GATES)
    logits_r = bump_logits(p_b_paired + first, o_row, m_row, curve, True, GATES)
    inverse_e, sums_e = softmax_statistics(logits_e, o_row, m_row, GATES, BLOCK, BLOCKS)
    inverse_r, sums_r = softmax_statistics(logits_r, o_row, m_row, GATES, BLOCK, BLOCKS)
    of_uni, of_paired = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    of_shared, of_none = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    for block in range(BLOCKS):
        at, mask = tile(o_row, m_row, block, 0, GATES, CHUNK, BLOCK, PIECE)
        h = load(p_h, at, mask, curve)
        ne, e, _ = gates(laid_out_as(h, logits_e), o_row, m_row, block, inverse_e, sums_e, GATES, BLOCK, BLOCKS)
        r, nr, _ = gates(laid_out_as(h, logits_r), o_row, m_row, block, inverse_r, sums_r, GATES, BLOCK, BLOCKS)
        tl.store(p_uni + at, (floor + above * e) * h, mask)
        tl.store(p_paired + at, (floor + above * r) * h, mask)
        if p_share is not None:
            more_uni, more_paired, more_shared, more_none = dual_masses(e, ne, r, nr, block, GATES, BLOCK)
            of_uni += more_uni
            of_paired += more_paired
            of_shared += more_shared
            of_none += more_none
    if p_share is not None:
        store_dual_share(p_share + first * 4, o_row, m_row, of_uni, of_paired, of_shared, of_none, GATES)


@triton.jit
def places(logits, block, BLOCK: tl.constexpr):
    """Places of one block from the peak of every row, ``[ROWS, BLOCK]``: small numbers where the weights are large."""
    return block * BLOCK + tl.arange(0, BLOCK)[None, :] - logits[0]


@triton.jit
def mean_place(logits, o_row, m_row, inverse, GATES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The mean place of every row's bump, from its peak, ``[ROWS, 1]``."""
    moment = tl.zeros([m_row.shape[0], BLOCK], inverse.dtype)
    for block in range(BLOCKS):
        o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        weights = exponentials(logits, o_row, o_gate, m_row & (o_gate < GATES), GATES)
        moment += weights * places(logits, block, BLOCK)
    return tl.sum(moment, 1, keep_dims=True) * inverse


@triton.jit(do_not_specialize=["rows", "curve", "floor", "above"])
def partition_boundary_backward_kernel(
    p_grad_uni,
    p_grad_paired,
    p_grad_share,
    p_h,
    p_b_uni,
    p_b_paired,
    p_grad_h,
    p_grad_b_uni,
    p_grad_b_paired,
    rows,
    curve,
    floor,
    above,
    DETACHED: tl.constexpr,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Gradients of h and, through those of both gates, of the boundaries: dz_j = p_j (s_j - <p, s>), s_j = sum of
    grad_gate from j on, and d / d center = <dz, x> / width^2 = <p s, x - <p, x>> / width^2. A gradient of the shares
    adds constants for each row to those of what each gate gives to a part.

    A program owns ROWS rows and walks over each from the right, where s begins: every row is read once. Writes grad_h,
    grad_b_uni and grad_b_paired. A gate covers one entry of h: CHUNK and PIECE are 1.
    """
    curve, floor, above = read_number(curve, p_h), read_number(floor, p_h), read_number(above, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_h += first * GATES
    p_grad_uni += first * GATES
    p_grad_paired += first * GATES
    p_grad_h += first * GATES
    if p_grad_share is not None:
        p_grad_share += first * 4
    logits_e = bump_logits(p_b_uni + first, o_row, m_row, curve, False, GATES)
    logits_r = bump_logits(p_b_paired + first, o_row, m_row, curve, True, GATES)
    inverse_e, sums_e = softmax_statistics(logits_e, o_row, m_row, GATES, BLOCK, BLOCKS)
    inverse_r, sums_r = softmax_statistics(logits_r, o_row, m_row, GATES, BLOCK, BLOCKS)
    mean_e, mean_r = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    if BLOCKS > 1:
        mean_e = mean_place(logits_e, o_row, m_row, inverse_e, GATES, BLOCK, BLOCKS)
        mean_r = mean_place(logits_r, o_row, m_row, inverse_r, GATES, BLOCK, BLOCKS)
    share_uni, share_paired, share_shared = grad_by_dual_share(p_grad_share, o_row, m_row, curve, GATES)
    after_e, after_r = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    # summed over a row once: a sum per block would cost as many reductions, and triton 3.6 a layout that spills
    by_center_e, by_center_r = tl.zeros([ROWS, BLOCK], curve.dtype), tl.zeros([ROWS, BLOCK], curve.dtype)
    for done in range(BLOCKS):
        block = BLOCKS - 1 - done
        at, mask = tile(o_row, m_row, block, 0, GATES, CHUNK, BLOCK, PIECE)
        grad_uni, grad_paired = load(p_grad_uni, at, mask, curve), load(p_grad_paired, at, mask, curve)
        own_e, own_r = laid_out_as(grad_uni, logits_e), laid_out_as(grad_uni, logits_r)
        ne, e, p_e = gates(own_e, o_row, m_row, block, inverse_e, sums_e, GATES, BLOCK, BLOCKS)
        r, nr, p_r = gates(own_r, o_row, m_row, block, inverse_r, sums_r, GATES, BLOCK, BLOCKS)
        tl.store(p_grad_h + at, (floor + above * e) * grad_uni + (floor + above * r) * grad_paired, mask)
        if p_grad_share is None:
            grad_ne, grad_r = tl.zeros_like(e), tl.zeros_like(e)
        else:
            by_uni = grad_by_share(share_uni, e, block, GATES, BLOCK)
            by_paired = grad_by_share(share_paired, e, block, GATES, BLOCK)
            by_shared = grad_by_share(share_shared, e, block, GATES, BLOCK)
            grad_ne, grad_r = dual_grad_gates(e, ne, r, nr, by_uni, by_paired, by_shared)
        if not DETACHED:
            h = above * load(p_h, at, mask, curve)
            grad_ne -= h * grad_uni
            grad_r += h * grad_paired
        u_e, u_r = places(logits_e, block, BLOCK), places(logits_r, block, BLOCK)
        if BLOCKS == 1:
            mean_e, mean_r = tl.sum(p_e * u_e, 1, keep_dims=True), tl.sum(p_r * u_r, 1, keep_dims=True)
        by_center_e += p_e * (tl.cumsum(grad_ne, 1, reverse=True) + after_e) * (u_e - mean_e)
        by_center_r += p_r * (tl.cumsum(grad_r, 1, reverse=True) + after_r) * (u_r - mean_r)
        if BLOCKS > 1:
            after_e += tl.sum(grad_ne, 1, keep_dims=True)
            after_r += tl.sum(grad_r, 1, keep_dims=True)
    # 1 / d width^2: places are d times shares of a row
    factor = curve * (2.0 * GATES * LN_2)
    tl.store(p_grad_b_uni + first + o_row, factor * tl.sum(by_center_e, 1, keep_dims=True), m_row)
    tl.store(p_grad_b_paired + first + o_row, -factor * tl.sum(by_center_r, 1, keep_dims=True), m_row)
