"""Where things are in the tables of ``csrc/common/multi_rate.h``.

A module of its own: of every global of a kernel's own module Triton asks before each launch whether it has changed, at
half a microsecond each.
"""

from __future__ import annotations

import zlib

import triton.language as tl

# words of a TensorRow
TENSOR_WORDS = tl.constexpr(11)
PARAM = tl.constexpr(0)
EXP_AVG = tl.constexpr(1)
EXP_AVG_SQ = tl.constexpr(2)
MAX_EXP_AVG_SQ = tl.constexpr(3)
MASTER = tl.constexpr(4)
STEP = tl.constexpr(5)
WAITED = tl.constexpr(6)
RATE_ADDRESS = tl.constexpr(7)
NUMEL = tl.constexpr(8)
GROUP = tl.constexpr(9)
FLAGS = tl.constexpr(10)
NESTEROV = tl.constexpr(2)
RATE_IS_DOUBLE = tl.constexpr(4)

# numbers of a GroupRow
GROUP_NUMBERS = tl.constexpr(13)
RATE = tl.constexpr(0)
WEIGHT_DECAY = tl.constexpr(1)
ONE_MINUS_BETA1 = tl.constexpr(2)
BETA2 = tl.constexpr(3)
ONE_MINUS_BETA2 = tl.constexpr(4)
LOG_BETA1 = tl.constexpr(5)
LOG_BETA2 = tl.constexpr(6)
EPS = tl.constexpr(7)
MOMENTUM = tl.constexpr(8)
ONE_MINUS_DAMPENING = tl.constexpr(9)
SIGN = tl.constexpr(10)
MAX_NORM = tl.constexpr(11)
UPDATE_EVERY = tl.constexpr(12)

# rows that a program reads at a time
ROWS = tl.constexpr(256)

# Triton keeps compiled kernels on disk, and tells them apart by their source, not by what the names above stand for. So
# every kernel takes this number of theirs as a constant.
LAYOUT = zlib.crc32(repr([(name, x.value) for name, x in vars().items() if isinstance(x, tl.constexpr)]).encode())
