"""What the kernels around matrix products share: tile sizes, activations, sums of split products."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .groups import find_group, launch, number, pick, unspecialised

__all__ = [
    "FILL",
    "Sums",
    "Tiles",
    "activate",
    "dot_formed",
    "dot_precision",
    "product_kind",
    "finish",
    "formed_right",
    "load_grad",
    "operands_in_shared",
    "split_rows",
    "sum_splits",
]


def formed_right(dtype: torch.dtype) -> bool:
    """Whether :func:`dot_formed` is to work on the right: exact fp32 products, which no matrix unit makes, read either
    side into registers."""
    return dtype.itemsize == 2 or dot_precision(dtype) == "tf32"


class Tiles(NamedTuple):
    """Tile of a product: rows, columns, step of the inner loop (also the block of the gates), and launch options."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def dot_precision(dtype: torch.dtype) -> str:
    """fp32 products are exact fp32 unless torch's own are to be in TF32, whichever of its settings says so."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # before torch 2.9
        return "tf32" if dtype == torch.float32 and matmul.allow_tf32 else "ieee"
    # allow_tf32 raises when it is read after this was set
    precision = torch.backends.fp32_precision if matmul.fp32_precision == "none" else matmul.fp32_precision
    return "tf32" if dtype == torch.float32 and precision == "tf32" else "ieee"


def product_kind(dtype: torch.dtype) -> str:
    """Products of one kind have the same tiles: ``"16"`` bits, ``"tf32"``, and exact ``"fp32"``."""
    return "16" if dtype.itemsize == 2 else "fp32" if dot_precision(dtype) == "ieee" else "tf32"


@cache
def operands_in_shared(device: torch.device) -> bool:
    """Whether matrix units read operands from shared memory, as those of sm_90 and sm_100 do, so that tiles may be
    larger; elsewhere operands are in registers. Asked once per device."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


@triton.jit
def activate(b_x, ACTIVATION: tl.constexpr):
    """activation(x), fp32; ``"none"``, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``."""
    b_y = b_x
    if ACTIVATION == "relu":
        # this way round nan stays nan
        b_y = tl.where(b_x < 0.0, 0.0, b_x)
    elif ACTIVATION == "gelu":
        b_y = 0.5 * b_x * (1.0 + tl.erf(b_x * 0.7071067811865476))
    elif ACTIVATION == "silu":
        b_y = b_x / (1.0 + tl.exp(-b_x))
    return b_y


@triton.jit
def load_grad(p_grad, p_saved, offsets, mask, ACTIVATION: tl.constexpr):
    """Gradient at the pre-activation, in the dtype of ``p_grad``: read from what the activation was given
    (``p_saved``), from its output for relu, which tells as much."""
    b_grad = tl.load(p_grad + offsets, mask=mask, other=0.0)
    if ACTIVATION != "none":
        b_x = tl.load(p_saved + offsets, mask=mask, other=0.0).to(tl.float32)
        b_wide = b_grad.to(tl.float32)
        if ACTIVATION == "relu":
            b_wide = tl.where(b_x > 0.0, b_wide, 0.0)
        elif ACTIVATION == "gelu":
            b_cdf = 0.5 * (1.0 + tl.erf(b_x * 0.7071067811865476))
            b_wide *= b_cdf + b_x * tl.exp(-0.5 * b_x * b_x) * 0.3989422804014327
        else:
            b_sigmoid = 1.0 / (1.0 + tl.exp(-b_x))
            b_wide *= b_sigmoid * (1.0 + b_x * (1.0 - b_sigmoid))
        b_grad = b_wide.to(b_grad.dtype)
    return b_grad


@triton.jit
def dot_formed(b_sum, b_formed, b_other, FORMED_RIGHT: tl.constexpr, DOT: tl.constexpr):
    """b_sum + formed ``[m, k]`` @ other ``[k, n]``, where ``b_formed`` is made in registers; with FORMED_RIGHT the
    transpose of it, ``[n, m]``.

    The matrix units of sm_90 read what is on the right from shared memory alone, where all warps share what they formed
    of it. On the left it would stay in registers, where warps beside each other form the same, and ptxas lets every
    product end before the next operand is formed (C7515).
    """
    if FORMED_RIGHT:
        return tl.dot(tl.trans(b_other), tl.trans(b_formed), b_sum, input_precision=DOT)
    else:
        return tl.dot(b_formed, b_other, b_sum, input_precision=DOT)


@triton.jit
def finish(
    b_accumulator, p_bias, n_bias, p_y, p_x, o_row, o_n, rows, n,
    ACTIVATION: tl.constexpr, KEEP_X: tl.constexpr,
):  # fmt: skip
    """Bias (``n_bias`` entries: n, or 0 for none) and activation of a tile of a product; writes ``p_y`` and, with
    KEEP_X, the pre-activation ``p_x``."""
    b_bias = tl.load(p_bias + o_n, mask=o_n < n_bias, other=0.0)
    b_x = (b_accumulator + b_bias.to(tl.float32)[None, :]).to(p_y.dtype.element_ty)
    offsets = o_row.to(tl.int64)[:, None] * n + o_n[None, :]
    mask = (o_row < rows)[:, None] & (o_n < n)[None, :]
    if KEEP_X:
        tl.store(p_x + offsets, b_x, mask=mask)
    # the activation is of the rounded value, from which backward starts too
    tl.store(p_y + offsets, activate(b_x.to(tl.float32), ACTIVATION).to(b_x.dtype), mask=mask)


# programs that fill a data-centre GPU of this decade (108 to 148 multiprocessors); a constant, so that a result does
# not depend on the machine
FILL = 128


def split_rows(rows: int, tiles: int, step: int, fill: int = FILL) -> tuple[int, int]:
    """``(splits, rows of one)`` for a sum over ``rows`` that ``tiles`` programs would otherwise do alone: enough to
    fill the device (``fill`` programs), at least four steps of ``step`` rows each."""
    splits = max(1, min(fill // tiles, rows // (4 * step)))
    size = triton.cdiv(triton.cdiv(rows, step), splits) * step
    return max(1, triton.cdiv(rows, max(size, 1))), max(size, step)


class Sums:
    """The outputs of a product that is summed over splits of its rows.

    Without ``partial`` the only split writes the outputs themselves. With it every split writes an fp32 partial sum,
    and :func:`sum_splits` adds them in the order of the splits: no atomic, and the same bits every time.

    Attributes:
        targets: where split 0 writes each output; split i writes ``i * stride`` elements further.
    """

    def __init__(
        self, shapes: list[tuple[int, ...]], splits: int, partial: bool, dtype: torch.dtype, device: torch.device
    ):
        self.outputs = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.sizes = [x.numel() for x in self.outputs]
        self.splits, self.stride = splits, sum(self.sizes)
        self.partial = torch.empty(splits * self.stride, dtype=torch.float32, device=device) if partial else None
        self.targets = self.outputs
        if partial:
            self.targets = [self.partial[sum(self.sizes[:i]) :] for i in range(len(shapes))]


# elements that one program of sum_splits adds up
SUM_BLOCK = 1024


@triton.jit
def sum_splits_kernel(
    tiles, p_partial, p_out0, p_out1, p_out2, p_out3, size0, size1, size2, size3, splits,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds BLOCK elements of all partial sums of one problem and writes them where they belong."""
    group, tile = find_group(tiles)
    p_partial = pick(p_partial, group)
    splits = number(pick(splits, group))
    end0 = pick(size0, group)
    end1 = end0 + pick(size1, group)
    end2 = end1 + pick(size2, group)
    end3 = end2 + pick(size3, group)
    o = tile * BLOCK + tl.arange(0, BLOCK)
    stride = end3.to(tl.int64)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        b_sum += tl.load(p_partial + split * stride + o, mask=o < end3, other=0.0)
    p_out0 = pick(p_out0, group)
    b_out = b_sum.to(p_out0.dtype.element_ty)
    tl.store(p_out0 + o, b_out, mask=o < end0)
    tl.store(pick(p_out1, group) + o - end0, b_out, mask=(o >= end0) & (o < end1))
    tl.store(pick(p_out2, group) + o - end1, b_out, mask=(o >= end1) & (o < end2))
    tl.store(pick(p_out3, group) + o - end2, b_out, mask=(o >= end2) & (o < end3))


def sum_splits(sums: list[Sums]) -> list[tuple[torch.Tensor, ...]]:
    """The outputs of every problem, at most four of each; all problems have partial sums or none has."""
    if sums[0].partial is not None:
        outputs = [(x.outputs + 4 * [x.outputs[0]])[:4] for x in sums]
        sizes = [(x.sizes + 4 * [0])[:4] for x in sums]
        launch(
            sum_splits_kernel,
            [triton.cdiv(x.stride, SUM_BLOCK) for x in sums],
            tuple(x.partial for x in sums),
            *zip(*outputs, strict=True),
            *zip(*sizes, strict=True),
            tuple(unspecialised(x.splits) for x in sums),
            BLOCK=SUM_BLOCK,
            num_warps=4,
        )
    return [tuple(x.outputs) for x in sums]
