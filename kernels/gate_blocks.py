"""Cumulative-softmax gates one block of columns at a time, for kernels that meet a row in pieces.

With e_k = exp((z_k - max z) / temperature), s = sum of e, and a block of columns [a, b):

    gate_k       = (sum of e before a + sum of e from a to k) / s
    complement_k = (sum of e from k + 1 to b + sum of e from b + 1 on) / s

A small pass over z writes, for every row, max z, 1 / s, and both outer sums of every block (``statistics``); after that
any block is formed on its own, in any order. Nothing is ever a difference of sums: the complement comes from its own
scan from the right, over the columns moved by one, and has as many correct digits as the gate.

One gate value per ``chunk`` neighbouring columns: e counts at the first column of its chunk and is 0 at the others,
which makes every sum above what it should be without another case.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

__all__ = [
    "LN_2",
    "LOG2_E",
    "ROW_PIECE",
    "block_gates",
    "gate_weights",
    "grad_logits_rows",
    "load_gates",
    "statistics_rows",
    "store_gates_tile",
    "store_grad_logits",
]

# gates are formed with exp2: log2(e) joins the temperature
LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))

# columns that the passes over whole rows hold at a time
ROW_PIECE = 1024


@triton.jit
def gate_weights(p_z, o_row, m_row, o_col, d, gates, chunk, b_max, scale, CHUNKED: tl.constexpr):
    """e of these rows and columns [rows, columns], fp32; 0 past the last column and inside a chunk."""
    m_col = o_col < d
    o_gate = o_col
    if CHUNKED:
        m_col = m_col & (o_col % chunk == 0)
        o_gate = o_col // chunk
    z = tl.load(
        p_z + o_row.to(tl.int64)[:, None] * gates + o_gate[None, :],
        mask=m_row[:, None] & m_col[None, :],
        other=-float("inf"),
    )
    return tl.exp2((z.to(tl.float32) - b_max[:, None]) * scale)


@triton.jit
def block_gates(
    p_z,
    p_statistics,
    o_row,
    m_row,
    column,
    d,
    gates,
    chunk,
    scale,
    CHUNKED: tl.constexpr,
    GATE_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``(gate, complement, p)`` of the columns [column, column + WIDTH), fp32; p is the softmax itself. ``column`` and
    WIDTH are multiples of GATE_BLOCK, the block of the statistics."""
    blocks = tl.cdiv(d, GATE_BLOCK)
    o_statistics = o_row.to(tl.int64) * (2 * blocks + 2)
    b_max = tl.load(p_statistics + o_statistics, mask=m_row, other=0.0)
    b_inverse = tl.load(p_statistics + o_statistics + 1, mask=m_row, other=0.0)
    first = column // GATE_BLOCK
    last = tl.minimum(first + WIDTH // GATE_BLOCK, blocks) - 1
    b_before = tl.load(p_statistics + o_statistics + 2 + first, mask=m_row, other=0.0)
    b_after = tl.load(p_statistics + o_statistics + 2 + blocks + last, mask=m_row, other=0.0)
    o_col = column + tl.arange(0, WIDTH)
    b_e = gate_weights(p_z, o_row, m_row, o_col, d, gates, chunk, b_max, scale, CHUNKED)
    b_next = gate_weights(p_z, o_row, m_row, o_col + 1, d, gates, chunk, b_max, scale, CHUNKED)
    b_gate = (b_before[:, None] + tl.cumsum(b_e, 1)) * b_inverse[:, None]
    b_complement = (b_after[:, None] + tl.cumsum(b_next, 1, reverse=True)) * b_inverse[:, None]
    # rounding can carry either sum past 1 by a few ulp; nan must pass
    b_gate = tl.where(b_gate > 1.0, 1.0, b_gate)
    b_complement = tl.where(b_complement > 1.0, 1.0, b_complement)
    return b_gate, b_complement, b_e * b_inverse[:, None]


@triton.jit
def statistics_rows(
    tile,
    p_z,
    p_statistics,
    rows,
    d,
    gates,
    chunk,
    scale,
    CHUNKED: tl.constexpr,
    GATE_BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Writes ``[max z, 1 / s, outer sum before each block, outer sum after each block]`` of ROWS rows.

    Columns are read in pieces of PIECE blocks: once for the maximum, once from the left, once from the right.
    """
    blocks = tl.cdiv(d, GATE_BLOCK)
    width: tl.constexpr = PIECE * GATE_BLOCK
    pieces = tl.cdiv(blocks, PIECE)
    o_row = tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < rows
    p_z_row = p_z + o_row.to(tl.int64)[:, None] * gates
    b_max = tl.full((ROWS,), -float("inf"), tl.float32)
    for piece in range(0, tl.cdiv(gates, width)):
        o_gate = piece * width + tl.arange(0, width)
        b_z = tl.load(p_z_row + o_gate[None, :], mask=m_row[:, None] & (o_gate < gates)[None, :], other=-float("inf"))
        b_max = tl.maximum(b_max, tl.max(b_z.to(tl.float32), 1))
    # rows past the end must not make nan of -inf - -inf
    b_max = tl.where(m_row, b_max, 0.0)

    # an exclusive sum is an inclusive one written a block further: subtracting the own term would lose small sums
    p_row = p_statistics + o_row.to(tl.int64) * (2 * blocks + 2)
    p_before = p_row + 2
    p_after = p_row + 2 + blocks
    b_sum = tl.zeros((ROWS,), tl.float32)
    tl.store(p_before, b_sum, mask=m_row)
    for piece in range(0, pieces):
        o_col = piece * width + tl.arange(0, width)
        b_e = gate_weights(p_z, o_row, m_row, o_col, d, gates, chunk, b_max, scale, CHUNKED)
        b_block = tl.sum(tl.reshape(b_e, (ROWS, PIECE, GATE_BLOCK)), 2)
        b_through = b_sum[:, None] + tl.cumsum(b_block, 1)
        o_block = piece * PIECE + tl.arange(0, PIECE)
        tl.store(
            p_before[:, None] + 1 + o_block[None, :], b_through, mask=m_row[:, None] & (o_block + 1 < blocks)[None, :]
        )
        b_sum += tl.sum(b_block, 1)
    tl.store(p_row, b_max, mask=m_row)
    tl.store(p_row + 1, 1.0 / b_sum, mask=m_row)

    b_sum = tl.zeros((ROWS,), tl.float32)
    tl.store(p_after + blocks - 1, b_sum, mask=m_row)
    for done in range(0, pieces):
        piece = pieces - 1 - done
        o_col = piece * width + 1 + tl.arange(0, width)
        b_e = gate_weights(p_z, o_row, m_row, o_col, d, gates, chunk, b_max, scale, CHUNKED)
        b_block = tl.sum(tl.reshape(b_e, (ROWS, PIECE, GATE_BLOCK)), 2)
        b_from = b_sum[:, None] + tl.cumsum(b_block, 1, reverse=True)
        o_block = piece * PIECE + tl.arange(0, PIECE)
        tl.store(
            p_after[:, None] - 1 + o_block[None, :],
            b_from,
            mask=m_row[:, None] & ((o_block > 0) & (o_block < blocks))[None, :],
        )
        b_sum += tl.sum(b_block, 1)


@triton.jit
def store_gates_tile(
    tile,
    p_z,
    p_statistics,
    p_gates,
    rows,
    d,
    gates,
    chunk,
    scale,
    CHUNKED: tl.constexpr,
    GATE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Writes the smaller of gate and complement ``[rows, d]``, with the sign bit set where it is the complement: both
    come back from it with all their digits."""
    blocks = tl.cdiv(d, GATE_BLOCK)
    o_row = (tile // blocks) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < rows
    column = (tile % blocks) * GATE_BLOCK
    b_gate, b_complement, _ = block_gates(
        p_z, p_statistics, o_row, m_row, column, d, gates, chunk, scale, CHUNKED, GATE_BLOCK, GATE_BLOCK
    )
    o_col = column + tl.arange(0, GATE_BLOCK)
    # a product, because negation is a subtraction from 0 and gives no -0.0
    b_signed = tl.where(b_gate <= 0.5, b_gate, b_complement * -1.0)
    tl.store(
        p_gates + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
        b_signed.to(p_gates.dtype.element_ty),
        mask=m_row[:, None] & (o_col < d)[None, :],
    )


@triton.jit
def load_gates(p_gates, o_row, m_row, o_col, d):
    """``(gate, complement)`` from what :func:`store_gates_tile` wrote, fp32."""
    b_signed = tl.load(
        p_gates + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
        mask=m_row[:, None] & (o_col < d)[None, :],
        other=0.0,
    ).to(tl.float32)
    is_complement = b_signed.to(tl.int32, bitcast=True) < 0
    b_small = tl.abs(b_signed)
    b_large = 1.0 - b_small
    return tl.where(is_complement, b_large, b_small), tl.where(is_complement, b_small, b_large)


@triton.jit
def grad_logits_rows(
    tile,
    p_grad_gate,
    p_z,
    p_statistics,
    p_grad_z,
    rows,
    d,
    gates,
    chunk,
    scale,
    CHUNKED: tl.constexpr,
    GATE_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """grad_z = p * (s - <p, s>) / temperature of ROWS rows, s_k the sum of grad_gate ``[rows, d]`` from column k on.

    Columns are read in pieces of WIDTH from the right: once for <p, s>, once to write.
    """
    blocks = tl.cdiv(d, GATE_BLOCK)
    pieces = tl.cdiv(d, WIDTH)
    o_row = tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < rows
    p_row = p_statistics + o_row.to(tl.int64) * (2 * blocks + 2)
    b_max = tl.load(p_row, mask=m_row, other=0.0)
    b_inverse = tl.load(p_row + 1, mask=m_row, other=0.0)
    b_inner = tl.zeros((ROWS,), tl.float32)
    b_carry = tl.zeros((ROWS,), tl.float32)
    for done in range(0, pieces):
        b_p, b_suffix, b_carry = _suffix_piece(
            p_grad_gate, p_z, o_row, m_row, (pieces - 1 - done) * WIDTH, d, gates, chunk, b_max, b_inverse, b_carry,
            scale, CHUNKED, WIDTH,
        )  # fmt: skip
        b_inner += tl.sum(b_p * b_suffix, 1)
    b_carry = tl.zeros((ROWS,), tl.float32)
    for done in range(0, pieces):
        column = (pieces - 1 - done) * WIDTH
        b_p, b_suffix, b_carry = _suffix_piece(
            p_grad_gate, p_z, o_row, m_row, column, d, gates, chunk, b_max, b_inverse, b_carry, scale, CHUNKED, WIDTH
        )
        b_grad = b_p * (b_suffix - b_inner[:, None]) * (scale * LN_2)
        store_grad_logits(p_grad_z, b_grad, o_row, m_row, column + tl.arange(0, WIDTH), d, gates, chunk, CHUNKED)


@triton.jit
def _suffix_piece(
    p_grad_gate, p_z, o_row, m_row, column, d, gates, chunk, b_max, b_inverse, b_carry, scale,
    CHUNKED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``(p, s, s at the first column)`` of a piece, ``b_carry`` being s at the first column of the piece after it."""
    o_col = column + tl.arange(0, WIDTH)
    b_p = gate_weights(p_z, o_row, m_row, o_col, d, gates, chunk, b_max, scale, CHUNKED) * b_inverse[:, None]
    b_grad = tl.load(
        p_grad_gate + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
        mask=m_row[:, None] & (o_col < d)[None, :],
        other=0.0,
    )
    b_suffix = b_carry[:, None] + tl.cumsum(b_grad, 1, reverse=True)
    # picked rather than added up: a carry that is a sum plus itself trips an assertion in triton 3.6
    return b_p, b_suffix, tl.sum(tl.where((o_col == column)[None, :], b_suffix, 0.0), 1)


@triton.jit
def store_grad_logits(p_grad_z, b_grad, o_row, m_row, o_col, d, gates, chunk, CHUNKED: tl.constexpr):
    """Writes grad_z ``[rows, gates]`` from the columns at which a chunk begins."""
    m_col = o_col < d
    o_gate = o_col
    if CHUNKED:
        m_col = m_col & (o_col % chunk == 0)
        o_gate = o_col // chunk
    tl.store(
        p_grad_z + o_row.to(tl.int64)[:, None] * gates + o_gate[None, :],
        b_grad.to(p_grad_z.dtype.element_ty),
        mask=m_row[:, None] & m_col[None, :],
    )
