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

from . import duc_loss_gathered as gathered
from .chosen_columns import columns, row_weights
from .groups import find_group, float_bits, launch, number, pick, unspecialised
from .products import FILL, Tiles, dot_precision, product_kind, split_rows

__all__ = ["backward", "forward"]


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
        o_col, m_col, b_else = columns(p_dims, first + tl.arange(0, BLOCK_K), k, d)
        b_x = tl.load(
            p_x + (o_x + o_col[None, :]),
            mask=m_own[:, None] & m_col[None, :],
            other=b_else.to(p_x.dtype.element_ty)[None, :],
        )
        b_y = tl.load(p_y + (o_y + o_col[:, None]), mask=m_col[:, None] & m_all[None, :], other=0.0)
        b_l = tl.dot(b_x, b_y, b_l, input_precision=DOT)
    m_all = row_weights(p_weight, start + tl.arange(0, m_all.shape[0]), m_all, count) != 0.0
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
            b_weight = row_weights(p_weight, begin + o_row, m_row, count)
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
            o_dim, m_dim, _ = columns(p_dims, start + tl.arange(0, BLOCK), k, d)
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
    b_weight = row_weights(p_weight, o_row, (o_row >= begin) & (o_row < end), count)
    m_own = b_weight != 0.0
    b_lse = tl.load(pick(p_lse, group) + o_row - begin, mask=m_own, other=0.0)
    o_k = tile % tiles_k * BLOCK_D + tl.arange(0, BLOCK_D)
    o_col, m_col, _ = columns(p_dims, o_k, k, d)
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
    count, _ = student.shape
    end = count if end < 0 else end
    x, y, chosen, k = _directions(student, teacher, dims, reverse_dims)
    lse = tuple(student.new_empty(end - begin, dtype=torch.float32) for _ in x)
    if begin == end:
        loss = student.new_zeros((), dtype=torch.float32)
    else:
        loss = student.new_empty((), dtype=torch.float32)
        own = tuple(torch.empty_like(i) for i in lse)
        of_parts = gathered.partial_lse if count >= _GATHERED_ROWS else _partial_lse
        partial, parts = of_parts(x, y, chosen, k, weight, lse, own, (count, begin, end), _scale_bits(temperature))
        block = 128 if end - begin <= 128 else 1024 if end - begin <= 1024 else 2048
        launch(
            loss_kernel,
            1,
            partial,
            own,
            chosen,
            weight,
            lse,
            loss,
            tuple(map(unspecialised, k)),
            count,
            begin,
            end,
            parts,
            BLOCK=block,
            num_warps=min(block // 64, 16),
        )
    return loss, lse[0], lse[1] if len(lse) > 1 else lse[0].new_empty(0)


def _partial_lse(x, y, chosen, k, weight, lse, own, numbers, scale_bits) -> tuple[tuple[Tensor, ...], int]:
    (count, d), rows = x[0].shape, len(lse[0])
    tiles = _DIRECT["partial_lse"][product_kind(x[0].dtype)]
    tiles_m = triton.cdiv(rows, tiles.m)
    parts, part = split_rows(count, len(x) * tiles_m, tiles.n, fill=FILL)
    partial = tuple(i.new_empty(parts, rows) for i in lse) if parts > 1 else lse
    launch(
        partial_lse_kernel,
        [parts * tiles_m] * len(x),
        x,
        y,
        chosen,
        weight,
        partial,
        own,
        tuple(map(unspecialised, k)),
        d,
        *numbers,
        part,
        scale_bits,
        DOT=dot_precision(x[0].dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        **tiles.options,
    )
    return partial, parts


def backward(
    grad, student, teacher, dims, reverse_dims, weight, lse, reverse_lse, begin, end, temperature
) -> tuple[Tensor, Tensor]:
    """Gradients of student and, with ``reverse_dims``, of teacher, of contiguous inputs."""
    count, _ = student.shape
    end = count if end < 0 else end
    x, y, chosen, k = _directions(student, teacher, dims, reverse_dims)
    of_rows = gathered.gradients if count >= _GATHERED_ROWS else _gradients
    lse = (lse, reverse_lse)[: len(x)]
    grads = of_rows(grad, x, y, chosen, k, weight, lse, (count, begin, end), _scale_bits(temperature))
    return grads[0], grads[1] if len(grads) > 1 else student.new_empty(0)


def _gradients(grad, x, y, chosen, k, weight, lse, numbers, scale_bits) -> tuple[Tensor, ...]:
    (count, d), dtype = x[0].shape, x[0].dtype
    grads = tuple(map(torch.empty_like, x))
    tiles = _DIRECT["grad"][product_kind(dtype)]
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
        scale_bits,
        DOT=dot_precision(dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        BLOCK_D=_DIRECT_COLUMNS,
        **tiles.options,
    )
    return grads
