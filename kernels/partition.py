"""Single-gate partition on CUDA: ``g = cumsoftmax(z * scale)``, ``paired = g * h``, ``uni = (1 - g) * h``.

Gates are formed in fp32 (fp64 for fp64) and never stored: backward forms them again from z.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import (
    empty_share,
    exponentials,
    gates,
    gather,
    grad_by_share,
    load,
    loaded_logits,
    plan,
    read_number,
    scale_argument,
    softmax_statistics,
    spread,
    store_grad_z,
    sum_where,
    tile,
)

__all__ = ["backward", "forward", "forward_with_share"]

# Gates of the longest row that a program keeps in registers whole. Compiled for sm_90 by triton 3.9, registers per
# thread: forward 32 at 1024 bf16 (4 warps), 83 at 8192 fp32 (16 warps, of at most 128); backward 56 at 1024 bf16, 58 at
# 4096 bf16.
LONGEST_FORWARD = 8192
LONGEST_BACKWARD = 4096


def forward(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``(uni, paired)`` of contiguous ``h[..., d]`` and ``z[..., d/c]``, in the dtype of ``h``."""
    return _forward(h, z, None, temperature)


def forward_with_share(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`forward`, and the mean gate mass of both per row ``[..., 2]``, fp32 (fp64 for fp64)."""
    share = empty_share(z, 2)
    return *_forward(h, z, share, temperature), share


def _forward(h: Tensor, z: Tensor, share: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    uni, paired = torch.empty_like(h), torch.empty_like(h)
    if h.numel():
        grid, constants, options = plan(h, z, LONGEST_FORWARD)
        rows = h.numel() // h.shape[-1]
        scale = scale_argument(temperature, h.dtype)
        partition_forward_kernel[grid](h, z, uni, paired, share, rows, scale, **constants, **options)
    return uni, paired


def backward(
    grad_uni: Tensor, grad_paired: Tensor, grad_share: Tensor | None, h: Tensor, z: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """``(grad_h, grad_z)`` of contiguous tensors, in the dtypes of ``h`` and ``z``."""
    grad_h, grad_z = torch.empty_like(h), torch.empty_like(z)
    if h.numel():
        grid, constants, options = plan(h, z, LONGEST_BACKWARD)
        rows = h.numel() // h.shape[-1]
        scale = scale_argument(temperature, h.dtype)
        partition_backward_kernel[grid](
            grad_uni, grad_paired, grad_share, h, z, grad_h, grad_z, rows, scale, **constants, **options
        )
    return grad_h, grad_z


@triton.jit(do_not_specialize=["rows", "scale"])
def partition_forward_kernel(
    p_h,
    p_z,
    p_uni,
    p_paired,
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
    """A program owns ROWS rows. Writes uni and paired, and their shares where p_share is not None."""
    scale = read_number(scale, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_z += first * GATES
    p_h += first * (GATES * CHUNK)
    p_uni += first * (GATES * CHUNK)
    p_paired += first * (GATES * CHUNK)
    logits = loaded_logits(p_z, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse, sums = softmax_statistics(logits, o_row, m_row, GATES, BLOCK, BLOCKS)
    of_uni, of_paired = tl.zeros([ROWS, BLOCK], scale.dtype), tl.zeros([ROWS, BLOCK], scale.dtype)
    for block in range(BLOCKS):
        gate, complement, _ = gates(logits, o_row, m_row, block, inverse, sums, GATES, BLOCK, BLOCKS)
        for piece in range(0, CHUNK, PIECE):
            at, mask = tile(o_row, m_row, block, piece, GATES, CHUNK, BLOCK, PIECE)
            h = load(p_h, at, mask, scale)
            tl.store(p_uni + at, spread(complement, CHUNK) * h, mask)
            tl.store(p_paired + at, spread(gate, CHUNK) * h, mask)
        if p_share is not None:
            m_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :] < GATES
            of_uni += tl.where(m_gate, complement, 0.0)
            of_paired += tl.where(m_gate, gate, 0.0)
    if p_share is not None:
        p_share += first * 2 + o_row * 2
        tl.store(p_share, tl.sum(of_uni, 1, keep_dims=True) / GATES, m_row)
        tl.store(p_share + 1, tl.sum(of_paired, 1, keep_dims=True) / GATES, m_row)


@triton.jit(do_not_specialize=["rows", "scale"])
def partition_backward_kernel(
    p_grad_uni,
    p_grad_paired,
    p_grad_share,
    p_h,
    p_z,
    p_grad_h,
    p_grad_z,
    rows,
    scale,
    GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """``grad_h = (1 - g) * grad_uni + g * grad_paired``, ``grad_g = (grad_paired - grad_uni) * h``, to which a gradient
    of the shares adds a constant for each row, and grad_z from grad_g.

    A program owns ROWS rows. Writes grad_h and grad_z. A row of one block is read once; of more blocks twice, for
    grad_z takes sums over the whole row.
    """
    scale = read_number(scale, p_h)
    first = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)[:, None]
    m_row = first + o_row < rows
    p_z += first * GATES
    p_grad_z += first * GATES
    p_h += first * (GATES * CHUNK)
    p_grad_uni += first * (GATES * CHUNK)
    p_grad_paired += first * (GATES * CHUNK)
    p_grad_h += first * (GATES * CHUNK)
    logits = loaded_logits(p_z, o_row, m_row, scale, GATES, BLOCK, BLOCKS)
    inverse, sums = softmax_statistics(logits, o_row, m_row, GATES, BLOCK, BLOCKS)
    by_share = tl.zeros_like(inverse)
    if p_grad_share is not None:
        p_grad_share += first * 2
        of_uni, of_paired = load(p_grad_share, o_row * 2, m_row, scale), load(p_grad_share, o_row * 2 + 1, m_row, scale)
        by_share = (of_paired - of_uni) / GATES
    o_block = tl.arange(0, sums.shape[1])[None, :]
    totals = tl.zeros_like(sums)
    dot = tl.zeros_like(inverse)
    for block in range(BLOCKS):
        gate, complement, p = gates(logits, o_row, m_row, block, inverse, sums, GATES, BLOCK, BLOCKS)
        grad_gate = grad_by_share(by_share, gate, block, GATES, BLOCK)
        for piece in range(0, CHUNK, PIECE):
            at, mask = tile(o_row, m_row, block, piece, GATES, CHUNK, BLOCK, PIECE)
            grad_uni, grad_paired = load(p_grad_uni, at, mask, scale), load(p_grad_paired, at, mask, scale)
            grad_h = spread(complement, CHUNK) * grad_uni + spread(gate, CHUNK) * grad_paired
            tl.store(p_grad_h + at, grad_h, mask)
            grad_gate += gather((grad_paired - grad_uni) * load(p_h, at, mask, scale), CHUNK)
        dot += tl.sum(gate * grad_gate, 1, keep_dims=True)
        if BLOCKS == 1:
            store_grad_z(p_grad_z, o_row, m_row, block, p, grad_gate, 0.0, dot, scale, GATES, BLOCK)
        else:
            totals += tl.where(o_block == block, tl.sum(grad_gate, 1, keep_dims=True), 0.0)
    if BLOCKS > 1:
        for block in range(BLOCKS):
            grad_gate = grad_by_share(by_share, tl.zeros([ROWS, BLOCK], scale.dtype), block, GATES, BLOCK)
            for piece in range(0, CHUNK, PIECE):
                at, mask = tile(o_row, m_row, block, piece, GATES, CHUNK, BLOCK, PIECE)
                grad_uni, grad_paired = load(p_grad_uni, at, mask, scale), load(p_grad_paired, at, mask, scale)
                grad_gate += gather((grad_paired - grad_uni) * load(p_h, at, mask, scale), CHUNK)
            o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
            p = exponentials(logits, o_row, o_gate, m_row & (o_gate < GATES), GATES) * inverse
            after = sum_where(totals, o_block > block)
            store_grad_z(p_grad_z, o_row, m_row, block, p, grad_gate, after, dot, scale, GATES, BLOCK)
