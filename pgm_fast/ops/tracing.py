"""What recorders of graphs ask of the ops: torch.compile, torch.export, torch.jit.trace."""

from __future__ import annotations

import sys

import torch
from torch.autograd import forward_ad

__all__ = ["in_forward_mode", "records_formula", "surely"]


def records_formula(arguments: tuple) -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is to record an op as its plain formula instead of as itself.

    That is so for what may run where this package is not (``torch.export``, and ``torch.onnx.export`` by it), where
    forward mode is on, and for a number that changes from call to call: as an argument of an op it would be a constant,
    and each value another graph.
    """
    return in_forward_mode() or torch.compiler.is_exporting() or not all(map(_is_constant, arguments))


def in_forward_mode() -> bool:
    """Whether tensors may be dual numbers, ``torch.autograd.forward_ad.dual_level`` being entered."""
    return forward_ad._current_level >= 0


def _is_constant(value: object) -> bool:
    return not isinstance(value, float) or surely(value < sys.float_info.max)


def surely(condition: bool | torch.SymBool) -> bool:
    """Whether ``condition``, a comparison of sizes, holds for everything that the graph being recorded is to serve.

    Outside of a recording it is what it says. Only where both answers are right: a choice of how to compute something.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    # the sizes of a trace are tensors, which a branch would make constants
    return not isinstance(condition, torch.Tensor) and bool(condition)
