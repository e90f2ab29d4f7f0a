"""What the kernels over several predictions share: logits in steps of classes, their mixture, sums of exponentials.

A program owns ROWS whole rows and walks over each in STEPS steps of BLOCK classes. Predictions are a tuple of pointers,
over which the kernels are unrolled; what belongs to one row is ``[ROWS, 1]``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["add", "block", "mix", "real", "tiles"]

# 16 bytes for every thread; an entry each where the rows begin at odd places
THREADS = 128
BYTES = 16


@triton.jit
def block(p_x, o_row, m_row, o_class, classes, REAL: tl.constexpr):
    """A prediction's logits ``[rows, classes of this step]``, -inf past the last class."""
    mask = m_row & (o_class < classes)
    return tl.load(p_x + o_row * classes + o_class, mask, other=float("-inf")).to(REAL)


@triton.jit
def mix(p_logits, weights, o_row, m_row, o_class, classes, MIXED: tl.constexpr, REAL: tl.constexpr):
    """The mixture, 0 past the last class."""
    mask = m_row & (o_class < classes)
    fused = tl.where(mask, block(p_logits[0], o_row, m_row, o_class, classes, REAL), 0.0) * weights[0]
    for k in tl.static_range(1, MIXED):
        x = block(p_logits[k], o_row, m_row, o_class, classes, REAL)
        fused += tl.where(mask, x, 0.0) * weights[k]
    return fused


@triton.jit
def add(peak, total, x):
    """``(max x, sum of exp(x - max x))`` of what was seen before and of ``x``; of nothing but -inf it is (-inf, 0)."""
    new = tl.maximum(peak, tl.max(x, 1, keep_dims=True))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(peak - shift) + tl.sum(tl.exp(x - shift), 1, keep_dims=True)


def real(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(rows: int, classes: int, dtype: torch.dtype) -> tuple[int, dict[str, int]]:
    """Programs, and the kernels' constants by the number of classes alone."""
    tile = THREADS * (BYTES // dtype.itemsize if classes % 16 == 0 else 1)
    width = min(triton.next_power_of_2(classes), tile)
    height = tile // width
    constants = {"ROWS": height, "BLOCK": width, "STEPS": triton.cdiv(classes, width), "num_warps": THREADS // 32}
    return triton.cdiv(rows, height), constants
