"""Which ops ``torch.compile`` records as their plain formulas, because the code that it makes of them is faster than a
call of the op.

A row says: up to so many rows of so wide tensors the formula has been measured to be faster. Made by ``python
benchmarks/bench_compiled.py``, which times the compiled formula beside compiled code that calls the op, forward and
backward, and writes :data:`RESULTS` and the rows here from it. What has no row is a call: what was not measured, on
another device, in another dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from .tracing import surely

__all__ = ["ALWAYS_CALLS", "RESULTS", "ROUTES", "Route", "choose", "takes_formula"]

RESULTS = "benchmarks/results/cpu/compiled.json"

# Faster or not: torch 2.13's Inductor makes wrong code for CPUs of the derivative of a cumulative softmax whose logits
# it computes by itself. It makes the softmax anew for sixteen rows at once, in a buffer of one row ("local_buffer_data"
# of its C++), where the suffix sums of the incoming gradient are read from right to left in the same loop. The
# boundaries' gradients were 40 times too large, those of gates with a temperature that changes from call to call grew
# past 1e20. Whether a softmax is made anew is for Inductor to decide.
ALWAYS_CALLS = frozenset(
    {
        "partition",
        "partition_with_share",
        "partition_dual",
        "partition_dual_with_share",
        "partition_boundary",
        "partition_boundary_with_share",
        "partition_dual_share",
        "partitioned_linear",
        "grouped_partitioned_linear",
    }
)


class Route(NamedTuple):
    """A measured reason to leave an op to the compiler.

    Attributes:
        op: its name.
        device: type of the first tensor's device.
        dtype: of the first tensor.
        rows: sizes up to here, in rows of the first tensor (all dimensions but the last one).
        speed: of the formula, relative to the call, where it gained least.
    """

    op: str
    device: str
    dtype: torch.dtype
    rows: int
    speed: float


# begin measured
ROUTES: tuple[Route, ...] = (
    Route("certainty_weighted_logits", "cpu", torch.float32, 4096, 3.04),
    Route("duc_loss", "cpu", torch.float32, 64, 1.38),
    Route("info_nce", "cpu", torch.float32, 512, 1.3),
    Route("partition_share", "cpu", torch.float32, 64, 1.89),
    Route("reconstruction", "cpu", torch.float32, 64, 1.08),
)
# end measured

_choice: str | None = None


def choose(choice: str | None) -> None:
    """What is compiled from here on is ``"call"`` or ``"formula"`` for every op, whatever the table says; None gives
    the choice back to it. For measurements and tests; what was compiled under another choice is compiled again."""
    global _choice
    _choice = choice


def takes_formula(op: str, args: tuple) -> bool:
    """Whether a call of ``op`` that ``torch.compile`` records is to be its plain formula. A backend that was chosen by
    name is called."""
    if op.removesuffix("_backward") in ALWAYS_CALLS or _choice == "call" or not backends.is_automatic():
        return False
    if _choice == "formula":
        return True
    first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
    for route in ROUTES:
        if route.op == op and route.device == first.device.type and route.dtype == first.dtype:
            return surely(_rows(first) <= route.rows)
    return False


def _rows(x: Tensor) -> int:
    count = 1
    for size in x.shape[:-1]:
        count = count * size
    return count
