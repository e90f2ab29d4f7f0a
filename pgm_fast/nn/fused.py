"""When a fused op may stand for the modules whose parameters it reads, and what it needs to do the same as they."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops.tracing import surely
from .dropout import Dropout

__all__ = ["are_plain", "are_small", "keep_factors", "serves_small_batches"]

# Up to here calls, and threads that wait for each other, cost more than the arithmetic, and the ops for small batches
# win (benchmarks/bench_mlp.py).
MOST_ROWS = 256
# Numbers of one layer's weights: every thread reads all of them for its few rows, which is slow where they are not in
# its cache.
MOST_WEIGHTS = 2**16
_DTYPES = (torch.float32, torch.float64)
_HOMES = ("torch.nn.modules.", Dropout.__module__)  # of the classes whose forward passes are known here


def serves_small_batches(x: Tensor) -> bool:
    """Whether the ops for small batches are to take ``x`` ``[..., d]``: on the CPU, in 32 or 64 bits, of few rows.

    A compiler fuses plain layers as well as they do, and sees more.
    """
    return (
        _is_plain_tensor(x)
        and x.device.type == "cpu"
        and x.dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and surely(math.prod(x.shape[:-1]) <= MOST_ROWS)
        and not torch.is_autocast_enabled("cpu")
    )


def are_small(*linears: nn.Linear) -> bool:
    return all(m.in_features * m.out_features <= MOST_WEIGHTS for m in linears)


def are_plain(x: Tensor, kinds: type[nn.Module] | tuple[type[nn.Module], ...], *modules: nn.Module) -> bool:
    """Whether calling these on ``x`` does what torch's ``forward`` of their class does and nothing else, so that an op
    may read their parameters instead.

    Not so where anybody looks inside or has changed something: another class (LoRA, a parametrization, quantisation), a
    ``forward`` of the instance's or of somebody else's (accelerate, monkey patches), hooks of any sort on one or on all
    modules, a layer that is compiled by itself, inputs or parameters that are no plain strided tensors on one device
    (symbolic tracing, DTensor, tensor subclasses, offloaded weights).
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not _is_plain_tensor(x) or (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return False
    device = x.device
    return all([type(module) in kinds and _is_untouched(module, device) for module in modules])


def _is_untouched(module: nn.Module, device: torch.device) -> bool:
    own, forward = vars(module), type(module).forward
    # an instance has these of its own where somebody has taken the place of its class's, or of its parameters
    if "forward" in own or "weight" in own or "bias" in own or module._compiled_call_impl is not None:
        return False
    # as it was written, and in no wrapper that goes by its name
    if not forward.__module__.startswith(_HOMES) or hasattr(forward, "__wrapped__"):
        return False
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    return all([p is None or (_is_plain_tensor(p) and p.device == device) for p in own["_parameters"].values()])


def _is_plain_tensor(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided


def keep_factors(dropout: Dropout, x: Tensor, features: int) -> Tensor | None:
    """What ``dropout`` would multiply features ``[..., features]`` of the rows of ``x`` with, None for 1; drawn as it
    draws them, so that a seed gives the same."""
    return dropout.factors((*x.shape[:-1], features), x)
