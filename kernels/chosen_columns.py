"""Chosen columns of rows, as they lie and gathered beside each other, and the weights of rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .groups import find_group, launch, number, pick, unspecialised

__all__ = ["PADDING", "columns", "gather", "load_rows", "padded", "row_weights"]

PADDING = tl.constexpr(64)  # what is gathered has a multiple of so many columns


@triton.jit
def columns(p_dims, o_k, k, d):
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
def row_weights(p_weight, o_row, m_row, count):
    """weight_i, 1 / count where there are no weights; 0 where masked."""
    if p_weight is None:
        return tl.where(m_row, 1.0 / count, 0.0)
    else:
        return tl.load(p_weight + o_row, mask=m_row, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["count"])
def gather_kernel(tiles, p_x, p_dims, p_chosen, k, d, count, ROWS: tl.constexpr):
    """A program writes PADDING chosen columns of ROWS rows beside each other, NaN for a number outside of the row;
    columns past the last one, up to a multiple of PADDING, are zeros."""
    group, tile = find_group(tiles)
    k = number(pick(k, group))
    blocks = tl.cdiv(k, PADDING)
    o_row = tile // blocks * ROWS + tl.arange(0, ROWS)
    o_k = tile % blocks * PADDING + tl.arange(0, PADDING)
    o_col, m_col, b_else = columns(pick(p_dims, group), o_k, k, d)
    m_row = (o_row < count)[:, None]
    p_x = pick(p_x, group)
    b_x = tl.load(
        p_x + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
        mask=m_row & m_col[None, :],
        other=b_else.to(p_x.dtype.element_ty)[None, :],
    )
    tl.store(pick(p_chosen, group) + o_row.to(tl.int64)[:, None] * (blocks * PADDING) + o_k[None, :], b_x, mask=m_row)


@triton.jit
def load_rows(p_x, o_row, m_row, o_k, width, WHOLE: tl.constexpr):
    """Gathered columns of some rows; with WHOLE some of the columns are beyond their width, and zeros."""
    mask = m_row[:, None]
    if WHOLE:
        mask &= (o_k < width)[None, :]
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * width + o_k[None, :], mask=mask, other=0.0)


def padded(k: int) -> int:
    """Columns that ``k`` gathered ones take."""
    return triton.cdiv(k, PADDING.value) * PADDING.value


def gather(x: tuple[Tensor, ...], y: tuple[Tensor, ...], chosen: tuple[Tensor, ...], k: tuple[int, ...]):
    """Chosen columns of students and of teachers, in one launch."""
    count, d = x[0].shape
    ks, rows = k + k, 32
    made = tuple(i.new_empty(count, padded(j)) for i, j in zip(x + y, ks, strict=True))
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
