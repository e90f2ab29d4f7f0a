"""reconstruction: both products of the decoder, bias, residual and squared error in one kernel.

    decoded = u @ w_uni.T + p @ w_paired.T + bias
    loss = sum_i weight_i * mean over d of (decoded_i - target_i)^2

Forward launches ``decode`` and, with more than one program, the sum of their partial losses, in their order. Backward
starts from decoded - target, of which nothing is stored by forward:

    grad = grad_decoded + 2 / d * weight_i * grad_loss * (decoded_i - target_i)

``grad_features`` and ``grad_weights`` form it in registers. Where it would be formed many times over, or where the
target wants its gradient too, one pass writes it first, N * d elements in the type of u.

fp16 and bf16 accumulate in fp32, the loss is fp32; fp32 products are fp32 throughout unless TF32 is allowed; fp64 has
no kernel here. No atomics: two runs are equal bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from .groups import launch
from .products import FILL, Sums, Tiles, dot_formed, dot_precision, formed_right, product_kind, split_rows, sum_splits

__all__ = ["backward", "forward"]


@triton.jit
def _row_scale(p_row_weight, o_row, m_row, rows, d):
    """weight_i / d, weight_i = 1 / rows where there are no weights; 0 past the last row."""
    if p_row_weight is None:
        b_weight = tl.where(m_row, 1.0 / rows, 0.0)
    else:
        b_weight = tl.load(p_row_weight + o_row, mask=m_row, other=0.0).to(tl.float32)
    return b_weight / d


@triton.jit
def _product(b_sum, p_x, p_w, o_row, m_row, o_col, m_col, n, DOT: tl.constexpr, BLOCK_K: tl.constexpr):
    """b_sum + x[rows, n] @ w[columns, n].T."""
    for start in range(0, n, BLOCK_K):
        o_n = start + tl.arange(0, BLOCK_K)
        m_n = o_n < n
        b_x = tl.load(
            p_x + o_row.to(tl.int64)[:, None] * n + o_n[None, :], mask=m_row[:, None] & m_n[None, :], other=0.0
        )
        b_w = tl.load(
            p_w + o_col.to(tl.int64)[None, :] * n + o_n[:, None], mask=m_n[:, None] & m_col[None, :], other=0.0
        )
        b_sum = tl.dot(b_x, b_w, b_sum, input_precision=DOT)
    return b_sum


@triton.jit(do_not_specialize=["rows"])
def decode_kernel(
    p_u, p_p, p_w_uni, p_w_paired, p_bias, p_target, p_row_weight, p_decoded, p_loss, rows, d, n_u, n_p,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of decoded, BLOCK_M rows by BLOCK_N columns, and its part of the loss."""
    tiles_d = tl.cdiv(d, BLOCK_N)
    o_row = (tl.program_id(0) // tiles_d) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_col = (tl.program_id(0) % tiles_d) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    m_col = o_col < d
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_sum = _product(b_sum, p_u, p_w_uni, o_row, m_row, o_col, m_col, n_u, DOT, BLOCK_K)
    b_sum = _product(b_sum, p_p, p_w_paired, o_row, m_row, o_col, m_col, n_p, DOT, BLOCK_K)
    if p_bias is not None:
        b_sum += tl.load(p_bias + o_col, mask=m_col, other=0.0).to(tl.float32)[None, :]
    offsets = o_row.to(tl.int64)[:, None] * d + o_col[None, :]
    mask = m_row[:, None] & m_col[None, :]
    b_decoded = b_sum.to(p_decoded.dtype.element_ty)
    tl.store(p_decoded + offsets, b_decoded, mask=mask)
    # the loss is of what is returned, so that backward can start from it
    b_target = tl.load(p_target + offsets, mask=mask, other=0.0).to(tl.float32)
    b_residual = tl.where(mask, b_decoded.to(tl.float32) - b_target, 0.0)
    b_squares = b_residual * b_residual * _row_scale(p_row_weight, o_row, m_row, rows, d)[:, None]
    tl.store(p_loss + tl.program_id(0), tl.sum(b_squares))


@triton.jit(do_not_specialize=["count"])
def sum_loss_kernel(p_partial, p_loss, count, BLOCK: tl.constexpr):
    """One program adds the partial losses in a fixed order."""
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_partial + o, mask=o < count, other=0.0)
    tl.store(p_loss, tl.sum(b_sum, 0))


@triton.jit
def _grad_by_loss(
    p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row, offsets, mask, rows, d, ROW: tl.constexpr
):
    """2 / d * weight_i * grad_loss * (decoded - target), fp32; rows lie along dimension ROW of the tile."""
    b_decoded = tl.load(p_decoded + offsets, mask=mask, other=0.0).to(tl.float32)
    b_target = tl.load(p_target + offsets, mask=mask, other=0.0).to(tl.float32)
    b_scale = _row_scale(p_row_weight, o_row, m_row, rows, d) * (2.0 * tl.load(p_grad_loss).to(tl.float32))
    return (b_decoded - b_target) * tl.expand_dims(b_scale, 1 - ROW)


@triton.jit
def _load_grad(
    p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row, offsets, mask, rows, d,
    FORMED: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """grad in the type of u: formed here, or with FORMED as it stands in ``p_grad_decoded``."""
    b_grad = tl.load(p_grad_decoded + offsets, mask=mask, other=0.0)
    if not FORMED:
        b_by_loss = _grad_by_loss(
            p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row, offsets, mask, rows, d, ROW
        )
        b_grad = (b_grad.to(tl.float32) + b_by_loss).to(b_grad.dtype)
    return b_grad


@triton.jit(do_not_specialize=["rows"])
def form_grad_kernel(
    p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, p_grad, p_grad_target, rows, d,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program writes grad for ROWS rows by BLOCK_D columns and, where it is asked for, the target's gradient."""
    tiles_d = tl.cdiv(d, BLOCK_D)
    o_row = (tl.program_id(0) // tiles_d) * ROWS + tl.arange(0, ROWS)
    o_col = (tl.program_id(0) % tiles_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_row = o_row < rows
    mask = m_row[:, None] & (o_col < d)[None, :]
    offsets = o_row.to(tl.int64)[:, None] * d + o_col[None, :]
    b_by_loss = _grad_by_loss(p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row, offsets, mask, rows, d, 0)
    b_grad = tl.load(p_grad_decoded + offsets, mask=mask, other=0.0).to(tl.float32) + b_by_loss
    tl.store(p_grad + offsets, b_grad.to(p_grad.dtype.element_ty), mask=mask)
    if p_grad_target is not None:
        tl.store(p_grad_target + offsets, (b_by_loss * -1.0).to(p_grad_target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def grad_features_kernel(
    p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, p_w_uni, p_w_paired, p_grad_u, p_grad_p,
    rows, d, n_u, n_p,
    FORMED: tl.constexpr, FORMED_RIGHT: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of grad_u = grad @ w_uni and the tile of grad_p = grad @ w_paired at the same place."""
    tiles_n = tl.cdiv(tl.maximum(n_u, n_p), BLOCK_N)
    o_row = (tl.program_id(0) // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < rows
    # what is formed here and multiplied on the right twice stops the pipeliner of triton 3.6 on sm_100, whose matrix
    # units read the left from memory of their own
    right: tl.constexpr = FORMED_RIGHT and (FORMED or not cuda_capability_geq(10))
    b_u = tl.zeros((BLOCK_N, BLOCK_M) if right else (BLOCK_M, BLOCK_N), tl.float32)
    b_p = tl.zeros((BLOCK_N, BLOCK_M) if right else (BLOCK_M, BLOCK_N), tl.float32)
    for column in range(0, d, BLOCK_K):
        o_col = column + tl.arange(0, BLOCK_K)
        m_col = o_col < d
        b_grad = _load_grad(
            p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row,
            o_row.to(tl.int64)[:, None] * d + o_col[None, :], m_row[:, None] & m_col[None, :], rows, d, FORMED, 0,
        )  # fmt: skip
        b_w_uni = tl.load(
            p_w_uni + o_col.to(tl.int64)[:, None] * n_u + o_n[None, :],
            mask=m_col[:, None] & (o_n < n_u)[None, :],
            other=0.0,
        )
        b_u = dot_formed(b_u, b_grad, b_w_uni, right, DOT)
        b_w_paired = tl.load(
            p_w_paired + o_col.to(tl.int64)[:, None] * n_p + o_n[None, :],
            mask=m_col[:, None] & (o_n < n_p)[None, :],
            other=0.0,
        )
        b_p = dot_formed(b_p, b_grad, b_w_paired, right, DOT)
    if right:
        b_u = tl.trans(b_u)
        b_p = tl.trans(b_p)
    o_first = o_row.to(tl.int64)[:, None]
    element: tl.constexpr = p_grad_u.dtype.element_ty
    tl.store(p_grad_u + o_first * n_u + o_n[None, :], b_u.to(element), mask=m_row[:, None] & (o_n < n_u)[None, :])
    tl.store(p_grad_p + o_first * n_p + o_n[None, :], b_p.to(element), mask=m_row[:, None] & (o_n < n_p)[None, :])


@triton.jit(do_not_specialize=["rows", "split", "stride"])
def grad_decoder_kernel(
    p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, p_u, p_p,
    p_grad_w_uni, p_grad_w_paired, p_grad_bias, rows, split, stride, d, n_u, n_p,
    FORMED: tl.constexpr, FORMED_RIGHT: tl.constexpr, DOT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of grad_w_uni = grad.T @ u and of grad_w_paired = grad.T @ p over one split of ``split``
    rows; those of the first columns also the bias's gradient. Split i writes ``i * stride`` elements further."""
    tiles_n = tl.cdiv(tl.maximum(n_u, n_p), BLOCK_N)
    tiles_d = tl.cdiv(d, BLOCK_D)
    pid_n = tl.program_id(0) % tiles_n
    part = tl.program_id(0) // (tiles_n * tiles_d)
    o_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_col = (tl.program_id(0) // tiles_n) % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_col = o_col < d
    right: tl.constexpr = FORMED_RIGHT and (FORMED or not cuda_capability_geq(10))  # as in grad_features_kernel
    b_w_uni = tl.zeros((BLOCK_N, BLOCK_D) if right else (BLOCK_D, BLOCK_N), tl.float32)
    b_w_paired = tl.zeros((BLOCK_N, BLOCK_D) if right else (BLOCK_D, BLOCK_N), tl.float32)
    # added up over a step's rows after the last one: before, warps would wait for each other in every step
    b_bias = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    end = tl.minimum(rows, (part + 1) * split)
    for start in range(part * split, end, BLOCK_R):
        o_row = start + tl.arange(0, BLOCK_R)
        m_row = o_row < end
        b_grad = _load_grad(
            p_grad_decoded, p_grad_loss, p_decoded, p_target, p_row_weight, o_row, m_row,
            o_row.to(tl.int64)[None, :] * d + o_col[:, None], m_row[None, :] & m_col[:, None], rows, d, FORMED, 1,
        )  # fmt: skip
        b_bias += b_grad.to(tl.float32)
        o_first = o_row.to(tl.int64)[:, None]
        b_u = tl.load(p_u + o_first * n_u + o_n[None, :], mask=m_row[:, None] & (o_n < n_u)[None, :], other=0.0)
        b_w_uni = dot_formed(b_w_uni, b_grad, b_u, right, DOT)
        b_p = tl.load(p_p + o_first * n_p + o_n[None, :], mask=m_row[:, None] & (o_n < n_p)[None, :], other=0.0)
        b_w_paired = dot_formed(b_w_paired, b_grad, b_p, right, DOT)
    if right:
        b_w_uni = tl.trans(b_w_uni)
        b_w_paired = tl.trans(b_w_paired)
    o_split = part.to(tl.int64) * stride
    element: tl.constexpr = p_grad_bias.dtype.element_ty
    o_first = o_split + o_col.to(tl.int64)[:, None] * n_u
    tl.store(p_grad_w_uni + o_first + o_n[None, :], b_w_uni.to(element), mask=m_col[:, None] & (o_n < n_u)[None, :])
    o_first = o_split + o_col.to(tl.int64)[:, None] * n_p
    tl.store(
        p_grad_w_paired + o_first + o_n[None, :], b_w_paired.to(element), mask=m_col[:, None] & (o_n < n_p)[None, :]
    )
    if pid_n == 0:
        tl.store(p_grad_bias + o_split + o_col, tl.sum(b_bias, 1).to(element), mask=m_col)


# Tiles by product, type and size of the problem, as in partitioned_linear. One accumulator: 128 x 128 takes 124
# registers on sm_90 and 180 on sm_80; 64 x 128 with two takes 118 to 128 on sm_90.
_TILES = {
    # rows, columns of decoded, step over the columns of u and p
    "decode": {
        "16": (Tiles(32, 32, 64, 4, 3), Tiles(128, 128, 64, 8, 3)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(128, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 64, 32, 8, 3)),
    },
    # rows, columns of u and p, step over d
    "grad_features": {
        "16": (Tiles(32, 32, 64, 4, 3), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 64, 32, 8, 3)),
    },
    # rows and columns of the weight, step over the batch
    "grad_decoder": {
        "16": (Tiles(32, 32, 64, 4, 3), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 64, 32, 8, 3)),
    },
}


def _tiles(product: str, dtype: torch.dtype, programs) -> tuple[Tiles, bool]:
    small, large = _TILES[product][product_kind(dtype)]
    fills = programs(large) >= FILL
    return (large if fills else small), fills


def forward(u, p, w_uni, w_paired, bias, target, row_weight):
    """``(decoded, loss)`` of contiguous 2-D inputs."""
    rows, d = target.shape
    decoded = u.new_empty(rows, d)
    if rows == 0:
        return decoded, u.new_zeros((), dtype=torch.float32)
    tiles, _ = _tiles("decode", u.dtype, lambda t: triton.cdiv(rows, t.m) * triton.cdiv(d, t.n))
    programs = triton.cdiv(rows, tiles.m) * triton.cdiv(d, tiles.n)
    loss = u.new_empty((), dtype=torch.float32)
    partial = loss if programs == 1 else u.new_empty(programs, dtype=torch.float32)
    launch(
        decode_kernel,
        programs,
        u,
        p,
        w_uni,
        w_paired,
        bias,
        target,
        row_weight,
        decoded,
        partial,
        rows,
        d,
        w_uni.shape[1],
        w_paired.shape[1],
        DOT=dot_precision(u.dtype),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        **tiles.options,
    )
    if programs > 1:
        launch(sum_loss_kernel, 1, partial, loss, programs, BLOCK=1024, num_warps=4)
    return decoded, loss


def backward(grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight, target_grad):
    """Gradients of u, p, w_uni, w_paired, bias and target, of contiguous inputs; the last is empty unless asked for."""
    rows, d = target.shape
    n_u, n_p = w_uni.shape[1], w_paired.shape[1]
    n = max(n_u, n_p)
    features, large = _tiles("grad_features", u.dtype, lambda t: triton.cdiv(rows, t.m) * triton.cdiv(n, t.n))
    weights, _ = _tiles(
        "grad_decoder", u.dtype, lambda t: triton.cdiv(d, t.m) * triton.cdiv(n, t.n) * (rows // (4 * t.k))
    )
    grad_target = torch.empty_like(target) if target_grad else None
    # formed in registers, grad costs two more loads for every tile across the width of u and p
    formed = target_grad or (large and triton.cdiv(n, features.n) > 2)
    grad = grad_decoded, grad_loss, decoded, target, row_weight
    if formed:
        made = torch.empty_like(decoded)
        _form_grad(grad, made, grad_target)
        grad = made, *grad[1:]
    grad_u, grad_p = torch.empty_like(u), torch.empty_like(p)
    options = {"FORMED": formed, "FORMED_RIGHT": formed_right(u.dtype), "DOT": dot_precision(u.dtype)}
    launch(
        grad_features_kernel,
        triton.cdiv(rows, features.m) * triton.cdiv(n, features.n),
        *grad,
        w_uni,
        w_paired,
        grad_u,
        grad_p,
        rows,
        d,
        n_u,
        n_p,
        BLOCK_M=features.m,
        BLOCK_N=features.n,
        BLOCK_K=features.k,
        **options,
        **features.options,
    )
    programs = triton.cdiv(d, weights.m) * triton.cdiv(n, weights.n)
    splits, split = split_rows(rows, programs, weights.k)
    sums = Sums([(d, n_u), (d, n_p), (d,)], splits, splits > 1, u.dtype, u.device)
    launch(
        grad_decoder_kernel,
        programs * splits,
        *grad,
        u,
        p,
        *sums.targets,
        rows,
        split,
        sums.stride,
        d,
        n_u,
        n_p,
        BLOCK_D=weights.m,
        BLOCK_N=weights.n,
        BLOCK_R=weights.k,
        **options,
        **weights.options,
    )
    return grad_u, grad_p, *sum_splits([sums])[0], grad_target if target_grad else target.new_empty(0)


def _form_grad(grad, made, grad_target) -> None:
    rows, d = made.shape
    block = min(max(triton.next_power_of_2(d), 16), 512)
    height = 2048 // block
    launch(
        form_grad_kernel,
        triton.cdiv(rows, height) * triton.cdiv(d, block),
        *grad,
        made,
        grad_target,
        rows,
        d,
        ROWS=height,
        BLOCK_D=block,
        num_warps=4,
    )
