"""duc_loss of large batches: chosen columns are gathered in a launch of their own, and multiplied beside each other.

Formulas and what is shared with small batches in ``duc_loss.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .chosen_columns import PADDING, columns, gather, load_rows, padded, row_weights
from .gate_blocks import LN_2
from .groups import find_group, launch, number, pick, unspecialised
from .products import FILL, Tiles, dot_formed, dot_precision, formed_right, operands_in_shared, product_kind, split_rows

__all__ = ["gradients", "partial_lse"]

_BLOCKS = 2  # of products, at a time on a multiprocessor


@triton.jit(do_not_specialize=["count", "begin", "end", "part", "scale_bits"])
def gathered_lse_kernel(
    tiles, p_x, p_y, p_weight, p_partial, p_own, k, count, begin, end, part, scale_bits,
    WHOLE: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As ``partial_lse_kernel`` of columns that were gathered; with WHOLE all of them are in a block of BLOCK_K."""
    group, tile = find_group(tiles)
    k = number(pick(k, group))
    width = tl.cdiv(k, PADDING) * PADDING
    p_x = pick(p_x, group)
    p_y = pick(p_y, group)
    p_partial = pick(p_partial, group)
    scale = scale_bits.to(tl.float32, bitcast=True) / LN_2
    tiles_m = tl.cdiv(end - begin, BLOCK_M)
    first = tile // tiles_m * part
    last = tl.minimum(first + part, count)
    own = begin + tile % tiles_m * BLOCK_M
    o_own = own + tl.arange(0, BLOCK_M)
    m_own = o_own < end
    o_k = tl.arange(0, BLOCK_K)
    b_peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_own = tl.zeros((BLOCK_M,), tl.float32)
    if WHOLE:
        b_x = load_rows(p_x, o_own, m_own, o_k, width, WHOLE)
    for start in range(first, last, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        m_all = o_all < last
        if WHOLE:
            b_y = load_rows(p_y, o_all, m_all, o_k, width, WHOLE)
            b_l = tl.dot(b_x, tl.trans(b_y), input_precision=DOT)
        else:
            b_l = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for column in range(0, width, BLOCK_K):
                b_x = load_rows(p_x, o_own, m_own, column + o_k, width, WHOLE)
                b_y = load_rows(p_y, o_all, m_all, column + o_k, width, WHOLE)
                b_l = tl.dot(b_x, tl.trans(b_y), b_l, input_precision=DOT)
        m_all = row_weights(p_weight, o_all, m_all, count) != 0.0
        b_l = tl.where(m_all[None, :], b_l * scale, float("-inf"))
        b_own += tl.sum(tl.where(o_own[:, None] == o_all[None, :], b_l, 0.0), 1)
        b_top = tl.maximum(b_peak, tl.max(b_l, 1))
        b_at = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_sum = b_sum * tl.exp2(b_peak - b_at) + tl.sum(tl.exp2(b_l - b_at[:, None]), 1)
        b_peak = b_top
    o_out = o_own - begin
    b_lse = (b_peak + tl.log2(b_sum)) * LN_2
    tl.store(p_partial + tile // tiles_m * (end - begin) + o_out, b_lse, mask=m_own)
    tl.store(pick(p_own, group) + o_out, b_own * LN_2, mask=m_own & (o_own >= first) & (o_own < last))


@triton.jit(do_not_specialize=["count", "begin", "end", "part", "scale_bits"])
def gathered_grad_kernel(
    tiles, p_x, p_y, p_lse, p_partial, k, p_weight, count, begin, end, part, scale_bits,
    WHOLE: tl.constexpr, FORMED_RIGHT: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows by BLOCK_D chosen dimensions of one direction against one part of ``part`` teachers:
    writes sum_j (exp(l_ij - logsumexp_i) - 1[i = j]) y_j. With WHOLE all dimensions are in one block."""
    group, tile = find_group(tiles)
    k = number(pick(k, group))
    width = tl.cdiv(k, PADDING) * PADDING
    p_x = pick(p_x, group)
    p_y = pick(p_y, group)
    p_partial = pick(p_partial, group)
    scale = scale_bits.to(tl.float32, bitcast=True) / LN_2
    tiles_m = tl.cdiv(end - begin, BLOCK_M)
    tiles_d = tl.cdiv(width, BLOCK_D)
    first = tile // (tiles_m * tiles_d) * part
    last = tl.minimum(first + part, count)
    o_row = tile // tiles_d % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_row = o_row < end - begin
    o_own = begin + o_row
    o_d = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_k = tl.arange(0, BLOCK_K)
    b_lse = tl.load(pick(p_lse, group) + o_row, mask=m_row, other=0.0) / LN_2
    b_grad = tl.zeros((BLOCK_D, BLOCK_M) if FORMED_RIGHT else (BLOCK_M, BLOCK_D), tl.float32)
    if WHOLE:
        b_x = load_rows(p_x, o_own, m_row, o_k, width, WHOLE)
    for start in range(first, last, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        m_all = o_all < last
        b_y = load_rows(p_y, o_all, m_all, o_d, width, True)
        if WHOLE:
            b_l = tl.dot(b_x, tl.trans(b_y), input_precision=DOT)
        else:
            b_l = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for column in range(0, width, BLOCK_K):
                b_x = load_rows(p_x, o_own, m_row, column + o_k, width, WHOLE)
                b_other = load_rows(p_y, o_all, m_all, column + o_k, width, WHOLE)
                b_l = tl.dot(b_x, tl.trans(b_other), b_l, input_precision=DOT)
        m_all = row_weights(p_weight, o_all, m_all, count) != 0.0
        # another order of summation may carry a product of large features past the log-sum-exp; nan stays nan
        b_l = b_l * scale - b_lse[:, None]
        b_p = tl.exp2(tl.where(b_l > 0.0, 0.0, b_l))
        b_p = tl.where(m_all[None, :], b_p, 0.0)
        b_p = tl.where(o_own[:, None] == o_all[None, :], b_p - 1.0, b_p)
        b_grad = dot_formed(b_grad, b_p.to(b_y.dtype), b_y, FORMED_RIGHT, DOT)
    if FORMED_RIGHT:
        b_grad = tl.trans(b_grad)
    p_partial += (tile // (tiles_m * tiles_d)).to(tl.int64) * (end - begin) * width
    tl.store(
        p_partial + o_row.to(tl.int64)[:, None] * width + o_d[None, :],
        b_grad,
        mask=m_row[:, None] & (o_d < width)[None, :],
    )


@triton.jit(do_not_specialize=["count", "begin", "end", "parts", "scale_bits"])
def scatter_grad_kernel(
    tiles, p_partial, p_dims, p_grad_x, k, p_grad, p_weight, d, count, begin, end, parts, scale_bits,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program adds the parts of ROWS rows of one direction's gradient and writes them whole, zeros where no dimension
    was chosen."""
    group, tile = find_group(tiles)
    k = number(pick(k, group))
    p_dims = pick(p_dims, group)
    p_partial = pick(p_partial, group)
    p_grad_x = pick(p_grad_x, group)
    width = tl.cdiv(k, PADDING) * PADDING
    o_row = tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < count
    b_weight = row_weights(p_weight, o_row, m_row & (o_row >= begin) & (o_row < end), count)
    m_own = b_weight != 0.0
    b_scale = b_weight * scale_bits.to(tl.float32, bitcast=True) * tl.load(p_grad)
    p_grad_x += o_row.to(tl.int64)[:, None] * d
    p_partial += (o_row - begin).to(tl.int64)[:, None] * width
    for start in range(0, d, BLOCK):
        o_col = start + tl.arange(0, BLOCK)
        b_zero = tl.zeros((ROWS, BLOCK), p_grad_x.dtype.element_ty)
        tl.store(p_grad_x + o_col[None, :], b_zero, mask=m_row[:, None] & (o_col < d)[None, :])
    tl.debug_barrier()
    for start in range(0, k, BLOCK):
        o_k = start + tl.arange(0, BLOCK)
        o_col, m_col, _ = columns(p_dims, o_k, k, d)
        mask = m_own[:, None] & m_col[None, :]
        b_grad = tl.zeros((ROWS, BLOCK), tl.float32)
        for part in range(0, parts):
            o_part = tl.cast(part, tl.int64) * (end - begin) * width
            b_grad += tl.load(p_partial + o_part + o_k[None, :], mask=mask, other=0.0)
        tl.store(p_grad_x + o_col[None, :], (b_grad * b_scale[:, None]).to(p_grad_x.dtype.element_ty), mask=mask)


# Rows, teachers met at a time, step over dimensions: where all are in one block of 128 or 256, and where they are not.
# Two blocks of the first ones run at a time on a multiprocessor of sm_90.
_LSE = {
    "16": {128: Tiles(64, 64, 128, 4, 3), 256: Tiles(64, 64, 256, 4, 2), 0: Tiles(128, 64, 64, 8, 3)},
    "tf32": {0: Tiles(64, 32, 32, 8, 3)},
    "fp32": {0: Tiles(64, 32, 16, 8, 2)},
}
_GRAD = {
    "16": {128: Tiles(64, 64, 128, 4, 3), 256: Tiles(64, 64, 256, 4, 2), 0: Tiles(64, 64, 64, 8, 3)},
    "tf32": {0: Tiles(64, 32, 16, 8, 3)},
    "fp32": {0: Tiles(32, 32, 32, 8, 3)},
}
# where operands of products are in registers, they need more threads
_GRAD_IN_REGISTERS = _GRAD["16"] | {128: Tiles(64, 32, 128, 4, 3), 256: Tiles(64, 32, 256, 8, 2)}
_COLUMNS = {"16": 256, "tf32": 128, "fp32": 128}


def _choose(tiles: dict[int, Tiles], k: tuple[int, ...]) -> tuple[Tiles, bool]:
    """Tiles for the longest direction, and whether its columns are one block."""
    whole = min((block for block in tiles if block >= max(k)), default=0)
    return tiles[whole], whole > 0


def partial_lse(x, y, chosen, k, weight, lse, own, numbers, scale_bits) -> tuple[tuple[Tensor, ...], int]:
    """Writes l_ii into ``own``, and returns log-sum-exps of parts of the teachers ``[parts, rows]`` and how many parts
    there are; one part is written into ``lse``."""
    rows, (count, _, _), dtype = len(lse[0]), numbers, x[0].dtype
    tiles, whole = _choose(_LSE[product_kind(dtype)], k)
    tiles_m = triton.cdiv(rows, tiles.m)
    parts, part = split_rows(count, len(x) * tiles_m, tiles.n, fill=_BLOCKS * FILL)
    partial = tuple(i.new_empty(parts, rows) for i in lse) if parts > 1 else lse
    students, teachers = gather(x, y, chosen, k)
    launch(
        gathered_lse_kernel,
        [parts * tiles_m] * len(x),
        students,
        teachers,
        weight,
        partial,
        own,
        tuple(map(unspecialised, k)),
        *numbers,
        part,
        scale_bits,
        WHOLE=whole,
        DOT=dot_precision(dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        **tiles.options,
    )
    return partial, parts


def gradients(grad, x, y, chosen, k, weight, lse, numbers, scale_bits) -> tuple[Tensor, ...]:
    """The gradient of every direction's student, whole rows."""
    count, begin, end = numbers
    rows, dtype, d = end - begin, x[0].dtype, x[0].shape[1]
    kind = product_kind(dtype)
    in_registers = kind == "16" and not operands_in_shared(x[0].device)
    tiles, whole = _choose(_GRAD_IN_REGISTERS if in_registers else _GRAD[kind], k)
    width = tiles.k if whole else _COLUMNS[kind]
    programs = [triton.cdiv(rows, tiles.m) * triton.cdiv(padded(i), width) for i in k]
    parts, part = split_rows(count, max(sum(programs), 1), tiles.n, fill=_BLOCKS * FILL)
    partial = tuple(i.new_empty(parts, rows, padded(j), dtype=torch.float32) for i, j in zip(x, k, strict=True))
    own, others = gather(x, y, chosen, k)
    ks = tuple(map(unspecialised, k))
    launch(
        gathered_grad_kernel,
        [parts * i for i in programs],
        own,
        others,
        lse,
        partial,
        ks,
        weight,
        count,
        begin,
        end,
        part,
        scale_bits,
        WHOLE=whole,
        FORMED_RIGHT=formed_right(dtype),
        DOT=dot_precision(dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        BLOCK_D=width,
        **tiles.options,
    )
    grads, height = tuple(map(torch.empty_like, x)), 4
    launch(
        scatter_grad_kernel,
        [triton.cdiv(count, height)] * len(x),
        partial,
        chosen,
        grads,
        ks,
        grad,
        weight,
        d,
        count,
        begin,
        end,
        parts,
        scale_bits,
        ROWS=height,
        BLOCK=256,
        num_warps=4,
    )
    return grads
