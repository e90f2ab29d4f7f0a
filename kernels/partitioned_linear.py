"""partitioned_linear, one or several problems per launch: gates, masking, both products, bias and activation.

    g = cumsoftmax(z / temperature)
    u = activation(((1 - g) * h) @ w_uni.T + b_uni),  p = activation((g * h) @ w_paired.T + b_paired)

The masked operands are formed in registers where they are multiplied, forward and backward; h and z are read once for
both products. Launches: forward ``statistics`` (one pass over z), ``project``. Backward ``statistics``,
``grad_operands`` (grad_h, and grad_z where a row fits one tile), ``grad_logits`` (grad_z otherwise), ``grad_weights``
and, where rows are split, the sum of the splits. Wide products are preceded by one pass that stores the gates (``_FORMED_LARGE``).

fp16 and bf16 accumulate in fp32; fp32 products are fp32 throughout unless TF32 is allowed; fp64 has no kernel here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate_blocks import (
    LN_2,
    LOG2_E,
    ROW_PIECE,
    block_gates,
    grad_logits_rows,
    load_gates,
    statistics_rows,
    store_gates_tile,
    store_grad_logits,
)
from .groups import MAX_GROUP, find_group, float_bits, launch, pick
from .products import FILL, Sums, Tiles, dot_precision, finish, load_grad, split_rows, sum_splits

__all__ = ["backward", "forward", "grouped_backward", "grouped_forward"]


@triton.jit(do_not_specialize=["scale_bits"])
def statistics_kernel(
    tiles, p_z, p_statistics, rows, d, gates, chunk, scale_bits,
    CHUNKED: tl.constexpr, GATE_BLOCK: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows of one problem's z; see :func:`~.gate_blocks.statistics_rows`."""
    group, tile = find_group(tiles)
    statistics_rows(
        tile, pick(p_z, group), pick(p_statistics, group), pick(rows, group), pick(d, group), pick(gates, group),
        pick(chunk, group), scale_bits.to(tl.float32, bitcast=True), CHUNKED, GATE_BLOCK, PIECE, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def store_gates_kernel(
    tiles, p_z, p_statistics, p_gates, rows, d, gates, chunk, scale_bits,
    CHUNKED: tl.constexpr, GATE_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program owns one block of the gates of ROWS rows."""
    group, tile = find_group(tiles)
    store_gates_tile(
        tile, pick(p_z, group), pick(p_statistics, group), pick(p_gates, group), pick(rows, group), pick(d, group),
        pick(gates, group), pick(chunk, group), scale_bits.to(tl.float32, bitcast=True), CHUNKED, GATE_BLOCK, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def project_kernel(
    tiles, p_h, p_z, p_statistics, p_gates, p_w_uni, p_b_uni, p_w_paired, p_b_paired, p_u, p_p, p_x_uni, p_x_paired,
    rows, d, gates, chunk, n_u, n_p, n_b_uni, n_b_paired, scale_bits,
    ACTIVATION: tl.constexpr, KEEP_X: tl.constexpr, STORED: tl.constexpr, CHUNKED: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of u and the tile of p at the same place, BLOCK_M rows by BLOCK_N columns."""
    group, tile = find_group(tiles)
    rows = pick(rows, group)
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
    p_w_uni_row = p_w_uni + o_n.to(tl.int64)[None, :] * d
    p_w_paired_row = p_w_paired + o_n.to(tl.int64)[None, :] * d
    b_u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_p = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for column in range(0, d, BLOCK_K):
        o_col = column + tl.arange(0, BLOCK_K)
        m_col = o_col < d
        b_h = tl.load(p_h_row + o_col[None, :], mask=m_row[:, None] & m_col[None, :], other=0.0)
        if STORED:
            b_gate, b_complement = load_gates(p_gates, o_row, m_row, o_col, d)
        else:
            b_gate, b_complement, _ = block_gates(
                p_z, p_statistics, o_row, m_row, column, d, gates, chunk, scale, CHUNKED, BLOCK_K, BLOCK_K
            )
        b_wide = b_h.to(tl.float32)
        b_w_uni = tl.load(p_w_uni_row + o_col[:, None], mask=m_col[:, None] & (o_n < n_u)[None, :], other=0.0)
        b_u = tl.dot((b_complement * b_wide).to(b_h.dtype), b_w_uni, b_u, input_precision=DOT)
        b_w_paired = tl.load(p_w_paired_row + o_col[:, None], mask=m_col[:, None] & (o_n < n_p)[None, :], other=0.0)
        b_p = tl.dot((b_gate * b_wide).to(b_h.dtype), b_w_paired, b_p, input_precision=DOT)
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
    m_uni = o < pick(size_uni, group)
    b_uni = load_grad(pick(p_grad_uni, group), pick(p_saved_uni, group), o, m_uni, ACTIVATION)
    tl.store(pick(p_out_uni, group) + o, b_uni, mask=m_uni)
    m_paired = o < pick(size_paired, group)
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
    rows = pick(rows, group)
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
        pick(rows, group), pick(d, group), pick(gates, group), pick(chunk, group),
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
    rows = pick(rows, group)
    split = pick(split, group)
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
    b_b_uni = tl.zeros((BLOCK_N,), tl.float32)
    b_b_paired = tl.zeros((BLOCK_N,), tl.float32)
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
        b_b_uni += tl.sum(b_u.to(tl.float32), 1)
        b_p = load_grad(
            p_grad_p, p_saved_p, o_row.to(tl.int64)[None, :] * n_p + o_n[:, None],
            m_row[None, :] & (o_n < n_p)[:, None], ACTIVATION,
        )  # fmt: skip
        b_w_paired = tl.dot(b_p, (b_gate * b_wide).to(b_h.dtype), b_w_paired, input_precision=DOT)
        b_b_paired += tl.sum(b_p.to(tl.float32), 1)
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
        tl.store(p_bias + o_n, b_bias.to(p_bias.dtype.element_ty), mask=m_n)


# Tiles by size of the problem, product and type; the last two of each are warps and pipeline stages. Two accumulators make
# 128 x 128 spill on sm_90, and stored gates a step of 64 on sm_80.
_SMALL, _LARGE, _LARGE_STORED = 0, 1, 2
_TILES = {
    # rows, columns of u and p, step over d (the block of the gates)
    "project": {
        "16": (Tiles(32, 32, 64, 4, 3), Tiles(64, 128, 64, 8, 3), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 64, 32, 8, 3), Tiles(32, 64, 32, 8, 3)),
    },
    # rows, columns of h, step over the columns of u and p
    "grad_operands": {
        "16": (Tiles(32, 64, 32, 8, 3), Tiles(64, 128, 64, 8, 3)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 64, 32, 8, 3)),
    },
    # rows and columns of the weight, step over the batch
    "grad_weights": {
        "16": (Tiles(32, 64, 32, 8, 3), Tiles(128, 64, 64, 8, 3), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(128, 64, 32, 8, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 32, 32, 8, 3), Tiles(32, 32, 32, 8, 3)),
    },
}
# The block of the gates divides every tile's columns.
_GATE_BLOCK = {"16": 64, "tf32": 32, "fp32": 32}


# A gate is formed in about 40 instructions by every program across the width of a product. Past this many programs one
# pass stores the gates first, N * d elements in the type of h: at large tiles more than two would spend longer on gates
# than on products, small problems are bound by their launches.
_FORMED_SMALL, _FORMED_LARGE = 8, 2


class _Problem:
    """Contiguous operands and sizes of one problem."""

    def __init__(self, h: Tensor, z: Tensor, w_uni: Tensor, w_paired: Tensor):
        self.h, self.z, self.w_uni, self.w_paired = (x.contiguous() for x in (h, z, w_uni, w_paired))
        self.rows, self.d = h.shape
        self.gates = z.shape[1]
        self.chunk = self.d // self.gates
        self.n_u, self.n_p = w_uni.shape[0], w_paired.shape[0]
        self.n = max(self.n_u, self.n_p)


class _Group:
    """Problems that share their launches, with what every launch over them needs."""

    def __init__(self, problems: list[_Problem], temperature: float):
        self.problems = problems
        first = problems[0].h
        self.dtype, self.device = first.dtype, first.device
        self.dot = dot_precision(self.dtype)
        self.kind = "16" if self.dtype.itemsize == 2 else "fp32" if self.dot == "ieee" else "tf32"
        self.gate_block = _GATE_BLOCK[self.kind]
        # finite and above 0: a column past the end is -inf, and -inf * 0 is not 0
        limits = torch.finfo(torch.float32)
        self.scale_bits = float_bits(min(max(LOG2_E / temperature, limits.tiny), limits.max))
        self.chunked = any(x.chunk != 1 for x in problems)
        self.statistics = tuple(self._statistics())

    def tuple(self, *names: str) -> list[tuple]:
        """One argument per name, with one entry per problem."""
        return [tuple(getattr(x, name) for x in self.problems) for name in names]

    def tiles(self, product: str, programs, across) -> tuple[Tiles, bool]:
        """Tiles of a product, and whether it should find its gates stored.

        Args:
            programs: of a problem and tiles; the large tiles are taken where these still fill the device.
            across: the same, those that meet one and the same gate.
        """
        choice = _TILES[product][self.kind]
        large = sum(programs(x, choice[_LARGE]) for x in self.problems) >= FILL
        tiles = choice[_LARGE if large else _SMALL]
        stored = max(across(x, tiles) for x in self.problems) > (_FORMED_LARGE if large else _FORMED_SMALL)
        return (choice[-1] if large and stored else tiles), stored

    def launch(self, kernel, tiles, *arguments, **constants) -> None:
        launch(kernel, tiles, *arguments, device=self.device, **constants)

    def _statistics(self) -> list[Tensor]:
        blocks = [triton.cdiv(x.d, self.gate_block) for x in self.problems]
        piece = min(triton.next_power_of_2(max(blocks)), ROW_PIECE // self.gate_block)
        rows = 2 * ROW_PIECE // (piece * self.gate_block)
        made = [
            torch.empty(x.rows, 2 * count + 2, dtype=torch.float32, device=self.device)
            for x, count in zip(self.problems, blocks, strict=True)
        ]
        self.launch(
            statistics_kernel,
            [triton.cdiv(x.rows, rows) for x in self.problems],
            *self.tuple("z"),
            tuple(made),
            *self.tuple("rows", "d", "gates", "chunk"),
            self.scale_bits,
            CHUNKED=self.chunked,
            GATE_BLOCK=self.gate_block,
            PIECE=piece,
            ROWS=rows,
            num_warps=4,
        )
        return made

    def stored_gates(self) -> tuple[Tensor, ...]:
        made = tuple(torch.empty_like(x.h) for x in self.problems)
        rows = 32
        self.launch(
            store_gates_kernel,
            [triton.cdiv(x.rows, rows) * triton.cdiv(x.d, self.gate_block) for x in self.problems],
            *self.tuple("z"),
            self.statistics,
            made,
            *self.tuple("rows", "d", "gates", "chunk"),
            self.scale_bits,
            CHUNKED=self.chunked,
            GATE_BLOCK=self.gate_block,
            ROWS=rows,
            num_warps=4,
        )
        return made


def _run_forward(problems, biases_uni, biases_paired, activation, temperature):
    group = _Group(problems, temperature)
    keep_x = activation in ("gelu", "silu")
    u = tuple(x.h.new_empty(x.rows, x.n_u) for x in problems)
    p = tuple(x.h.new_empty(x.rows, x.n_p) for x in problems)
    x_uni, x_paired = u, p
    if keep_x:
        x_uni, x_paired = tuple(map(torch.empty_like, u)), tuple(map(torch.empty_like, p))
    tiles, stored = group.tiles(
        "project",
        programs=lambda x, t: triton.cdiv(x.rows, t.m) * triton.cdiv(x.n, t.n),
        across=lambda x, t: triton.cdiv(x.n, t.n),
    )
    group.launch(
        project_kernel,
        [triton.cdiv(x.rows, tiles.m) * triton.cdiv(x.n, tiles.n) for x in problems],
        *group.tuple("h", "z"),
        group.statistics,
        group.stored_gates() if stored else group.statistics,
        *group.tuple("w_uni"),
        _or_else(biases_uni, u),
        *group.tuple("w_paired"),
        _or_else(biases_paired, p),
        u,
        p,
        x_uni,
        x_paired,
        *group.tuple("rows", "d", "gates", "chunk", "n_u", "n_p"),
        tuple(0 if b is None else b.numel() for b in biases_uni),
        tuple(0 if b is None else b.numel() for b in biases_paired),
        group.scale_bits,
        ACTIVATION=activation or "none",
        KEEP_X=keep_x,
        STORED=stored,
        CHUNKED=group.chunked,
        DOT=group.dot,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        **tiles.options,
    )
    if keep_x:
        return list(zip(u, p, x_uni, x_paired, strict=True))
    return [(u, p, u.new_empty(0), p.new_empty(0)) for u, p in zip(u, p, strict=True)]


def _or_else(tensors: Sequence[Tensor | None], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous tensors; where there is none an address that is never read."""
    return tuple(other if x is None else x.contiguous() for x, other in zip(tensors, others, strict=True))


def _run_backward(problems, grads_u, grads_p, saved_u, saved_p, activation, temperature):
    group = _Group(problems, temperature)
    activation = activation or "none"
    grads_u, grads_p = (tuple(x.contiguous() for x in grads) for grads in (grads_u, grads_p))
    saved_u, saved_p = _or_else(saved_u, grads_u), _or_else(saved_p, grads_p)
    # here it is the activation's derivative that is formed or stored: it costs about what a gate does
    operands, stored = group.tiles(
        "grad_operands",
        programs=lambda x, t: triton.cdiv(x.rows, t.m) * triton.cdiv(x.d, t.n),
        across=lambda x, t: triton.cdiv(x.d, t.n),
    )
    if activation != "none" and stored:
        grads_u, grads_p = _grad_pre_activation(group, grads_u, saved_u, grads_p, saved_p, activation)
        activation = "none"
    grads = grads_u, saved_u, grads_p, saved_p
    by_operand = _grad_operands(group, grads, activation, operands)
    by_weight = _grad_weights(group, grads, activation)
    return [(h, z, *weights) for (h, z), weights in zip(by_operand, by_weight, strict=True)]


def _grad_pre_activation(group, grads_u, saved_u, grads_p, saved_p, activation):
    made_u, made_p = tuple(map(torch.empty_like, grads_u)), tuple(map(torch.empty_like, grads_p))
    block = 1024
    group.launch(
        grad_pre_activation_kernel,
        [triton.cdiv(x.rows * x.n, block) for x in group.problems],
        grads_u,
        saved_u,
        grads_p,
        saved_p,
        made_u,
        made_p,
        tuple(x.numel() for x in grads_u),
        tuple(x.numel() for x in grads_p),
        ACTIVATION=activation,
        BLOCK=block,
        num_warps=4,
    )
    return made_u, made_p


def _grad_operands(group, grads, activation, tiles) -> list[tuple[Tensor, Tensor]]:
    problems = group.problems
    grad_h = tuple(torch.empty_like(x.h) for x in problems)
    grad_z = tuple(torch.empty_like(x.z) for x in problems)
    whole_row = all(x.d <= tiles.n for x in problems)
    grad_gate = group.statistics if whole_row else tuple(torch.empty_like(x, dtype=torch.float32) for x in grad_h)
    group.launch(
        grad_operands_kernel,
        [triton.cdiv(x.rows, tiles.m) * triton.cdiv(x.d, tiles.n) for x in problems],
        *grads,
        *group.tuple("h", "z"),
        group.statistics,
        *group.tuple("w_uni", "w_paired"),
        grad_h,
        grad_gate,
        grad_z,
        *group.tuple("rows", "d", "gates", "chunk", "n_u", "n_p"),
        group.scale_bits,
        ACTIVATION=activation,
        WHOLE_ROW=whole_row,
        CHUNKED=group.chunked,
        DOT=group.dot,
        GATE_BLOCK=group.gate_block,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.k,
        BLOCK_D=tiles.n,
        **tiles.options,
    )
    if not whole_row:
        width = min(max(triton.next_power_of_2(max(x.d for x in problems)), 16), ROW_PIECE)
        rows = 2 * ROW_PIECE // width
        group.launch(
            grad_logits_kernel,
            [triton.cdiv(x.rows, rows) for x in problems],
            grad_gate,
            *group.tuple("z"),
            group.statistics,
            grad_z,
            *group.tuple("rows", "d", "gates", "chunk"),
            group.scale_bits,
            CHUNKED=group.chunked,
            GATE_BLOCK=group.gate_block,
            WIDTH=width,
            ROWS=rows,
            num_warps=4,
        )
    return list(zip(grad_h, grad_z, strict=True))


def _grad_weights(group, grads, activation) -> list[tuple[Tensor, ...]]:
    problems = group.problems
    tiles, stored = group.tiles(
        "grad_weights",
        programs=lambda x, t: triton.cdiv(x.n, t.m) * triton.cdiv(x.d, t.n) * (x.rows // (4 * t.k)),
        across=lambda x, t: triton.cdiv(x.n, t.m),
    )
    counts = [triton.cdiv(x.n, tiles.m) * triton.cdiv(x.d, tiles.n) for x in problems]
    splits = [split_rows(x.rows, sum(counts), tiles.k) for x in problems]
    partial = any(count > 1 for count, _ in splits)
    sums = [
        Sums([(x.n_u, x.d), (x.n_u,), (x.n_p, x.d), (x.n_p,)], count, partial, group.dtype, group.device)
        for x, (count, _) in zip(problems, splits, strict=True)
    ]
    group.launch(
        grad_weights_kernel,
        [count * split for count, (split, _) in zip(counts, splits, strict=True)],
        *grads,
        *group.tuple("h", "z"),
        group.statistics,
        group.stored_gates() if stored else group.statistics,
        *(tuple(x.targets[i] for x in sums) for i in range(4)),
        *group.tuple("rows"),
        tuple(size for _, size in splits),
        tuple(x.stride for x in sums),
        *group.tuple("d", "gates", "chunk", "n_u", "n_p"),
        group.scale_bits,
        ACTIVATION=activation,
        STORED=stored,
        CHUNKED=group.chunked,
        DOT=group.dot,
        GATE_BLOCK=group.gate_block,
        BLOCK_N=tiles.m,
        BLOCK_D=tiles.n,
        BLOCK_R=tiles.k,
        **tiles.options,
    )
    return sum_splits(sums)


def forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    """``(u, p, x_uni, x_paired)`` of 2-D inputs; the pre-activations are empty unless backward needs them."""
    return _run_forward([_Problem(h, z, w_uni, w_paired)], [b_uni], [b_paired], activation, temperature)[0]


def backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    """Gradients of h, z, w_uni, b_uni, w_paired, b_paired. ``saved``: pre-activations, outputs for relu."""
    problem = _Problem(h, z, w_uni, w_paired)
    return _run_backward([problem], [grad_u], [grad_p], [saved_u], [saved_p], activation, temperature)[0]


def grouped_forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    """As :func:`forward` of lists with one entry per problem: four lists, from the same number of launches."""
    problems = [_Problem(*x) for x in zip(h, z, w_uni, w_paired, strict=True)]
    made = []
    for at in _launched_together(problems):
        made += _run_forward(problems[at], b_uni[at], b_paired[at], activation, temperature)
    return tuple(map(list, zip(*made, strict=True)))


def grouped_backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    """As :func:`backward` of lists with one entry per problem: six lists."""
    problems = [_Problem(*x) for x in zip(h, z, w_uni, w_paired, strict=True)]
    made = []
    for at in _launched_together(problems):
        lists = (grad_u[at], grad_p[at], saved_u[at], saved_p[at])
        made += _run_backward(problems[at], *lists, activation, temperature)
    return tuple(map(list, zip(*made, strict=True)))


def _launched_together(problems: list[_Problem]) -> list[slice]:
    return [slice(start, start + MAX_GROUP) for start in range(0, len(problems), MAX_GROUP)]
