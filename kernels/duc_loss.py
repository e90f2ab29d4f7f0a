"""duc_loss: products of chosen dimensions, log-sum-exp and gradient, both directions in each launch.

    l_ij = <x_i, y_j> / temperature over the chosen dimensions, x the student and y the teacher of a direction
    loss = sum_i weight_i (logsumexp_j l_ij - l_ii)
    grad_x_i = weight_i / temperature * sum_j (exp(l_ij - logsumexp_i) - 1[i = j]) y_j

Forward launches ``partial_lse``, of products that live in registers, and ``loss``; backward ``grad``, which makes the
products again and writes whole rows, zeros where no dimension is handed over. Of small batches chosen dimensions are
gathered as they are multiplied; of others a launch before either pass, ``gather``, writes them beside each other (B x
chosen elements a side), ``gathered_lse`` and ``gathered_grad`` multiply those, and ``scatter_grad`` adds up the parts
of the gradient and writes whole rows. What is stored between forward and backward is one number per row.

fp16 and bf16 accumulate in fp32; fp32 products are fp32 throughout unless TF32 is allowed; fp64 has no kernel here. No
atomics, and choices by sizes and kind of device alone: two runs are equal bit by bit. A number that is no dimension
makes the loss NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate_blocks import LN_2
from .groups import find_group, float_bits, launch, number, pick, unspecialised
from .products import FILL, Tiles, dot_formed, dot_precision, formed_right, operands_in_shared, split_rows

__all__ = ["backward", "forward"]

PADDING = tl.constexpr(64)  # what is gathered has a multiple of so many columns
_BLOCKS = 2  # of products of gathered columns, at a time on a multiprocessor


@triton.jit
def _columns(p_dims, o_k, k, d):
    """Columns of some chosen dimensions, given as int64 numbers ``[k]`` or as a uint8 mask ``[k]`` = ``[d]``; which of
    them there are; and what stands for those there are not: 0, NaN for a number outside of the row."""
    m_k = o_k < k
    b_dims = tl.load(p_dims + o_k, mask=m_k, other=0)
    if p_dims.dtype.element_ty == tl.uint8:
        return o_k, m_k & (b_dims != 0), tl.zeros(o_k.shape, tl.float32)
    else:
        m_row = (b_dims >= 0) & (b_dims < d)
        return b_dims.to(tl.int32), m_k & m_row, tl.where(m_row, 0.0, float("nan"))


@triton.jit
def _weights(p_weight, o_row, m_row, count):
    """weight_i, 1 / count where there are no weights; 0 where masked."""
    if p_weight is None:
        return tl.where(m_row, 1.0 / count, 0.0)
    else:
        return tl.load(p_weight + o_row, mask=m_row, other=0.0).to(tl.float32)


@triton.jit
def _logits(
    p_x, p_y, p_dims, p_weight, own, start, m_own, m_all, k, d, count, scale,
    DOT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """l_ij of the rows from ``own`` on and those from ``start`` on, -inf for a j that is no negative."""
    b_l = tl.zeros((m_own.shape[0], m_all.shape[0]), tl.float32)
    # a tile's own offsets fit 32 bits: half the registers of what is gathered
    p_x += tl.cast(own, tl.int64) * d
    p_y += tl.cast(start, tl.int64) * d
    o_x = tl.arange(0, m_own.shape[0])[:, None] * d
    o_y = tl.arange(0, m_all.shape[0])[None, :] * d
    for first in range(0, k, BLOCK_K):
        o_col, m_col, b_else = _columns(p_dims, first + tl.arange(0, BLOCK_K), k, d)
        b_x = tl.load(
            p_x + (o_x + o_col[None, :]),
            mask=m_own[:, None] & m_col[None, :],
            other=b_else.to(p_x.dtype.element_ty)[None, :],
        )
        b_y = tl.load(p_y + (o_y + o_col[:, None]), mask=m_col[:, None] & m_all[None, :], other=0.0)
        b_l = tl.dot(b_x, b_y, b_l, input_precision=DOT)
    m_all = _weights(p_weight, start + tl.arange(0, m_all.shape[0]), m_all, count) != 0.0
    return tl.where(m_all[None, :], b_l * scale, float("-inf"))


@triton.jit
def _join(b_peak, b_sum, b_other_peak, b_other_sum):
    """Maximum and sum of exponentials of two parts of a row, either of which may hold nothing but -inf."""
    b_top = tl.maximum(b_peak, b_other_peak)
    b_at = tl.where(b_top == float("-inf"), 0.0, b_top)
    return b_top, b_sum * tl.exp(b_peak - b_at) + b_other_sum * tl.exp(b_other_peak - b_at)


@triton.jit(do_not_specialize=["count", "begin", "end", "part", "scale_bits"])
def partial_lse_kernel(
    tiles, p_x, p_y, p_dims, p_weight, p_partial, p_own, k, d, count, begin, end, part, scale_bits,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows of one direction against one part of ``part`` teachers: writes their log-sum-exp
    and, where it meets it, l_ii."""
    group, tile = find_group(tiles)
    p_x = pick(p_x, group)
    p_y = pick(p_y, group)
    p_dims = pick(p_dims, group)
    p_partial = pick(p_partial, group)
    k = number(pick(k, group))
    scale = scale_bits.to(tl.float32, bitcast=True)
    tiles_m = tl.cdiv(end - begin, BLOCK_M)
    first = tile // tiles_m * part
    last = tl.minimum(first + part, count)
    own = begin + tile % tiles_m * BLOCK_M
    o_own = own + tl.arange(0, BLOCK_M)
    m_own = o_own < end
    b_peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_own = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, last, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        b_l = _logits(
            p_x, p_y, p_dims, p_weight, own, start, m_own, o_all < last, k, d, count, scale, DOT, BLOCK_K
        )  # fmt: skip
        b_own += tl.sum(tl.where(o_own[:, None] == o_all[None, :], b_l, 0.0), 1)
        b_top = tl.max(b_l, 1)
        b_at = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_peak, b_sum = _join(b_peak, b_sum, b_top, tl.sum(tl.exp(b_l - b_at[:, None]), 1))
    o_out = o_own - begin
    tl.store(p_partial + tile // tiles_m * (end - begin) + o_out, b_peak + tl.log(b_sum), mask=m_own)
    tl.store(pick(p_own, group) + o_out, b_own, mask=m_own & (o_own >= first) & (o_own < last))


@triton.jit(do_not_specialize=["count"])
def gather_kernel(tiles, p_x, p_dims, p_chosen, k, d, count, ROWS: tl.constexpr):
    """A program writes PADDING chosen columns of ROWS rows beside each other, NaN for a number outside of the row;
    columns past the last one, up to a multiple of PADDING, are zeros."""
    group, tile = find_group(tiles)
    k = number(pick(k, group))
    blocks = tl.cdiv(k, PADDING)
    o_row = tile // blocks * ROWS + tl.arange(0, ROWS)
    o_k = tile % blocks * PADDING + tl.arange(0, PADDING)
    o_col, m_col, b_else = _columns(pick(p_dims, group), o_k, k, d)
    m_row = (o_row < count)[:, None]
    p_x = pick(p_x, group)
    b_x = tl.load(
        p_x + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
        mask=m_row & m_col[None, :],
        other=b_else.to(p_x.dtype.element_ty)[None, :],
    )
    tl.store(pick(p_chosen, group) + o_row.to(tl.int64)[:, None] * (blocks * PADDING) + o_k[None, :], b_x, mask=m_row)


@triton.jit
def _load_rows(p_x, o_row, m_row, o_k, width, WHOLE: tl.constexpr):
    """Gathered columns of some rows; with WHOLE some of the columns are beyond their width, and zeros."""
    mask = m_row[:, None]
    if WHOLE:
        mask &= (o_k < width)[None, :]
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * width + o_k[None, :], mask=mask, other=0.0)


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
        b_x = _load_rows(p_x, o_own, m_own, o_k, width, WHOLE)
    for start in range(first, last, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        m_all = o_all < last
        if WHOLE:
            b_y = _load_rows(p_y, o_all, m_all, o_k, width, WHOLE)
            b_l = tl.dot(b_x, tl.trans(b_y), input_precision=DOT)
        else:
            b_l = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for column in range(0, width, BLOCK_K):
                b_x = _load_rows(p_x, o_own, m_own, column + o_k, width, WHOLE)
                b_y = _load_rows(p_y, o_all, m_all, column + o_k, width, WHOLE)
                b_l = tl.dot(b_x, tl.trans(b_y), b_l, input_precision=DOT)
        m_all = _weights(p_weight, o_all, m_all, count) != 0.0
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


@triton.jit(do_not_specialize=["count", "begin", "end", "parts"])
def loss_kernel(
    p_partial, p_own, p_dims, p_weight, p_lse, p_loss, k, count, begin, end, parts,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program joins the parts of every row, writes its log-sum-exp and adds up the loss in a fixed order."""
    b_loss = tl.zeros((BLOCK,), tl.float32)
    for group in tl.static_range(len(p_partial)):
        b_any = tl.zeros((BLOCK,), tl.int32)
        chosen = number(k[group])
        for start in range(0, chosen, BLOCK):
            o_k = start + tl.arange(0, BLOCK)
            m_k = o_k < chosen
            if p_dims[group].dtype.element_ty == tl.uint8:
                m_k = tl.load(p_dims[group] + o_k, mask=m_k, other=0) != 0
            b_any |= m_k.to(tl.int32)
        any_dim = tl.max(b_any, 0) > 0
        for start in range(0, end - begin, BLOCK):
            o_row = start + tl.arange(0, BLOCK)
            m_row = o_row < end - begin
            b_peak = tl.full((BLOCK,), float("-inf"), tl.float32)
            b_sum = tl.zeros((BLOCK,), tl.float32)
            for part in range(0, parts):
                b_part = tl.load(p_partial[group] + part * (end - begin) + o_row, mask=m_row, other=0.0)
                b_peak, b_sum = _join(b_peak, b_sum, b_part, tl.full((BLOCK,), 1.0, tl.float32))
            b_lse = b_peak + tl.log(b_sum)
            tl.store(p_lse[group] + o_row, b_lse, mask=m_row)
            b_weight = _weights(p_weight, begin + o_row, m_row, count)
            b_row = b_weight * (b_lse - tl.load(p_own[group] + o_row, mask=m_row, other=0.0))
            b_loss += tl.where((b_weight != 0.0) & any_dim, b_row, 0.0)
    tl.store(p_loss, tl.sum(b_loss, 0))


@triton.jit
def _store_zeros(p_rows, p_dims, m_row, first, last, k, d, BLOCK: tl.constexpr):
    """Zeros in the columns from ``first`` to before ``last`` that are not among the chosen numbers."""
    for column in range(first, last, BLOCK):
        o_col = column + tl.arange(0, BLOCK)
        b_chosen = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, k, BLOCK):
            o_dim, m_dim, _ = _columns(p_dims, start + tl.arange(0, BLOCK), k, d)
            b_chosen |= tl.max(((o_dim[None, :] == o_col[:, None]) & m_dim[None, :]).to(tl.int32), 1)
        b_zero = tl.zeros((m_row.shape[0], BLOCK), p_rows.dtype.element_ty)
        tl.store(p_rows + o_col[None, :], b_zero, mask=m_row[:, None] & ((b_chosen == 0) & (o_col < last))[None, :])


@triton.jit(do_not_specialize=["count", "begin", "end", "scale_bits"])
def grad_kernel(
    tiles, p_x, p_y, p_dims, p_lse, p_grad_x, k, p_grad, p_weight, d, count, begin, end, scale_bits,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows by BLOCK_D chosen dimensions of one direction's gradient, and as large a share of
    the columns that are not chosen, where it writes zeros."""
    group, tile = find_group(tiles)
    p_x = pick(p_x, group)
    p_y = pick(p_y, group)
    p_dims = pick(p_dims, group)
    p_grad_x = pick(p_grad_x, group)
    k = number(pick(k, group))
    scale = scale_bits.to(tl.float32, bitcast=True)
    tiles_k = tl.cdiv(tl.maximum(k, 1), BLOCK_D)
    first = tile // tiles_k * BLOCK_M
    o_row = first + tl.arange(0, BLOCK_M)
    m_row = o_row < count
    b_weight = _weights(p_weight, o_row, (o_row >= begin) & (o_row < end), count)
    m_own = b_weight != 0.0
    b_lse = tl.load(pick(p_lse, group) + o_row - begin, mask=m_own, other=0.0)
    o_k = tile % tiles_k * BLOCK_D + tl.arange(0, BLOCK_D)
    o_col, m_col, _ = _columns(p_dims, o_k, k, d)
    b_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # rows of other ranks receive zeros and cost nothing
    stop = tl.where((first < end) & (first + BLOCK_M > begin), count, 0)
    for start in range(0, stop, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        m_all = o_all < count
        b_l = _logits(p_x, p_y, p_dims, p_weight, first, start, m_own, m_all, k, d, count, scale, DOT, BLOCK_K)
        # another order of summation may carry a product of large features past the log-sum-exp; nan stays nan
        b_l -= b_lse[:, None]
        b_p = tl.exp(tl.where(b_l > 0.0, 0.0, b_l))
        b_p = tl.where(o_row[:, None] == o_all[None, :], b_p - 1.0, b_p)
        b_y = tl.load(
            p_y + tl.cast(start, tl.int64) * d + (tl.arange(0, BLOCK_N)[:, None] * d + o_col[None, :]),
            mask=m_all[:, None] & m_col[None, :],
            other=0.0,
        )
        b_grad = tl.dot(b_p.to(b_y.dtype), b_y, b_grad, input_precision=DOT)
    b_grad *= (b_weight * scale * tl.load(p_grad))[:, None]
    b_grad = tl.where(m_own[:, None] & m_col[None, :], b_grad, 0.0)
    p_grad_x += tl.cast(first, tl.int64) * d + tl.arange(0, BLOCK_M)[:, None] * d
    if p_dims.dtype.element_ty == tl.uint8:
        tl.store(
            p_grad_x + o_k[None, :], b_grad.to(p_grad_x.dtype.element_ty), mask=m_row[:, None] & (o_k < k)[None, :]
        )
    else:
        tl.store(p_grad_x + o_col[None, :], b_grad.to(p_grad_x.dtype.element_ty), mask=m_row[:, None] & m_col[None, :])
        share = tl.cdiv(d, tiles_k)
        column = tile % tiles_k * share
        _store_zeros(p_grad_x, p_dims, m_row, column, tl.minimum(column + share, d), k, d, BLOCK_K)


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
        b_x = _load_rows(p_x, o_own, m_row, o_k, width, WHOLE)
    for start in range(first, last, BLOCK_N):
        o_all = start + tl.arange(0, BLOCK_N)
        m_all = o_all < last
        b_y = _load_rows(p_y, o_all, m_all, o_d, width, True)
        if WHOLE:
            b_l = tl.dot(b_x, tl.trans(b_y), input_precision=DOT)
        else:
            b_l = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for column in range(0, width, BLOCK_K):
                b_x = _load_rows(p_x, o_own, m_row, column + o_k, width, WHOLE)
                b_other = _load_rows(p_y, o_all, m_all, column + o_k, width, WHOLE)
                b_l = tl.dot(b_x, tl.trans(b_other), b_l, input_precision=DOT)
        m_all = _weights(p_weight, o_all, m_all, count) != 0.0
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
    b_weight = _weights(p_weight, o_row, m_row & (o_row >= begin) & (o_row < end), count)
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
        o_col, m_col, _ = _columns(p_dims, o_k, k, d)
        mask = m_own[:, None] & m_col[None, :]
        b_grad = tl.zeros((ROWS, BLOCK), tl.float32)
        for part in range(0, parts):
            o_part = tl.cast(part, tl.int64) * (end - begin) * width
            b_grad += tl.load(p_partial + o_part + o_k[None, :], mask=mask, other=0.0)
        tl.store(p_grad_x + o_col[None, :], (b_grad * b_scale[:, None]).to(p_grad_x.dtype.element_ty), mask=mask)


# Rows, teachers met at a time, step over dimensions. What is gathered as it is multiplied takes a register per element
# for its place: more spills.
_DIRECT = {
    "partial_lse": {"16": Tiles(32, 32, 32, 4, 3), "tf32": Tiles(32, 32, 16, 4, 2), "fp32": Tiles(32, 32, 16, 4, 3)},
    "grad": {"16": Tiles(32, 32, 32, 4, 3), "tf32": Tiles(32, 32, 32, 4, 3), "fp32": Tiles(32, 32, 32, 4, 2)},
}
# From so many rows on columns are gathered in launches of their own. By the model of the kernels forward and backward
# take 9 and 12 us of 256 rows so, 12 and 21 otherwise; at half as many the launches would cost what is gained.
_GATHERED_ROWS = 256
_DIRECT_COLUMNS = 32  # chosen dimensions of one program of the gradient: the products are made again for each

# The same of gathered columns, where all are in one block of 128 or 256 and where they are not, and the dimensions of
# one program of the gradient. Two blocks of the first ones run at a time on a multiprocessor of sm_90.
_GATHERED_LSE = {
    "16": {128: Tiles(64, 64, 128, 4, 3), 256: Tiles(64, 64, 256, 4, 2), 0: Tiles(128, 64, 64, 8, 3)},
    "tf32": {0: Tiles(64, 32, 32, 8, 3)},
    "fp32": {0: Tiles(64, 32, 16, 8, 2)},
}
_GATHERED_GRAD = {
    "16": {128: Tiles(64, 64, 128, 4, 3), 256: Tiles(64, 64, 256, 4, 2), 0: Tiles(64, 64, 64, 8, 3)},
    "tf32": {0: Tiles(64, 32, 16, 8, 3)},
    "fp32": {0: Tiles(32, 32, 32, 8, 3)},
}
# where operands of products are in registers, they need more threads
_GATHERED_GRAD_IN_REGISTERS = _GATHERED_GRAD["16"] | {128: Tiles(64, 32, 128, 4, 3), 256: Tiles(64, 32, 256, 8, 2)}
_GATHERED_COLUMNS = {"16": 256, "tf32": 128, "fp32": 128}


def _kind(dtype: torch.dtype) -> str:
    return "16" if dtype.itemsize == 2 else "fp32" if dot_precision(dtype) == "ieee" else "tf32"


def _gathered(tiles: dict[int, Tiles], k: tuple[int, ...]) -> tuple[Tiles, bool]:
    """Tiles for the longest direction, and whether its columns are one block."""
    whole = min((block for block in tiles if block >= max(k)), default=0)
    return tiles[whole], whole > 0


def _width(k: int) -> int:
    return triton.cdiv(k, PADDING.value) * PADDING.value


def _gather(x: tuple[Tensor, ...], y: tuple[Tensor, ...], chosen: tuple[Tensor, ...], k: tuple[int, ...]):
    """Chosen columns of students and of teachers, in one launch."""
    count, d = x[0].shape
    ks, rows = k + k, 32
    made = tuple(i.new_empty(count, _width(j)) for i, j in zip(x + y, ks, strict=True))
    launch(
        gather_kernel,
        [triton.cdiv(count, rows) * triton.cdiv(j, PADDING.value) for j in ks],
        x + y,
        chosen + chosen,
        made,
        tuple(map(unspecialised, ks)),
        d,
        count,
        ROWS=rows,
        num_warps=4,
    )
    return made[: len(x)], made[len(x) :]


def _directions(student: Tensor, teacher: Tensor, dims: Tensor, reverse_dims: Tensor | None):
    """Students, teachers, dimensions and their numbers, an entry per direction."""
    x, y, chosen = (student,), (teacher,), (dims,)
    if reverse_dims is not None:
        x, y, chosen = (student, teacher), (teacher, student), (dims, reverse_dims)
    chosen = tuple(i.view(torch.uint8) if i.dtype == torch.bool else i for i in chosen)
    return x, y, chosen, tuple(i.shape[0] for i in chosen)


def _scale_bits(temperature: float) -> int:
    limits = torch.finfo(torch.float32)
    return float_bits(min(max(1 / temperature, limits.tiny), limits.max))


def forward(student, teacher, dims, reverse_dims, weight, begin, end, temperature, keep_gradient):
    """``(loss, lse, reverse_lse)`` of contiguous inputs; there is no gradient to keep here."""
    count, d = student.shape
    end = count if end < 0 else end
    rows = end - begin
    x, y, chosen, k = _directions(student, teacher, dims, reverse_dims)
    lse = tuple(student.new_empty(rows, dtype=torch.float32) for _ in x)
    if rows == 0:
        loss = student.new_zeros((), dtype=torch.float32)
    else:
        loss = student.new_empty((), dtype=torch.float32)
        kind = _kind(student.dtype)
        tiles, whole = _gathered(_GATHERED_LSE[kind], k)
        large = count >= _GATHERED_ROWS
        tiles = tiles if large else _DIRECT["partial_lse"][kind]
        tiles_m = triton.cdiv(rows, tiles.m)
        parts, part = split_rows(count, len(x) * tiles_m, tiles.n, fill=_BLOCKS * FILL if large else FILL)
        partial = tuple(student.new_empty(parts, rows, dtype=torch.float32) for _ in x) if parts > 1 else lse
        own = tuple(torch.empty_like(i) for i in lse)
        common = count, begin, end, part, _scale_bits(temperature)
        options = {"DOT": dot_precision(student.dtype), "BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k}
        numbers, programs = tuple(map(unspecialised, k)), [parts * tiles_m] * len(x)
        if large:
            x, y = _gather(x, y, chosen, k)
            launch(
                gathered_lse_kernel,
                programs,
                x,
                y,
                weight,
                partial,
                own,
                numbers,
                *common,
                WHOLE=whole,
                **options,
                **tiles.options,
            )
        else:
            launch(
                partial_lse_kernel,
                programs,
                x,
                y,
                chosen,
                weight,
                partial,
                own,
                numbers,
                d,
                *common,
                **options,
                **tiles.options,
            )
        block = 128 if rows <= 128 else 1024 if rows <= 1024 else 2048
        launch(
            loss_kernel,
            1,
            partial,
            own,
            chosen,
            weight,
            lse,
            loss,
            numbers,
            count,
            begin,
            end,
            parts,
            BLOCK=block,
            num_warps=min(block // 64, 16),
        )
    return loss, lse[0], lse[1] if len(lse) > 1 else lse[0].new_empty(0)


def backward(
    grad, student, teacher, dims, reverse_dims, weight, lse, reverse_lse, begin, end, temperature
) -> tuple[Tensor, Tensor]:
    """Gradients of student and, with ``reverse_dims``, of teacher, of contiguous inputs."""
    count, _ = student.shape
    end = count if end < 0 else end
    x, y, chosen, k = _directions(student, teacher, dims, reverse_dims)
    lse = (lse, reverse_lse)[: len(x)]
    kind = _kind(student.dtype)
    choice = _GATHERED_GRAD[kind]
    if kind == "16" and not operands_in_shared(student.device):
        choice = _GATHERED_GRAD_IN_REGISTERS
    tiles, whole = _gathered(choice, k)
    numbers = count, begin, end
    if count >= _GATHERED_ROWS:
        grads = _large_backward(grad, x, y, chosen, k, weight, lse, numbers, temperature, tiles, whole)
    else:
        grads = _direct_backward(grad, x, y, chosen, k, weight, lse, numbers, temperature)
    return grads[0], grads[1] if len(grads) > 1 else student.new_empty(0)


def _large_backward(grad, x, y, chosen, k, weight, lse, numbers, temperature, tiles, whole) -> tuple[Tensor, ...]:
    count, begin, end = numbers
    rows, dtype, d = end - begin, x[0].dtype, x[0].shape[1]
    columns = tiles.k if whole else _GATHERED_COLUMNS[_kind(dtype)]
    programs = [triton.cdiv(rows, tiles.m) * triton.cdiv(_width(i), columns) for i in k]
    parts, part = split_rows(count, max(sum(programs), 1), tiles.n, fill=_BLOCKS * FILL)
    partial = tuple(i.new_empty(parts, rows, _width(j), dtype=torch.float32) for i, j in zip(x, k, strict=True))
    own, others = _gather(x, y, chosen, k)
    ks, scale_bits = tuple(map(unspecialised, k)), _scale_bits(temperature)
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
        BLOCK_D=columns,
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


def _direct_backward(grad, x, y, chosen, k, weight, lse, numbers, temperature) -> tuple[Tensor, ...]:
    count, d = x[0].shape
    grads, dtype = tuple(map(torch.empty_like, x)), x[0].dtype
    tiles = _DIRECT["grad"][_kind(dtype)]
    launch(
        grad_kernel,
        [triton.cdiv(count, tiles.m) * triton.cdiv(max(i, 1), _DIRECT_COLUMNS) for i in k],
        x,
        y,
        chosen,
        lse,
        grads,
        tuple(map(unspecialised, k)),
        grad,
        weight,
        d,
        *numbers,
        _scale_bits(temperature),
        DOT=dot_precision(dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        BLOCK_D=_DIRECT_COLUMNS,
        **tiles.options,
    )
    return grads
