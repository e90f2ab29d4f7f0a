"""Dropout whose masks are quick to draw for small batches on a CPU, where torch's cost more than a layer's product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn import functional as F

__all__ = ["Dropout"]

_LEVELS = 2**16  # a number is kept by 16 random bits: four for one draw of 64
# Draws are made one after the other, torch's masks on all threads.
_MOST = 2**17


class Dropout(nn.Dropout):
    """``nn.Dropout`` (Srivastava et al., JMLR 2014) with masks of its own for up to 131,072 numbers of float32 or
    float64 on a CPU: a number is kept with probability round(2^16 (1 - p)) / 2^16 and divided by that, so that the mean
    is exactly that of the input. They come from torch's generator, as everywhere. Elsewhere, under ``torch.compile``
    and inside of ``torch.func`` it is torch's own.

    64 rows of 128: 0.02 ms for a mask, torch's 0.07 (Intel Xeon, one thread).
    """

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return _leaf(self, x)
        keep = self.factors(x.shape, x) if _draws(x) and x.numel() <= _MOST else None
        return super().forward(x) if keep is None else x * keep

    def factors(self, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """What a tensor of this shape is multiplied with, in dtype and on the device of ``like``; None for 1."""
        if not self.training or self.p == 0:
            return None
        kept, count = round(_LEVELS * (1 - self.p)), math.prod(shape)
        if not 0 < kept < _LEVELS or count > _MOST or not _draws(like):
            return F.dropout(like.new_ones(shape), self.p)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        bits = words.view(torch.int16)[:count].view(shape)
        keep = torch.empty(shape, dtype=like.dtype, device="cpu")
        return torch.lt(bits, kept - _LEVELS // 2, out=keep).mul_(_LEVELS / kept)


def _leaf(dropout: Dropout, x: Any) -> Any:
    """A leaf of a symbolic trace, as torch's own layers are: it goes on asking whether the module is in training."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(dropout), (x,), {})


def _draws(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and peek_interpreter_stack() is None
    )
