"""When a fused op may stand for the modules whose parameters it reads, and what it needs to do the same as they."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from ..ops.tracing import surely

__all__ = ["are_plain", "are_small", "keep_factors", "serves_small_batches"]

# Up to here calls, and threads that wait for each other, cost more than the arithmetic, and the ops for small batches
# win (benchmarks/bench_mlp.py).
MOST_ROWS = 256
# Numbers of one layer's weights: every thread reads all of them for its few rows, which is slow where they are not in
# its cache.
MOST_WEIGHTS = 2**16
_DTYPES = (torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{kind}" for kind in _HOOKS)


def serves_small_batches(x: Tensor) -> bool:
    """Whether the ops for small batches are to take ``x`` ``[..., d]``: on the CPU, in 32 or 64 bits, of few rows.

    A compiler fuses plain layers as well as they do, and sees more.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and surely(math.prod(x.shape[:-1]) <= MOST_ROWS)
        and not torch.is_autocast_enabled("cpu")
    )


def are_small(*linears: nn.Linear) -> bool:
    return all(m.in_features * m.out_features <= MOST_WEIGHTS for m in linears)


def are_plain(x: Tensor, kinds: type[nn.Module] | Sequence[type[nn.Module]], *modules: nn.Module) -> bool:
    """Whether calling these on ``x`` does what their class does and nothing else, so that an op may read their
    parameters instead.

    Not so where anybody looks inside or has changed something: another class (LoRA, a parametrization, quantisation), a
    ``forward`` of the instance's own (accelerate, monkey patches), hooks of any sort on one or on all modules,
    parameters that are no plain strided tensors on the device of ``x`` (DTensor, tensor subclasses, offloaded weights).
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return not any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS) and all(
        type(module) in kinds
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and all(p is None or _is_plain_tensor(p, x) for p in module._parameters.values())
        for module in modules
    )


def _is_plain_tensor(parameter: Tensor, x: Tensor) -> bool:
    return (
        type(parameter) in (nn.Parameter, Tensor) and parameter.layout == torch.strided and parameter.device == x.device
    )


def keep_factors(dropout: nn.Dropout, x: Tensor, features: int) -> Tensor | None:
    """What ``dropout`` would multiply features ``[..., features]`` of the rows of ``x`` with, None for 1; drawn as it
    draws them, so that a seed gives the same."""
    if not dropout.training or dropout.p == 0:
        return None
    return F.dropout(x.new_ones((*x.shape[:-1], features)), dropout.p)
