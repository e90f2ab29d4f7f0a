"""The kernels of partitioned_linear: products with an operand that is masked by a gate as it is multiplied.

Each takes tuples with one entry per problem (see :mod:`.groups`): h ``[rows, d]``, z ``[rows, gates]``, gates = d /
chunk, w_uni ``[n_u, d]``, w_paired ``[n_p, d]``, u and its gradient ``[rows, n_u]``, p ``[rows, n_p]``, all contiguous.
Where n_u and n_p differ a program beyond the narrower one multiplies zeros for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gate_blocks import (
    LN_2,
    block_gates,
    grad_logits_rows,
    load_gates,
    statistics_rows,
    store_gates_tile,
    store_grad_logits,
)
from .groups import find_group, number, pick
from .products import dot_formed, finish, load_grad

__all__ = [
    "grad_logits_kernel",
    "grad_operands_kernel",
    "grad_pre_activation_kernel",
    "grad_weights_kernel",
    "project_kernel",
    "statistics_kernel",
    "store_gates_kernel",
]


@triton.jit(do_not_specialize=["scale_bits"])
def statistics_kernel(
    tiles, p_z, p_statistics, rows, d, gates, chunk, scale_bits,
    CHUNKED: tl.constexpr, GATE_BLOCK: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows of one problem's z; see :func:`~.gate_blocks.statistics_rows`."""
    group, tile = find_group(tiles)
    statistics_rows(
        tile, pick(p_z, group), pick(p_statistics, group), number(pick(rows, group)), pick(d, group),
        pick(gates, group), pick(chunk, group), scale_bits.to(tl.float32, bitcast=True),
        CHUNKED, GATE_BLOCK, PIECE, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def store_gates_kernel(
    tiles, p_z, p_statistics, p_gates, rows, d, gates, chunk, scale_bits,
    CHUNKED: tl.constexpr, GATE_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program owns one block of the gates of ROWS rows."""
    group, tile = find_group(tiles)
    store_gates_tile(
        tile, pick(p_z, group), pick(p_statistics, group), pick(p_gates, group), number(pick(rows, group)),
        pick(d, group), pick(gates, group), pick(chunk, group), scale_bits.to(tl.float32, bitcast=True),
        CHUNKED, GATE_BLOCK, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def project_kernel(
    tiles, p_h, p_z, p_statistics, p_gates, p_w_uni, p_b_uni, p_w_paired, p_b_paired, p_u, p_p, p_x_uni, p_x_paired,
    rows, d, gates, chunk, n_u, n_p, n_b_uni, n_b_paired, scale_bits,
    ACTIVATION: tl.constexpr, KEEP_X: tl.constexpr, STORED: tl.constexpr, CHUNKED: tl.constexpr, DOT: tl.constexpr,
    FORMED_RIGHT: tl.constexpr, GATE_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of u and the tile of p at the same place, BLOCK_M rows by BLOCK_N columns."""
    group, tile = find_group(tiles)
    rows = number(pick(rows, group))
    d = pick(d, group)
    gates = pick(gates, group)
    chunk = pick(chunk, group)
    n_u = pick(n_u, group)
    n_p = pick(n_p, group)
    p_h = pick(p_h, group)
    p_z = pick(p_z, group)
    p_statistics = pick(p_statistics, group)
    p_gates = pick(p_gates, group)
    p_w_uni = pick(p_w_uni, group)
    p_w_paired = pick(p_w_paired, group)
    scale = scale_bits.to(tl.float32, bitcast=True)
    # neighbours share rows: h and z are larger than the weights, which stay in the cache of the device
    tiles_n = tl.cdiv(tl.maximum(n_u, n_p), BLOCK_N)
    o_row = (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    p_h_row = p_h + o_row.to(tl.int64)[:, None] * d
    p_w_uni_row = p_w_uni + o_n.to(tl.int64)[:, None] * d
    p_w_paired_row = p_w_paired + o_n.to(tl.int64)[:, None] * d
    b_u = tl.zeros((BLOCK_N, BLOCK_M) if FORMED_RIGHT else (BLOCK_M, BLOCK_N), tl.float32)
    b_p = tl.zeros((BLOCK_N, BLOCK_M) if FORMED_RIGHT else (BLOCK_M, BLOCK_N), tl.float32)
    for column in range(0, d, BLOCK_K):
        o_col = column + tl.arange(0, BLOCK_K)
        m_col = o_col < d
        b_h = tl.load(p_h_row + o_col[None, :], mask=m_row[:, None] & m_col[None, :], other=0.0)
        if STORED:
            b_gate, b_complement = load_gates(p_gates, o_row, m_row, o_col, d)
        else:
            b_gate, b_complement, _ = block_gates(
                p_z, p_statistics, o_row, m_row, column, d, gates, chunk, scale, CHUNKED, GATE_BLOCK, BLOCK_K
            )
        b_wide = b_h.to(tl.float32)
        b_w_uni = tl.load(p_w_uni_row + o_col[None, :], mask=(o_n < n_u)[:, None] & m_col[None, :], other=0.0)
        b_u = dot_formed(b_u, (b_complement * b_wide).to(b_h.dtype), tl.trans(b_w_uni), FORMED_RIGHT, DOT)
        b_w_paired = tl.load(p_w_paired_row + o_col[None, :], mask=(o_n < n_p)[:, None] & m_col[None, :], other=0.0)
        b_p = dot_formed(b_p, (b_gate * b_wide).to(b_h.dtype), tl.trans(b_w_paired), FORMED_RIGHT, DOT)
    if FORMED_RIGHT:
        b_u = tl.trans(b_u)
        b_p = tl.trans(b_p)
    finish(
        b_u, pick(p_b_uni, group), pick(n_b_uni, group), pick(p_u, group), pick(p_x_uni, group),
        o_row, o_n, rows, n_u, ACTIVATION, KEEP_X,
    )  # fmt: skip
    finish(
        b_p, pick(p_b_paired, group), pick(n_b_paired, group), pick(p_p, group), pick(p_x_paired, group),
        o_row, o_n, rows, n_p, ACTIVATION, KEEP_X,
    )  # fmt: skip


@triton.jit
def grad_pre_activation_kernel(
    tiles, p_grad_uni, p_saved_uni, p_grad_paired, p_saved_paired, p_out_uni, p_out_paired, size_uni, size_paired,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK entries of both gradients back through the activation."""
    group, tile = find_group(tiles)
    o = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_uni = o < number(pick(size_uni, group))
    b_uni = load_grad(pick(p_grad_uni, group), pick(p_saved_uni, group), o, m_uni, ACTIVATION)
    tl.store(pick(p_out_uni, group) + o, b_uni, mask=m_uni)
    m_paired = o < number(pick(size_paired, group))
    b_paired = load_grad(pick(p_grad_paired, group), pick(p_saved_paired, group), o, m_paired, ACTIVATION)
    tl.store(pick(p_out_paired, group) + o, b_paired, mask=m_paired)


@triton.jit
def _times_weight(
    b_sum, p_grad, p_saved, p_w, o_row, o_col, rows, d, n,
    ACTIVATION: tl.constexpr, DOT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """b_sum + grad[rows, n] @ w[n, columns]."""
    for start in range(0, n, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < n
        b_grad = load_grad(
            p_grad, p_saved, o_row.to(tl.int64)[:, None] * n + o_n[None, :], (o_row < rows)[:, None] & m_n[None, :],
            ACTIVATION,
        )  # fmt: skip
        b_w = tl.load(
            p_w + o_n.to(tl.int64)[:, None] * d + o_col[None, :], mask=m_n[:, None] & (o_col < d)[None, :], other=0.0
        )
        b_sum = tl.dot(b_grad, b_w, b_sum, input_precision=DOT)
    return b_sum


@triton.jit(do_not_specialize=["scale_bits"])
def grad_operands_kernel(
    tiles, p_grad_u, p_saved_u, p_grad_p, p_saved_p, p_h, p_z, p_statistics, p_w_uni, p_w_paired,
    p_grad_h, p_grad_gate, p_grad_z, rows, d, gates, chunk, n_u, n_p, scale_bits,
    ACTIVATION: tl.constexpr, WHOLE_ROW: tl.constexpr, CHUNKED: tl.constexpr, DOT: tl.constexpr,
    GATE_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of grad_h, BLOCK_M rows by BLOCK_D columns, and the same tile of the gate's gradient
    (fp32), from which, with WHOLE_ROW, it goes on to its rows of grad_z.

        d_uni = grad_u @ w_uni,  d_paired = grad_p @ w_paired
        grad_h = (1 - g) * d_uni + g * d_paired,  grad_g = (d_paired - d_uni) * h
    """
    group, tile = find_group(tiles)
    rows = number(pick(rows, group))
    d = pick(d, group)
    gates = pick(gates, group)
    chunk = pick(chunk, group)
    scale = scale_bits.to(tl.float32, bitcast=True)
    tiles_d = tl.cdiv(d, BLOCK_D)
    column = (tile % tiles_d) * BLOCK_D
    o_row = (tile // tiles_d) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_col = column + tl.arange(0, BLOCK_D)
    m_row = o_row < rows
    mask = m_row[:, None] & (o_col < d)[None, :]
    offsets = o_row.to(tl.int64)[:, None] * d + o_col[None, :]
    b_uni = _times_weight(
        tl.zeros((BLOCK_M, BLOCK_D), tl.float32), pick(p_grad_u, group), pick(p_saved_u, group), pick(p_w_uni, group),
        o_row, o_col, rows, d, pick(n_u, group), ACTIVATION, DOT, BLOCK_N,
    )  # fmt: skip
    b_paired = _times_weight(
        tl.zeros((BLOCK_M, BLOCK_D), tl.float32), pick(p_grad_p, group), pick(p_saved_p, group),
        pick(p_w_paired, group), o_row, o_col, rows, d, pick(n_p, group), ACTIVATION, DOT, BLOCK_N,
    )  # fmt: skip
    b_gate, b_complement, b_softmax = block_gates(
        pick(p_z, group), pick(p_statistics, group), o_row, m_row, column, d, gates, chunk, scale,
        CHUNKED, GATE_BLOCK, BLOCK_D,
    )  # fmt: skip
    b_h = tl.load(pick(p_h, group) + offsets, mask=mask, other=0.0)
    b_grad_h = b_complement * b_uni + b_gate * b_paired
    tl.store(pick(p_grad_h, group) + offsets, b_grad_h.to(b_h.dtype), mask=mask)
    b_grad_gate = (b_paired - b_uni) * b_h.to(tl.float32)
    if WHOLE_ROW:
        b_suffix = tl.cumsum(b_grad_gate, 1, reverse=True)
        b_inner = tl.sum(b_softmax * b_suffix, 1)
        b_grad_z = b_softmax * (b_suffix - b_inner[:, None]) * (scale * LN_2)
        store_grad_logits(pick(p_grad_z, group), b_grad_z, o_row, m_row, o_col, d, gates, chunk, CHUNKED)
    else:
        tl.store(pick(p_grad_gate, group) + offsets, b_grad_gate, mask=mask)


@triton.jit(do_not_specialize=["scale_bits"])
def grad_logits_kernel(
    tiles, p_grad_gate, p_z, p_statistics, p_grad_z, rows, d, gates, chunk, scale_bits,
    CHUNKED: tl.constexpr, GATE_BLOCK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows of one problem's grad_z; see :func:`~.gate_blocks.grad_logits_rows`."""
    group, tile = find_group(tiles)
    grad_logits_rows(
        tile, pick(p_grad_gate, group), pick(p_z, group), pick(p_statistics, group), pick(p_grad_z, group),
        number(pick(rows, group)), pick(d, group), pick(gates, group), pick(chunk, group),
        scale_bits.to(tl.float32, bitcast=True), CHUNKED, GATE_BLOCK, WIDTH, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def grad_weights_kernel(
    tiles, p_grad_u, p_saved_u, p_grad_p, p_saved_p, p_h, p_z, p_statistics, p_gates,
    p_grad_w_uni, p_grad_b_uni, p_grad_w_paired, p_grad_b_paired,
    rows, split, stride, d, gates, chunk, n_u, n_p, scale_bits,
    ACTIVATION: tl.constexpr, STORED: tl.constexpr, CHUNKED: tl.constexpr, DOT: tl.constexpr,
    GATE_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of both weights' gradients, BLOCK_N by BLOCK_D, over one split of ``split`` rows; those of
    the first columns also the biases' gradients. Split i writes ``i * stride`` elements further.

        grad_w_uni = grad_u.T @ ((1 - g) * h),  grad_w_paired = grad_p.T @ (g * h)
    """
    group, tile = find_group(tiles)
    rows = number(pick(rows, group))
    split = number(pick(split, group))
    d = pick(d, group)
    gates = pick(gates, group)
    chunk = pick(chunk, group)
    n_u = pick(n_u, group)
    n_p = pick(n_p, group)
    p_grad_u = pick(p_grad_u, group)
    p_saved_u = pick(p_saved_u, group)
    p_grad_p = pick(p_grad_p, group)
    p_saved_p = pick(p_saved_p, group)
    p_h = pick(p_h, group)
    p_z = pick(p_z, group)
    p_statistics = pick(p_statistics, group)
    p_gates = pick(p_gates, group)
    scale = scale_bits.to(tl.float32, bitcast=True)
    tiles_n = tl.cdiv(tl.maximum(n_u, n_p), BLOCK_N)
    tiles_d = tl.cdiv(d, BLOCK_D)
    column = (tile % tiles_d) * BLOCK_D
    part = tile // (tiles_n * tiles_d)
    o_n = (tile // tiles_d) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_col = column + tl.arange(0, BLOCK_D)
    b_w_uni = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    b_w_paired = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # added up over a step's rows after the last one: before, warps would wait for each other in every step
    b_b_uni = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    b_b_paired = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    end = tl.minimum(rows, (part + 1) * split)
    for start in range(part * split, end, BLOCK_R):
        o_row = start + tl.arange(0, BLOCK_R)
        m_row = o_row < end
        b_h = tl.load(
            p_h + o_row.to(tl.int64)[:, None] * d + o_col[None, :],
            mask=m_row[:, None] & (o_col < d)[None, :],
            other=0.0,
        )
        if STORED:
            b_gate, b_complement = load_gates(p_gates, o_row, m_row, o_col, d)
        else:
            b_gate, b_complement, _ = block_gates(
                p_z, p_statistics, o_row, m_row, column, d, gates, chunk, scale, CHUNKED, GATE_BLOCK, BLOCK_D
            )
        b_wide = b_h.to(tl.float32)
        b_u = load_grad(
            p_grad_u, p_saved_u, o_row.to(tl.int64)[None, :] * n_u + o_n[:, None],
            m_row[None, :] & (o_n < n_u)[:, None], ACTIVATION,
        )  # fmt: skip
        b_w_uni = tl.dot(b_u, (b_complement * b_wide).to(b_h.dtype), b_w_uni, input_precision=DOT)
        b_b_uni += b_u.to(tl.float32)
        b_p = load_grad(
            p_grad_p, p_saved_p, o_row.to(tl.int64)[None, :] * n_p + o_n[:, None],
            m_row[None, :] & (o_n < n_p)[:, None], ACTIVATION,
        )  # fmt: skip
        b_w_paired = tl.dot(b_p, (b_gate * b_wide).to(b_h.dtype), b_w_paired, input_precision=DOT)
        b_b_paired += b_p.to(tl.float32)
    o_split = part.to(tl.int64) * pick(stride, group)
    _store_grad_weight(
        pick(p_grad_w_uni, group) + o_split, pick(p_grad_b_uni, group) + o_split, b_w_uni, b_b_uni,
        o_n, o_col, column, n_u, d,
    )  # fmt: skip
    _store_grad_weight(
        pick(p_grad_w_paired, group) + o_split, pick(p_grad_b_paired, group) + o_split, b_w_paired, b_b_paired,
        o_n, o_col, column, n_p, d,
    )  # fmt: skip


@triton.jit
def _store_grad_weight(p_weight, p_bias, b_weight, b_bias, o_n, o_col, column, n, d):
    m_n = o_n < n
    tl.store(
        p_weight + o_n.to(tl.int64)[:, None] * d + o_col[None, :],
        b_weight.to(p_weight.dtype.element_ty),
        mask=m_n[:, None] & (o_col < d)[None, :],
    )
    if column == 0:
        tl.store(p_bias + o_n, tl.sum(b_bias, 1).to(p_bias.dtype.element_ty), mask=m_n)
