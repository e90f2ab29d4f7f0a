"""When modules are computed by one fused op, and what that op needs to do the same as they would."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.tracing import surely

__all__ = ["are_plain", "are_small", "keep_factors", "serves_small_batches"]

# Up to here calls, and threads that wait for each other, cost more than the arithmetic, and the ops for small batches
# win (benchmarks/bench_uni_paired_block.py, bench_mlp.py).
MOST_ROWS = 256
# Numbers of one layer's weights: every thread reads all of them for its few rows, which is slow where they are not in
# its cache.
MOST_WEIGHTS = 2**16
_DTYPES = (torch.float32, torch.float64)


def serves_small_batches(x: Tensor) -> bool:
    """Whether the ops for small batches are to take ``x`` ``[..., d]``: on the CPU, in 32 or 64 bits, of few rows."""
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and surely(math.prod(x.shape[:-1]) <= MOST_ROWS)
        and not torch.is_autocast_enabled("cpu")
    )


def are_small(*linears: nn.Linear) -> bool:
    return all(m.in_features * m.out_features <= MOST_WEIGHTS for m in linears)


def are_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether calling these does what their class does and nothing else: nobody put a hook on one, or another module in
    its place."""
    return all(
        type(m) is kind and not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        for m in modules
    )


def keep_factors(dropout: nn.Dropout, x: Tensor, features: int) -> Tensor | None:
    """What ``dropout`` would multiply features ``[..., features]`` of the rows of ``x`` with, None for 1; drawn as it
    draws them, so that a seed gives the same."""
    if not dropout.training or dropout.p == 0:
        return None
    return F.dropout(x.new_ones((*x.shape[:-1], features)), dropout.p)
