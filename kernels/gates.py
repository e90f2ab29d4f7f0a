"""What the partition kernels share: the cumulative softmax of a block of gates, its derivative, and how rows are laid
over programs.

Logits of a row are loaded, or formed from its boundary: :func:`loaded_logits` and :func:`bump_logits` give what
:func:`exponentials` takes, and all else is the same for both.

A program owns ROWS whole rows and walks over each in BLOCKS steps of BLOCK gates; a gate covers CHUNK neighbouring
entries of h, taken PIECE at a time. Tiles are ``[ROWS, BLOCK]``, and ``[ROWS, BLOCK, PIECE]`` where CHUNK > 1. GATES
and CHUNK are compile-time constants, for models have few widths: full rows then need no mask, and accesses are 16 bytes
wide at every width that allows it.

Names: ``p_`` pointer, ``o_`` offset, ``m_`` mask.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl

__all__ = ["Plan", "curve_argument", "empty_share", "number_argument", "plan", "scale_argument"]

# Entries of a tile that a program keeps in registers, 8 per thread: one 16-byte access of a 16-bit type.
PER_THREAD = 8
TILE = 1024
MOST_WARPS = 16

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))
# An edge sharper than this is a step all the same, a boundary further out too, and products of both stay in order.
SHARPEST = 1e30
STEEPEST = tl.constexpr(SHARPEST)


class Plan(NamedTuple):
    """How a launch lays rows over programs; the fields in capitals are the kernel's constants."""

    grid: tuple[int]
    constants: dict[str, int]
    options: dict[str, object]


def plan(h: torch.Tensor, z: torch.Tensor, longest: int) -> Plan:
    """Lays the rows of ``h[..., d]`` and ``z[..., d/c]`` over programs: by widths alone, so that the bits of a row do
    not depend on the size of its batch, and with nothing measured at run time.

    Args:
        h, z: contiguous, at least one row.
        longest: gates, a power of two, of the longest row that the kernel keeps in registers whole.
    """
    d, gates = h.shape[-1], z.shape[-1]
    chunk = d // gates
    block = triton.next_power_of_2(gates)
    if block > longest:
        # what is carried from block to block takes registers too
        block = longest // 2
    piece = min(triton.next_power_of_2(chunk), max(TILE // block, 1))
    per_program = max(TILE // (block * piece), 1)
    warps = min(max(per_program * block * piece // (32 * PER_THREAD), 1), MOST_WARPS)
    constants = {
        "GATES": gates,
        "CHUNK": chunk,
        "ROWS": per_program,
        "BLOCK": block,
        "BLOCKS": triton.cdiv(gates, block),
        "PIECE": piece,
    }
    # fused multiply-add is asked for by name: its default is not the same in every release of triton
    return Plan((triton.cdiv(h.numel() // d, per_program),), constants, {"num_warps": warps, "enable_fp_fusion": True})


def number_argument(x: float, dtype: torch.dtype) -> float | int:
    """A number as the kernels take it: a float, or for fp64 its bits, for triton passes floats as fp32."""
    return struct.unpack("<q", struct.pack("<d", x))[0] if dtype == torch.float64 else x


def scale_argument(temperature: float, dtype: torch.dtype) -> float | int:
    """log2(e) / temperature as the kernels take it, see :func:`number_argument`.

    Kept finite and above 0: an entry past the end of a row is -inf, and -inf * 0 is not 0.
    """
    limits = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    return number_argument(min(max(LOG2_E / temperature, limits.tiny), limits.max), dtype)


def curve_argument(width: float, d: int, dtype: torch.dtype) -> float | int:
    """log2(e) / 2 (width d)^2, for distances in places of a row of d, as the kernels take it, see :func:`bump_logits`
    and :func:`number_argument`."""
    places = width * d
    return number_argument(LOG2_E / max(2 * places * places, LOG2_E / SHARPEST), dtype)


def empty_share(z: torch.Tensor, partitions: int) -> torch.Tensor:
    """Memory for the shares of gates of ``z[..., d/c]``: ``[..., partitions]``, fp32 (fp64 for fp64)."""
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return z.new_empty((*z.shape[:-1], partitions), dtype=dtype)


@triton.jit
def read_number(number, p_h):
    """A number of :func:`number_argument` in the type that gates are formed in: fp64 for fp64, else fp32."""
    if p_h.dtype.element_ty == tl.float64:
        # bits of no more than 32 places come as an int32
        return tl.full((), number, tl.int64).to(tl.float64, bitcast=True)
    else:
        return tl.full((), number, tl.float32)


@triton.jit
def loaded_logits(p_z, o_row, m_row, scale, GATES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Logits in memory, and their largest of every row, ``[ROWS, 1]``."""
    o_gate = tl.arange(0, BLOCK)[None, :]
    peak = tl.full(m_row.shape, float("-inf"), scale.dtype)
    for block in range(BLOCKS):
        at = block * BLOCK + o_gate
        z = tl.load(p_z + o_row * GATES + at, m_row & (at < GATES), other=float("-inf")).to(scale.dtype)
        peak = tl.maximum(peak, tl.max(z, 1, keep_dims=True))
    # rows past the last one: nothing is stored of them, but they need not be NaN either
    return p_z, tl.where(m_row, peak, 0.0), scale


@triton.jit
def bump_logits(p_b, o_row, m_row, curve, FROM_RIGHT: tl.constexpr, GATES: tl.constexpr):
    """Logits of the bump around a boundary, its length counted from either end: from the largest, that of place
    ``peak``, and in powers of two ``u * (tilt - curve * u)`` at place ``peak + u``. Distances from a boundary far
    outside of the row would lose the digits that tell one place from the next."""
    given = load(p_b, o_row, m_row, curve)
    # tl.clamp would turn NaN into a number
    b = tl.where(given > STEEPEST, STEEPEST, tl.where(given < -STEEPEST, -STEEPEST, given))
    center = b * GATES
    if FROM_RIGHT:
        center = GATES - center
    peak = tl.floor(center)
    peak = tl.where(peak > GATES - 1.0, GATES - 1.0, tl.where(peak > 0.0, peak, 0.0))
    whole = tl.full(b.shape, GATES, curve.dtype)
    if FROM_RIGHT:
        beyond = tl.fma(-b, whole, GATES - peak)
    else:
        beyond = tl.fma(b, whole, -peak)
    tilt = curve * (2.0 * beyond - 1.0)
    tilt = tl.where(tilt > STEEPEST, STEEPEST, tl.where(tilt < -STEEPEST, -STEEPEST, tilt))
    # no boundary at infinity: NaN, as in the formula
    return peak, tilt + (given - given), curve


@triton.jit
def exponentials(logits, o_row, o_gate, mask, GATES: tl.constexpr):
    """exp of each logit less the largest of its row, 0 where masked. A power of two takes a third of the instructions
    of exp."""
    if logits[0].dtype.is_ptr():
        p_z, peak, scale = logits
        z = tl.load(p_z + o_row * GATES + o_gate, mask, other=float("-inf")).to(scale.dtype)
        return tl.exp2((z - peak) * scale)
    else:
        peak, tilt, curve = logits
        u = o_gate - peak
        return tl.where(mask, tl.exp2(u * (tilt - curve * u)), 0.0)


@triton.jit
def softmax_statistics(logits, o_row, m_row, GATES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """1 / sum of exponentials of every row, ``[ROWS, 1]``, and the normalised sum of every block."""
    SUMS: tl.constexpr = triton.next_power_of_2(BLOCKS)
    o_block = tl.arange(0, SUMS)[None, :]
    o_gate = tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros([m_row.shape[0], SUMS], logits[2].dtype)
    for block in range(BLOCKS):
        at = block * BLOCK + o_gate
        part = tl.sum(exponentials(logits, o_row, at, m_row & (at < GATES), GATES), 1, keep_dims=True)
        sums += tl.where(o_block == block, part, 0.0)
    inverse = 1.0 / tl.where(m_row, tl.sum(sums, 1, keep_dims=True), 1.0)
    return inverse, sums * inverse


@triton.jit
def sum_where(sums, mask):
    return tl.sum(tl.where(mask, sums, 0.0), 1, keep_dims=True)


@triton.jit
def gates(logits, o_row, m_row, block, inverse, sums, GATES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """``gate``, ``complement`` and ``p`` of one block, ``[ROWS, BLOCK]``.

    The complement is a scan of its own from the right, over the logits one further on: total - prefix has no correct
    digit where the gate is near 1. Sums of other blocks are added up, never subtracted.
    """
    o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    m_next = (o_gate + 1 < GATES) & (o_gate + 1 < (block + 1) * BLOCK)
    p = exponentials(logits, o_row, o_gate, m_row & (o_gate < GATES), GATES) * inverse
    following = exponentials(logits, o_row, o_gate + 1, m_row & m_next, GATES) * inverse
    gate = tl.cumsum(p, 1)
    complement = tl.cumsum(following, 1, reverse=True)
    if BLOCKS > 1:
        o_block = tl.arange(0, sums.shape[1])[None, :]
        gate += sum_where(sums, o_block < block)
        complement += sum_where(sums, o_block > block)
    # tl.minimum would turn NaN into 1
    return tl.where(gate > 1.0, 1.0, gate), tl.where(complement > 1.0, 1.0, complement), p


@triton.jit
def tile(
    o_row, m_row, block, piece, GATES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr
):
    """Offsets and mask of a tile of h: entries ``piece`` to ``piece + PIECE`` of every gate of a block."""
    o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    if CHUNK == 1:
        return o_row * GATES + o_gate, m_row & (o_gate < GATES)
    else:
        o_entry = piece + tl.arange(0, PIECE)[None, None, :]
        at = (o_row * GATES + o_gate)[:, :, None] * CHUNK + o_entry
        return at, (m_row & (o_gate < GATES))[:, :, None] & (o_entry < CHUNK)


@triton.jit
def spread(gate, CHUNK: tl.constexpr):
    """One value per gate to one per entry of a tile of h."""
    if CHUNK == 1:
        return gate
    else:
        return gate[:, :, None]


@triton.jit
def gather(x, CHUNK: tl.constexpr):
    """The adjoint of ``spread``."""
    if CHUNK == 1:
        return x
    else:
        return tl.sum(x, 2)


@triton.jit
def load(pointer, at, mask, scale):
    return tl.load(pointer + at, mask, other=0.0).to(scale.dtype)


@triton.jit
def sum_of_block(x, block, GATES: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of x over the gates of one block: ``[ROWS, 1]``."""
    o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.sum(tl.where(o_gate < GATES, x, 0.0), 1, keep_dims=True)


@triton.jit
def grad_by_share(by_share, like, block, GATES: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient ``[ROWS, 1]`` that a row's share gives to each of its gates, for one block; 0 past the last gate."""
    o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.where(o_gate < GATES, by_share, tl.zeros_like(like))


@triton.jit
def dual_masses(e, ne, r, nr, block, GATES: tl.constexpr, BLOCK: tl.constexpr):
    """What the partitions of the dual gate take of one block, and what nobody takes, each ``[ROWS, 1]``."""
    of_uni, of_paired = sum_of_block(e * nr, block, GATES, BLOCK), sum_of_block(r * ne, block, GATES, BLOCK)
    return of_uni, of_paired, sum_of_block(e * r, block, GATES, BLOCK), sum_of_block(ne * nr, block, GATES, BLOCK)


@triton.jit
def store_dual_share(p_share, o_row, m_row, of_uni, of_paired, of_shared, of_none, GATES: tl.constexpr):
    """The share of every row ``[ROWS, 4]`` from the sums of its masses."""
    p_share += o_row * 4
    tl.store(p_share, of_uni / GATES, m_row)
    tl.store(p_share + 1, of_paired / GATES, m_row)
    tl.store(p_share + 2, of_shared / GATES, m_row)
    tl.store(p_share + 3, of_none / GATES, m_row)


@triton.jit
def grad_by_dual_share(p_grad_share, o_row, m_row, scale, GATES: tl.constexpr):
    """The gradients ``[ROWS, 1]`` that a row's share gives to the first three masses of each of its gates: what nobody
    takes is what they leave of 1. 0 without a gradient of shares."""
    if p_grad_share is None:
        zero = tl.zeros(m_row.shape, scale.dtype)
        return zero, zero, zero
    else:
        of_none = load(p_grad_share, o_row * 4 + 3, m_row, scale)
        by_uni = (load(p_grad_share, o_row * 4, m_row, scale) - of_none) / GATES
        by_paired = (load(p_grad_share, o_row * 4 + 1, m_row, scale) - of_none) / GATES
        return by_uni, by_paired, (load(p_grad_share, o_row * 4 + 2, m_row, scale) - of_none) / GATES


@triton.jit
def dual_grad_gates(e, ne, r, nr, by_uni, by_paired, by_shared):
    """Gradients with respect to cumsoftmax(z_uni) = 1 - e and to r, from those with respect to the first three
    masses."""
    return (by_paired - by_shared) * r - by_uni * nr, by_paired * ne + (by_shared - by_uni) * e


@triton.jit
def store_grad_z(
    p_grad_z,
    o_row,
    m_row,
    block,
    p,
    grad_gate,
    after,
    dot,
    scale,
    GATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dz = p * (s - dot) / temperature, s_j = sum of grad_gate from j on, ``after`` of which lies in later blocks, and
    dot = <p, s> = <gate, grad_gate>."""
    o_gate = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    grad_z = p * (tl.cumsum(grad_gate, 1, reverse=True) + after - dot) * (scale * LN_2)
    tl.store(p_grad_z + o_row * GATES + o_gate, grad_z, m_row & (o_gate < GATES))
