"""What torch's FLOP counter counts for an op: the products of its reference, run on tensors without data."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["offer_formulas", "offer_later"]

# Importing it brings triton in where there is one: whoever counts has done so.
_COUNTER = "torch.utils.flop_counter"
_waiting: dict[object, Callable] = {}  # op -> reference


def offer_later(op: object, reference: Callable) -> None:
    """The formula of ``torch.ops.pgm_fast.<name>`` is registered by the next :func:`offer_formulas` that can."""
    _waiting[op] = reference


def offer_formulas() -> None:
    """Registers what waits, once the counter has been imported; next to no work otherwise."""
    if _waiting and _COUNTER in sys.modules:
        for op, reference in _waiting.items():
            sys.modules[_COUNTER].register_flop_formula(op, get_raw=True)(_formula(reference))
        _waiting.clear()


def _formula(reference: Callable) -> Callable[..., int]:
    def count(*args, out_val=None) -> int:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(), sys.modules[_COUNTER].FlopCounterMode(display=False) as counter:
            reference(*tree_map_only(Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device), args))
        return counter.get_total_flops()

    return count
