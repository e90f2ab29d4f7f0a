"""gaussian_sample_kl: a sample of diagonal Gaussians and their divergence from a prior, in one pass over the operands.

    z = mu + exp(logvar / 2) * noise(seed, row, column)
    kl = mean over a layer's columns of
         1/2 (exp(l) - l - 1 + (mu - prior_mu)^2 exp(-prior_logvar)),  l = logvar - prior_logvar

The noise is formed from the seed, which is read on the device, and the place, in forward and again in backward: nothing
of it is stored, and a graph whose replays draw new seeds needs nothing else. Everything is formed in fp32 (fp64 for
fp64). A layer's sum is one program's, in an order that its width alone decides: no atomics, and a row has the same bits
in every batch.

mu, logvar, the priors and the gradients that come in may be rows that lie apart, as halves of one matrix do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .groups import launch
from .philox import GROUP, LANES, columns, normals

__all__ = ["backward", "forward"]

# 16 bytes for every thread, four times: once per word of a block. Compiled for sm_90 by triton 3.9, registers per
# thread: forward 56 in fp32, 119 in bf16 with a given prior; backward 48 and 96.
THREADS = 128
BYTES = 16


@triton.jit
def _place(rows, d, each, ROWS: tl.constexpr):
    """``(rows of this program, which of them there are, its layer, the layer's first column)``."""
    layers = d // each
    layer = tl.program_id(0) % layers
    o_row = (tl.program_id(0) // layers).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return o_row, o_row < rows, layer, layer * each


@triton.jit
def _ratio(p_prior_mu, p_prior_logvar, at_mu, at_logvar, mask, mu, logvar):
    """``(mu - prior_mu, logvar - prior_logvar, exp(-prior_logvar))``; a standard normal prior where there is none."""
    if p_prior_mu is None:
        return mu, logvar, 1.0
    else:
        prior_mu = tl.load(p_prior_mu + at_mu, mask, other=0.0).to(mu.dtype)
        prior_logvar = tl.load(p_prior_logvar + at_logvar, mask, other=0.0).to(mu.dtype)
        return mu - prior_mu, logvar - prior_logvar, tl.exp(-prior_logvar)


@triton.jit
def _series(r):
    """exp(r) - 1 - r where r is between -1 and 1, r^2 (1/2 + r/3! + r^2/4! ...): the difference has no correct digit
    where a posterior is near its prior."""
    # what is left out is below 2^-24, or 2^-53, of the first term
    TERMS: tl.constexpr = 19 if r.dtype == tl.float64 else 12
    total = tl.full(r.shape, 1.0, r.dtype)
    for n in tl.static_range(TERMS, 2, -1):
        total = 1.0 + r * (1.0 / n) * total
    return r * r * 0.5 * total


@triton.jit
def _exp_less_line(r):
    """exp(r) - 1 - r"""
    return tl.where(tl.abs(r) < 1.0, _series(r), tl.exp(r) - 1.0 - r)


@triton.jit
def _expm1(r):
    return tl.where(tl.abs(r) < 1.0, r + _series(r), tl.exp(r) - 1.0)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["p_seed"])
def sample_kl_kernel(
    p_mu, p_logvar, p_prior_mu, p_prior_logvar, p_seed, p_z, p_kl,
    stride_mu, stride_logvar, stride_prior_mu, stride_prior_logvar, rows, d, each,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A program owns a layer of ROWS rows, BLOCK blocks of four columns at a time. Writes z and kl."""
    o_row, m_row, layer, first = _place(rows, d, each, ROWS)
    DOUBLE: tl.constexpr = p_mu.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros((ROWS, BLOCK), REAL)
    for step in range(STEPS):
        o_block = first // GROUP * LANES + step * BLOCK + tl.arange(0, BLOCK)[None, :]
        if p_seed is not None:
            noise = normals(p_seed, o_row, o_block, DOUBLE)
        for word in tl.static_range(4):
            o_col = columns(o_block, word)
            mask = m_row & (o_col >= first) & (o_col < first + each)
            mu = tl.load(p_mu + o_row * stride_mu + o_col, mask, other=0.0).to(REAL)
            logvar = tl.load(p_logvar + o_row * stride_logvar + o_col, mask, other=0.0).to(REAL)
            shift, ratio, precision = _ratio(
                p_prior_mu, p_prior_logvar, o_row * stride_prior_mu + o_col, o_row * stride_prior_logvar + o_col,
                mask, mu, logvar,
            )  # fmt: skip
            # past the end all of these are 0, and so is the term
            total += _exp_less_line(ratio) + shift * shift * precision
            if p_seed is not None:
                z = mu + tl.exp(0.5 * logvar) * noise[word]
                tl.store(p_z + o_row * d + o_col, z.to(p_z.dtype.element_ty), mask)
    kl = tl.sum(total, 1, keep_dims=True) * 0.5 / (each * 1.0)
    tl.store(p_kl + o_row * (d // each) + layer, kl, m_row)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["p_seed"])
def sample_kl_backward_kernel(
    p_grad_z, p_grad_kl, p_mu, p_logvar, p_prior_mu, p_prior_logvar, p_seed,
    p_grad_mu, p_grad_logvar, p_grad_prior_mu, p_grad_prior_logvar,
    stride_grad_z, stride_grad_kl, step_grad_kl, stride_mu, stride_logvar, stride_prior_mu, stride_prior_logvar,
    rows, d, each,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """With scale = grad_kl / each:

        grad_mu = by_mu + grad_z,          by_mu = scale * (mu - prior_mu) exp(-prior_logvar)
        grad_logvar = by_logvar + grad_z * exp(logvar / 2) noise / 2,  by_logvar = scale * (exp(l) - 1) / 2
        grad_prior_mu = -by_mu,            grad_prior_logvar = -by_logvar - by_mu * (mu - prior_mu) / 2

    A program owns a layer of ROWS rows. Writes a gradient for each operand that there is.
    """
    o_row, m_row, layer, first = _place(rows, d, each, ROWS)
    DOUBLE: tl.constexpr = p_mu.dtype.element_ty == tl.float64
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    element: tl.constexpr = p_grad_mu.dtype.element_ty
    scale = tl.load(p_grad_kl + o_row * stride_grad_kl + layer * step_grad_kl, m_row, other=0.0).to(REAL)
    scale = scale / (each * 1.0)
    for step in range(STEPS):
        o_block = first // GROUP * LANES + step * BLOCK + tl.arange(0, BLOCK)[None, :]
        if p_seed is not None:
            noise = normals(p_seed, o_row, o_block, DOUBLE)
        for word in tl.static_range(4):
            o_col = columns(o_block, word)
            mask = m_row & (o_col >= first) & (o_col < first + each)
            at = o_row * d + o_col
            mu = tl.load(p_mu + o_row * stride_mu + o_col, mask, other=0.0).to(REAL)
            logvar = tl.load(p_logvar + o_row * stride_logvar + o_col, mask, other=0.0).to(REAL)
            shift, ratio, precision = _ratio(
                p_prior_mu, p_prior_logvar, o_row * stride_prior_mu + o_col, o_row * stride_prior_logvar + o_col,
                mask, mu, logvar,
            )  # fmt: skip
            by_mu = scale * shift * precision
            by_logvar = 0.5 * scale * _expm1(ratio)
            if p_prior_mu is not None:
                tl.store(p_grad_prior_mu + at, (-by_mu).to(element), mask)
                tl.store(p_grad_prior_logvar + at, (-by_logvar - 0.5 * by_mu * shift).to(element), mask)
            if p_seed is not None:
                grad_z = tl.load(p_grad_z + o_row * stride_grad_z + o_col, mask, other=0.0).to(REAL)
                by_mu += grad_z
                by_logvar += 0.5 * grad_z * tl.exp(0.5 * logvar) * noise[word]
            tl.store(p_grad_mu + at, by_mu.to(element), mask)
            tl.store(p_grad_logvar + at, by_logvar.to(element), mask)


def forward(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    layers: int,
) -> tuple[Tensor, Tensor]:
    """``(z[rows, d], kl[rows, layers])`` of rows that are contiguous each; z is empty where there is no seed."""
    rows, d = mu.shape
    z = mu.new_empty(0 if seed is None else mu.shape)
    kl = mu.new_empty((rows, layers), dtype=_real(mu.dtype))
    operands = mu, logvar, prior_mu, prior_logvar
    programs, constants = _tiles(rows, d, layers, mu.dtype)
    strides = map(_stride, operands)
    launch(sample_kl_kernel, programs, *operands, seed, z, kl, *strides, rows, d, d // layers, **constants)
    return z, kl


def backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mu, logvar and the priors, the latter empty where there are none; strides as in :func:`forward`,
    grad_kl of any."""
    (rows, d), layers = mu.shape, grad_kl.shape[1]
    absent = 0 if prior_mu is None else mu.shape
    made = tuple(mu.new_empty(shape) for shape in (mu.shape, mu.shape, absent, absent))
    operands = mu, logvar, prior_mu, prior_logvar
    programs, constants = _tiles(rows, d, layers, mu.dtype)
    strides = _stride(grad_z), *grad_kl.stride(), *map(_stride, operands)
    launch(
        sample_kl_backward_kernel, programs, grad_z, grad_kl, *operands, seed, *made, *strides, rows, d, d // layers,
        **constants,
    )  # fmt: skip
    return made


def _stride(x: Tensor | None) -> int:
    return 0 if x is None or x.ndim < 2 else x.stride(0)


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(rows: int, d: int, layers: int, dtype: torch.dtype) -> tuple[int, dict[str, int]]:
    """Programs, and the kernels' constants by widths alone."""
    each, group, lanes = d // layers, GROUP.value, LANES.value
    # one that begins inside a group may reach into one more
    groups = triton.cdiv(each, group) + (layers > 1 and each % group > 0)
    # more than four narrow accesses per thread and word would spill
    tile = THREADS * (BYTES // dtype.itemsize if each % lanes == 0 else 4)
    block = min(triton.next_power_of_2(groups) * lanes, tile)
    height = tile // block
    steps = triton.cdiv(groups * lanes, block)
    constants = {"ROWS": height, "BLOCK": block, "STEPS": steps, "num_warps": THREADS // 32}
    return triton.cdiv(rows, height) * layers, constants
