"""Every tolerance of the test suite, with its derivation. Nothing else in tests/ states a bound of its own.

eps is the machine epsilon of a dtype: 2**-52 fp64, 2**-23 fp32, 2**-10 fp16, 2**-7 bf16.
"""

from __future__ import annotations

import torch

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}

# A scan of d terms that sum to 1 errs by at most d*eps/2 in the worst order; in practice sqrt(d)*eps. Twice the worst case for d <= 64.
SCAN_FP32 = 64 * EPS[torch.float32]

# uni + paired against h: two roundings of the gates' sum (SCAN_FP32 relative to |h|) plus one rounding per output in its own dtype.
SPLIT_SUM = {dtype: SCAN_FP32 + 2 * eps for dtype, eps in EPS.items()}

# fp64 analytic formulas against independently written ones: a few hundred roundings of numbers of order 1.
FP64 = 1e-12

# An op's error against fp64 is at most this many times the error of the same formula written in plain torch in the op's dtype,
# plus a floor of one rounding of the largest value (the plain form may be exact by luck).
TIMES_TORCH_ERROR = 2.0

# Compiled kernel against reference, both accumulating in fp32 (fp64): each is within a scan's error (64 eps/2 at d <= 70 gates) of the
# exact value, gradients sum up to 350 products of order 1 and are compared relative to their largest entry; 16-bit outputs add a
# rounding each way. In units of the output's eps:
NATIVE_TIMES_EPS = 128

# Sums of 2500 products of order 1 in fp64, in another order: at most one rounding of a partial sum (below 8) per term.
SUM_OF_2500_ROWS_FP64 = 2500 * 8 * EPS[torch.float64]
