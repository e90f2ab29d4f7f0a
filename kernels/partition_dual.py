"""Dual-gate partition on CUDA: ``e = 1 - cumsoftmax(z_uni * scale)``, ``r = cumsoftmax(z_paired * scale)``,
``uni_only = e (1 - r) h``, ``paired_only = r (1 - e) h``, ``shared = e r h``.

Gates are formed in fp32 (fp64 for fp64) and never stored: backward forms them again from the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import (
    dual_grad_gates,
    dual_masses,
    empty_share,
    gates,
    gather,
    grad_by_dual_share,
    grad_by_share,
    load,
    loaded_logits,
    plan,
    read_number,
    scale_argument,
    softmax_statistics,
    spread,
    store_dual_share,
    store_grad_z,
    sum_where,
    tile,
)

__all__ = ["backward", "forward", "forward_with_share"]

# Gates of the longest row that a program keeps in registers whole. Compiled for sm_90 by triton 3.9, registers per
# thread: forward 56 at 1024 bf16 (4 warps), 79 at 4096 bf16 (16 warps, of at most 128); backward 108 and 109. Blocks of
# 4096 with what is carried between them spilled: hence the half in plan().
LONGEST_FORWARD = 4096
LONGEST_BACKWARD = 4096


def forward(h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(uni_only, paired_only, shared)`` of contiguous ``h[..., d]``, ``z_uni`` and ``z_paired[..., d/c]``, in the
    dtype of ``h``."""
    return _forward(h, z_uni, z_paired, None, temperature)


def forward_with_share(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`forward`, and the mean gate mass of the three and of what nobody takes per row ``[..., 4]``, fp32 (fp64
    for fp64)."""
    share = empty_share(z_uni, 4)
    return *_forward(h, z_uni, z_paired, share, temperature), share


def _forward(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, share: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    uni_only, paired_only, shared = (torch.empty_like(h) for _ in range(3))
    if h.numel():
        grid, constants, options = plan(h, z_uni, LONGEST_FORWARD)
        partition_dual_forward_kernel[grid](
            h,
            z_uni,
            z_paired,
            uni_only,
            paired_only,
            shared,
            share,
            h.numel() // h.shape[-1],
            scale_argument(temperature, h.dtype),
            **constants,
            **options,
        )
    return uni_only, paired_only, shared


def backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_shared: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    z_uni: Tensor,
    z_paired: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(grad_h, grad_z_uni, grad_z_paired)`` of contiguous tensors, in the dtypes of ``h``, ``z_uni`` and
    ``z_paired``."""
    grad_h, grad_z_uni, grad_z_paired = torch.empty_like(h), torch.empty_like(z_uni), torch.empty_like(z_paired)
    if h.numel():
        grid, constants, options = plan(h, z_uni, LONGEST_BACKWARD)
        partition_dual_backward_kernel[grid](
            grad_uni,
            grad_paired,
            grad_shared,
            grad_share,
            h,
            z_uni,
            z_paired,
            grad_h,
            grad_z_uni,
            grad_z_paired,
            h.numel() // h.shape[-1],
            scale_argument(temperature, h.dtype),
            **constants,
            **options,
        )
    return grad_h, grad_z_uni, grad_z_paired


@triton.jit(do_not_specialize=["rows", "scale"])
def partition_dual_forward_kernel(
    p_h,
    p_z_uni,
    p_z_paired,
    p_uni_only,
    p_paired_only,
    p_shared,
    p_share,
    rows,
    scale,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """A program owns ROWS rows. Writes uni_only, paired_only and shared, and the shares where p_share is not None."""
    scale = read_number(scale, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_z_uni += first * GATES
    p_z_paired += first * GATES
    p_h += first * (GATES * CHUNK)
    p_uni_only += first * (GATES * CHUNK)
    p_paired_only += first * (GATES * CHUNK)
    p_shared += first * (GATES * CHUNK)
    logits_e = loaded_logits(p_z_uni, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse_e, sums_e = softmax_statistics(logits_e, o_row, m_row, GATES, BLOCK, BLOCKS)
    logits_r = loaded_logits(p_z_paired, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse_r, sums_r = softmax_statistics(logits_r, o_row, m_row, GATES, BLOCK, BLOCKS)
    of_uni, of_paired = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    of_shared, of_none = tl.zeros_like(inverse_e), tl.zeros_like(inverse_e)
    for block in range(BLOCKS):
        ne, e, _ = gates(logits_e, o_row, m_row, block, inverse_e, sums_e, GATES, BLOCK, BLOCKS)
        r, nr, _ = gates(logits_r, o_row, m_row, block, inverse_r, sums_r, GATES, BLOCK, BLOCKS)
        for piece in range(0, CHUNK, PIECE):
            at, mask = tile(o_row, m_row, block, piece, GATES, CHUNK, BLOCK, PIECE)
            h = load(p_h, at, mask, scale)
            tl.store(p_uni_only + at, spread(e * nr, CHUNK) * h, mask)
            tl.store(p_paired_only + at, spread(r * ne, CHUNK) * h, mask)
            tl.store(p_shared + at, spread(e * r, CHUNK) * h, mask)
        if p_share is not None:
            more_uni, more_paired, more_shared, more_none = dual_masses(e, ne, r, nr, block, GATES, BLOCK)
            of_uni += more_uni
            of_paired += more_paired
            of_shared += more_shared
            of_none += more_none
    if p_share is not None:
        store_dual_share(p_share + first * 4, o_row, m_row, of_uni, of_paired, of_shared, of_none, GATES)


@triton.jit
def grad_of_products(
    p_grad_uni,
    p_grad_paired,
    p_grad_shared,
    p_h,
    p_grad_h,
    o_row,
    m_row,
    block,
    e,
    ne,
    r,
    nr,
    share_uni,
    share_paired,
    share_shared,
    scale,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Gradients of one block with respect to cumsoftmax(z_uni) = 1 - e and to r, given those of a row's shares; writes
    that of h."""
    by_uni = grad_by_share(share_uni, e, block, GATES, BLOCK)
    by_paired = grad_by_share(share_paired, e, block, GATES, BLOCK)
    by_shared = grad_by_share(share_shared, e, block, GATES, BLOCK)
    for piece in range(0, CHUNK, PIECE):
        at, mask = tile(o_row, m_row, block, piece, GATES, CHUNK, BLOCK, PIECE)
        grad_uni, grad_paired = load(p_grad_uni, at, mask, scale), load(p_grad_paired, at, mask, scale)
        grad_shared, h = load(p_grad_shared, at, mask, scale), load(p_h, at, mask, scale)
        by_uni += gather(grad_uni * h, CHUNK)
        by_paired += gather(grad_paired * h, CHUNK)
        by_shared += gather(grad_shared * h, CHUNK)
        grad_h = spread(e * nr, CHUNK) * grad_uni + spread(r * ne, CHUNK) * grad_paired
        tl.store(p_grad_h + at, grad_h + spread(e * r, CHUNK) * grad_shared, mask)
    return dual_grad_gates(e, ne, r, nr, by_uni, by_paired, by_shared)


@triton.jit(do_not_specialize=["rows", "scale"])
def partition_dual_backward_kernel(
    p_grad_uni,
    p_grad_paired,
    p_grad_shared,
    p_grad_share,
    p_h,
    p_z_uni,
    p_z_paired,
    p_grad_h,
    p_grad_z_uni,
    p_grad_z_paired,
    rows,
    scale,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Gradients of h and, through those of both gates, of the logits. A gradient of the shares adds constants for each
    row to those of what each gate gives to a part.

    A program owns ROWS rows. Writes grad_h, grad_z_uni and grad_z_paired. A row of one block is read once; of more
    blocks twice, for gradients of logits take sums over the whole row.
    """
    scale = read_number(scale, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_z_uni += first * GATES
    p_z_paired += first * GATES
    p_grad_z_uni += first * GATES
    p_grad_z_paired += first * GATES
    p_h += first * (GATES * CHUNK)
    p_grad_uni += first * (GATES * CHUNK)
    p_grad_paired += first * (GATES * CHUNK)
    p_grad_shared += first * (GATES * CHUNK)
    p_grad_h += first * (GATES * CHUNK)
    logits_e = loaded_logits(p_z_uni, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse_e, sums_e = softmax_statistics(logits_e, o_row, m_row, GATES, BLOCK, BLOCKS)
    logits_r = loaded_logits(p_z_paired, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse_r, sums_r = softmax_statistics(logits_r, o_row, m_row, GATES, BLOCK, BLOCKS)
    if p_grad_share is not None:
        p_grad_share += first * 4
    share_uni, share_paired, share_shared = grad_by_dual_share(p_grad_share, o_row, m_row, scale, GATES)
    o_block = tl.arange(0, sums_e.shape[1])[None, :]
    totals_e, totals_r = tl.zeros_like(sums_e), tl.zeros_like(sums_r)
    dot_e, dot_r = tl.zeros_like(inverse_e), tl.zeros_like(inverse_r)
    for block in range(BLOCKS):
        ne, e, p_e = gates(logits_e, o_row, m_row, block, inverse_e, sums_e, GATES, BLOCK, BLOCKS)
        r, nr, p_r = gates(logits_r, o_row, m_row, block, inverse_r, sums_r, GATES, BLOCK, BLOCKS)
        grad_ne, grad_r = grad_of_products(
            p_grad_uni, p_grad_paired, p_grad_shared, p_h, p_grad_h,
            o_row, m_row, block, e, ne, r, nr, share_uni, share_paired, share_shared,
            scale, GATES, CHUNK, BLOCK, PIECE,
        )  # fmt: skip
        dot_e += tl.sum(ne * grad_ne, 1, keep_dims=True)
        dot_r += tl.sum(r * grad_r, 1, keep_dims=True)
        if BLOCKS == 1:
            store_grad_z(p_grad_z_uni, o_row, m_row, block, p_e, grad_ne, 0.0, dot_e, scale, GATES, BLOCK)
            store_grad_z(p_grad_z_paired, o_row, m_row, block, p_r, grad_r, 0.0, dot_r, scale, GATES, BLOCK)
        else:
            totals_e += tl.where(o_block == block, tl.sum(grad_ne, 1, keep_dims=True), 0.0)
            totals_r += tl.where(o_block == block, tl.sum(grad_r, 1, keep_dims=True), 0.0)
    if BLOCKS > 1:
        for block in range(BLOCKS):
            ne, e, p_e = gates(logits_e, o_row, m_row, block, inverse_e, sums_e, GATES, BLOCK, BLOCKS)
            r, nr, p_r = gates(logits_r, o_row, m_row, block, inverse_r, sums_r, GATES, BLOCK, BLOCKS)
            grad_ne, grad_r = grad_of_products(
                p_grad_uni, p_grad_paired, p_grad_shared, p_h, p_grad_h,
                o_row, m_row, block, e, ne, r, nr, share_uni, share_paired, share_shared,
                scale, GATES, CHUNK, BLOCK, PIECE,
            )  # fmt: skip
            after_e, after_r = sum_where(totals_e, o_block > block), sum_where(totals_r, o_block > block)
            store_grad_z(p_grad_z_uni, o_row, m_row, block, p_e, grad_ne, after_e, dot_e, scale, GATES, BLOCK)
            store_grad_z(p_grad_z_paired, o_row, m_row, block, p_r, grad_r, after_r, dot_r, scale, GATES, BLOCK)
