"""Counter-based noise in registers: the normals of ``pgm_fast/ops/philox.py``, whose words these are bit by bit.

Block 16 g + l of a row gives the columns 64 g + 16 w + l for w = 0 to 3. A tile of blocks is therefore four tiles of
columns, each of which lies in memory in runs of 16: no word is made twice and none changes threads.

Normals in fp32 are off from the exact ones by a few roundings: the logarithm is the device's, the square root an
approximation good to two units in the last place, sine and cosine polynomials (Cephes sinf and cosf, Moshier) of an
angle that never leaves [-pi/4, pi/4], which the library's own functions, made for any angle, pay for with a stack.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

__all__ = ["GROUP", "LANES", "columns", "normals"]

LANES = tl.constexpr(16)  # neighbouring columns that come from neighbouring blocks
GROUP = tl.constexpr(64)  # columns that these blocks give

HALF_PI = tl.constexpr(math.pi / 2)
UNIT = tl.constexpr(2.0**-23)


@triton.jit
def columns(o_block, word: tl.constexpr):
    """The column that each block's ``word`` belongs to."""
    return o_block // LANES * GROUP + word * LANES + o_block % LANES


@triton.jit
def normals(p_seed, o_row, o_block, DOUBLE: tl.constexpr):
    """Four tiles of standard normals of rows ``o_row`` (int64 ``[rows, 1]``) and blocks ``o_block`` (``[1, blocks]``),
    one per word."""
    seed = tl.load(p_seed)
    row_low, row_high = (o_row & 0xFFFFFFFF).to(tl.uint32), (o_row >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, o_block.to(tl.uint32), row_low, row_high, row_high * 0)
    first, second = _box_muller(a, b, DOUBLE)
    third, fourth = _box_muller(c, d, DOUBLE)
    return first, second, third, fourth


@triton.jit
def _box_muller(radial, angular, DOUBLE: tl.constexpr):
    """A word each for the radius and the angle: its quarter from the two highest bits, the place in it from 23 more."""
    if DOUBLE:
        uniform = ((radial >> 9).to(tl.float64) + 0.5) * UNIT
        place = ((angular >> 7) & 0x7FFFFF).to(tl.float64) * UNIT - 0.5
        angle = ((angular >> 30).to(tl.float64) + place) * HALF_PI
        sine, cosine = tl.sin(angle), tl.cos(angle)
    else:
        uniform = ((radial >> 9).to(tl.float32) + 0.5) * UNIT
        x = (((angular >> 7) & 0x7FFFFF).to(tl.float32) * UNIT - 0.5) * HALF_PI
        square = x * x
        s = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
        s = s * square * x + x
        c = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
        c = (c * square - 0.5) * square + 1.0
        # in odd quarters they change places; the sine is negative in the upper two, the cosine in the middle two
        quarter = angular >> 30
        odd = (quarter & 1) != 0
        sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
        sine = tl.where(quarter >= 2, -sine, sine)
        cosine = tl.where((quarter == 1) | (quarter == 2), -cosine, cosine)
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    return radius * cosine, radius * sine
