"""What recorders of graphs ask of the ops: torch.compile, torch.export, torch.jit.trace."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["as_tensor", "in_forward_mode", "in_transform", "is_constant", "records_formula", "surely"]


def records_formula() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is to record ops as their plain formulas instead of as themselves.

    That is so for what may run where this package is not (``torch.export``, and ``torch.onnx.export`` by it), and
    where forward mode is on.
    """
    return in_forward_mode() or torch.compiler.is_exporting()


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is on."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0  # pyright: ignore[reportAttributeAccessIssue]


def in_forward_mode() -> bool:
    """Whether tensors may be dual numbers, ``torch.autograd.forward_ad.dual_level`` being entered."""
    return forward_ad._current_level >= 0


def is_constant(value: object) -> bool:
    """Whether ``value`` is no float that changes between the calls of the graph being recorded."""
    return not isinstance(value, (float, torch.SymFloat)) or surely(value < sys.float_info.max)


def as_tensor(value: float) -> Tensor:
    """``value`` as float64 ``[]`` on the CPU, recorded such that a graph need not be made anew when it changes."""
    return torch.ones((), dtype=torch.float64) * value


def surely(condition: bool | torch.SymBool) -> bool:
    """Whether ``condition``, a comparison of sizes, holds for everything that the graph being recorded is to serve.

    Outside of a recording it is what it says. Only where both answers are right: a choice of how to compute something.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    # the sizes of a trace are tensors, which a branch would make constants
    return not isinstance(condition, torch.Tensor) and bool(condition)
