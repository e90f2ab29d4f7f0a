"""How much of a representation each partition takes: the mean gate mass per row.

Sums over dimensions of the gates of ``partition`` and ``partition_dual``, divided by their number. At random
initialisation the expectation is 1/2, 1/2 for the single gate and 1/3, 1/3, 1/6, 1/6 for the dual one. Where a
representation is split as well, those ops give the same from the pass that they make anyway (``return_share``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import backends
from ..backends import host
from ..backends.native import NATIVE_DTYPES, refuse_mixed_precision
from .checks import check_features, check_gate, check_temperature
from .dtypes import accumulation_dtype
from .gates import (
    cumsoftmax,
    cumsoftmax_backward,
    dual_grad_gates,
    dual_share,
    dual_share_backward,
    empty_share,
    softmax,
    softmax_backward,
)
from .registration import define, define_autograd, define_backward

__all__ = ["partition_share"]


def partition_share(z: Tensor, z_paired: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Mean gate mass per partition and row; differentiable, so that a target share can be trained for.

    Args:
        z: gate logits ``[..., g]`` of the single gate, or of the uni gate when ``z_paired`` is given.
        z_paired: gate logits of the paired gate, of the shape of ``z``.
        temperature: softmax temperature, finite and > 0.

    Returns:
        fp32 (fp64 for fp64) ``[..., 2]``: uni, paired; with ``z_paired`` ``[..., 4]``: uni-only, paired-only, shared,
        unused. The last dimension sums to 1.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or a temperature that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("z", z)
    temperature = check_temperature(temperature)
    if z_paired is None:
        return _partition_share(z, temperature)
    check_gate("z_paired", z_paired, z, "z")
    if z_paired.shape != z.shape:
        raise ValueError(f"z_paired must have the shape of z {list(z.shape)}, got {list(z_paired.shape)}")
    return _partition_dual_share(z, z_paired, temperature)


def _reference(z: Tensor, temperature: float) -> Tensor:
    """Without the gates: of d of them p_j is in the last d - j, and in the complements of the first j."""
    p = softmax(z.to(accumulation_dtype(z.dtype)), temperature)
    before = _gates_before(p)
    return torch.stack([(p * before).sum(-1), (p * (1 - before)).sum(-1)], dim=-1)


def _gates_before(p: Tensor) -> Tensor:
    """``j / d``."""
    return torch.arange(p.shape[-1], dtype=p.dtype, device=p.device) / p.shape[-1]


def _reference_backward(grad: Tensor, z: Tensor, temperature: float) -> Tensor:
    p = softmax(z.to(accumulation_dtype(z.dtype)), temperature)
    by_p = (grad[..., :1] - grad[..., 1:]) * _gates_before(p)
    return softmax_backward(by_p, p, temperature).to(z.dtype)


def _dual_reference(z_uni: Tensor, z_paired: Tensor, temperature: float) -> Tensor:
    return dual_share(cumsoftmax(z_uni, temperature), cumsoftmax(z_paired, temperature))


def _dual_reference_backward(
    grad: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    uni, paired = cumsoftmax(z_uni, temperature), cumsoftmax(z_paired, temperature)
    grad_uni, grad_paired = dual_grad_gates(uni, paired, *dual_share_backward(grad, z_uni.shape[-1]))
    return (
        cumsoftmax_backward(grad_uni, uni.p, temperature).to(z_uni.dtype),
        cumsoftmax_backward(grad_paired, paired.p, temperature).to(z_paired.dtype),
    )


_partition_share = define(
    "partition_share(Tensor z, float temperature) -> Tensor",
    _reference,
    lambda z, temperature: empty_share(z, 2),
)
_partition_share_backward = define_backward(
    "partition_share_backward(Tensor grad, Tensor z, float temperature) -> Tensor",
    _reference_backward,
    lambda grad, z, temperature: z.new_empty(z.shape),
)
_partition_dual_share = define(
    "partition_dual_share(Tensor z_uni, Tensor z_paired, float temperature) -> Tensor",
    _dual_reference,
    lambda z_uni, z_paired, temperature: empty_share(z_uni, 4),
)
_partition_dual_share_backward = define_backward(
    "partition_dual_share_backward(Tensor grad, Tensor z_uni, Tensor z_paired, float temperature) -> (Tensor, Tensor)",
    _dual_reference_backward,
    lambda grad, z_uni, z_paired, temperature: (z_uni.new_empty(z_uni.shape), z_paired.new_empty(z_paired.shape)),
)


def _from_partition(*z: Tensor, temperature: float) -> Tensor:
    """The share that the partition of nothing gives: its kernels make it from the same gates."""
    op = torch.ops.pgm_fast.partition_with_share if len(z) == 1 else torch.ops.pgm_fast.partition_dual_with_share
    return op(torch.zeros_like(z[0]), *z, temperature)[-1]


def _from_partition_backward(grad: Tensor, *z: Tensor, temperature: float) -> tuple[Tensor, ...]:
    op = torch.ops.pgm_fast.partition_backward if len(z) == 1 else torch.ops.pgm_fast.partition_dual_backward
    nothing = torch.zeros_like(z[0])
    parts = (nothing,) * (1 + len(z))  # a gradient of each part; of two gates they make three
    return op(*parts, grad, nothing, *z, temperature)[1:]


def _load_native(function: Callable) -> Callable:
    host.load()
    return function


def _register_native(op: str, function: Callable) -> None:
    # in the CPU's kernels alone: on other devices this has not been measured beside the reference
    backends.register(
        op,
        "native",
        partial(_load_native, function),
        devices=("cpu",),
        dtypes=tuple(NATIVE_DTYPES),
        refuse=refuse_mixed_precision,
    )


_register_native("partition_share", lambda z, temperature: _from_partition(z, temperature=temperature))
_register_native(
    "partition_share_backward",
    lambda grad, z, temperature: _from_partition_backward(grad, z, temperature=temperature)[0],
)
_register_native(
    "partition_dual_share",
    lambda z_uni, z_paired, temperature: _from_partition(z_uni, z_paired, temperature=temperature),
)
_register_native(
    "partition_dual_share_backward",
    lambda grad, z_uni, z_paired, temperature: _from_partition_backward(grad, z_uni, z_paired, temperature=temperature),
)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    return _partition_share_backward(grad, *ctx.saved_tensors, ctx.temperature), None


def _dual_backward(ctx, grad: Tensor):
    return *_partition_dual_share_backward(grad, *ctx.saved_tensors, ctx.temperature), None


define_autograd(_partition_share, _setup_context, _backward)
define_autograd(_partition_dual_share, _setup_context, _dual_backward)
