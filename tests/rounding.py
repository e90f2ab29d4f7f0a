"""How far rounding may take an op from the exact result: as far as it takes plain torch in the same dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tolerances import EPS, TIMES_TORCH_ERROR
from torch import Tensor

# what the op, the plain formula in the op's dtype and the plain formula in fp64 make of one draw of a case
Draw = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


def assert_errs_like_torch(draws: Iterable[Draw], dtype: torch.dtype) -> None:
    """In root mean square over all entries of all draws, result by result.

    The largest error is a matter of luck, and so is any error of one draw where few roundings decide it: of a scalar,
    of a row that is repeated, of a sum whose terms cancel. A draw that takes plain torch past the range of fp16 says
    nothing of how exact it is and is left out; the op has to stay within that range.
    """
    for position, result in enumerate(zip(*(zip(*draw, strict=True) for draw in draws), strict=True)):
        assert all(got.isfinite().all() for got, _, _ in result), f"result {position} is not finite"
        judged = [[x.double().flatten() for x in triple] for triple in result if triple[1].isfinite().all()]
        if not judged:
            continue
        got, by_torch, exact = map(torch.cat, zip(*judged, strict=True))
        allowed = TIMES_TORCH_ERROR * _rms(by_torch - exact) + EPS[dtype] * _rms(exact)
        error = _rms(got - exact)
        assert error <= allowed, f"result {position} errs by {error:.2e}, {allowed:.2e} is allowed"


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt() if x.numel() else x.new_zeros(())
