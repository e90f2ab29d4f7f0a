"""Boundary partition: the dual gate from two places per row instead of two logits per dimension.

    x_j = (j + 1/2) / d,  w = width,  f = floor
    z_uni,j = -(x_j - b_uni)^2 / 2 w^2,  z_paired,j = -(x_j - (1 - b_paired))^2 / 2 w^2
    e = 1 - cumsoftmax(z_uni),  r = cumsoftmax(z_paired)
    uni = (f + (1 - f) e) * h,  paired = (f + (1 - f) r) * h

e and r are those of ``partition_dual``: e closes where the uni-modal part ends, r opens where the paired part begins,
each over a stretch of the row as long as ``width`` says. This gate is this project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.native import register_native
from ..backends.triton import register_triton
from .checks import check_features, check_fraction, check_positive, check_tensor
from .dtypes import accumulation_dtype
from .gates import (
    Gate,
    cumsoftmax,
    cumsoftmax_backward,
    dual_grad_gates,
    dual_share,
    dual_share_backward,
    empty_share,
)
from .registration import define, define_autograd, define_backward

__all__ = ["partition_boundary"]


def partition_boundary(
    h: Tensor,
    b_uni: Tensor,
    b_paired: Tensor,
    width: float = 0.12,
    *,
    floor: float = 0.0,
    detach_gates: bool = False,
    return_share: bool = False,
) -> tuple[Tensor, ...]:
    """What the uni-modal and the paired learner read of ``h``: the first ``b_uni`` of a row and the last ``b_paired``.

    Args:
        h: ``[..., d]``, floating point.
        b_uni, b_paired: ``[..., 1]``, lengths of both parts as shares of a row. 0 and less closes a gate, 1 and more
            opens it, but for the softness of its edge. May have another dtype than ``h``.
        width: standard deviation of the bump of logits that makes an edge, as a share of a row; finite and > 0.
        floor: what each learner gets of ``h`` where its gate is shut; in [0, 1).
        detach_gates: the parts train ``h`` alone; the boundaries are trained by the share, and have no gradient
            without it.
        return_share: also return the mean gate mass, from the same pass.

    Returns:
        ``(uni, paired)``, each with the shape and dtype of ``h``. Gates are formed in fp32 (fp64 where the boundaries
        are). With ``return_share`` ``(uni, paired, share)``: what :func:`~pgm_fast.ops.partition_share` gives for both
        rows of logits, the mean of ``e (1 - r)``, ``r (1 - e)``, ``e r`` and ``(1 - e) (1 - r)`` per row ``[..., 4]``,
        whatever the floor; fp32 (fp64), differentiable in the boundaries, with a sum of 1.

    Under autocast the op runs in the dtypes it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or a width or floor that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, a width that is not finite and positive, a
            floor outside of [0, 1).
    """
    check_features("h", h)
    for name, b in (("b_uni", b_uni), ("b_paired", b_paired)):
        check_tensor(name, b, shape=(*h.shape[:-1], 1), like=h)
    arguments = h, b_uni, b_paired, check_positive("width", width), check_fraction("floor", floor), bool(detach_gates)
    return _partition_boundary_with_share(*arguments) if return_share else _partition_boundary(*arguments)


def _gates(h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float) -> tuple[Gate, Gate]:
    x = _places(h, b_uni)
    uni, paired = (
        cumsoftmax(-(x - center).square() / (2 * width**2), 1.0)
        for center in (b_uni.to(x.dtype), 1 - b_paired.to(x.dtype))
    )
    return uni, paired


def _places(h: Tensor, b: Tensor) -> Tensor:
    d = h.shape[-1]
    return (torch.arange(d, device=h.device, dtype=accumulation_dtype(b.dtype)) + 0.5) / d


def _opened(h: Tensor, uni: Gate, paired: Gate, floor: float) -> tuple[Tensor, Tensor]:
    of_uni, of_paired = (((floor + (1 - floor) * gate) * h).to(h.dtype) for gate in (uni.complement, paired.gate))
    return of_uni, of_paired


def _detached(gate: Gate, detach: bool) -> Gate:
    return Gate(*(x.detach() for x in gate)) if detach else gate


def _reference(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor]:
    uni, paired = _gates(h, b_uni, b_paired, width)
    return _opened(h, _detached(uni, detach_gates), _detached(paired, detach_gates), floor)


def _reference_with_share(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    uni, paired = _gates(h, b_uni, b_paired, width)
    parts = _opened(h, _detached(uni, detach_gates), _detached(paired, detach_gates), floor)
    return *parts, dual_share(uni, paired)


def _reference_backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    b_uni: Tensor,
    b_paired: Tensor,
    width: float,
    floor: float,
    detach_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    uni, paired = _gates(h, b_uni, b_paired, width)
    wide = h.to(accumulation_dtype(h.dtype))
    grad_uni, grad_paired = grad_uni.to(wide.dtype), grad_paired.to(wide.dtype)
    grad_h = (floor + (1 - floor) * uni.complement) * grad_uni + (floor + (1 - floor) * paired.gate) * grad_paired
    grad_gates = torch.zeros_like(wide), torch.zeros_like(wide)
    if not detach_gates:
        grad_gates = -(1 - floor) * wide * grad_uni, (1 - floor) * wide * grad_paired
    if grad_share is not None:
        by_share = dual_grad_gates(uni, paired, *dual_share_backward(grad_share, h.shape[-1]))
        grad_gates = [grad + more for grad, more in zip(grad_gates, by_share, strict=True)]
    by_uni, by_paired = (
        _grad_center(grad, gate.p, _places(h, b_uni), width)
        for grad, gate in zip(grad_gates, (uni, paired), strict=True)
    )
    return grad_h.to(h.dtype), by_uni.to(b_uni.dtype), -by_paired.to(b_paired.dtype)


def _grad_center(grad_gate: Tensor, p: Tensor, x: Tensor, width: float) -> Tensor:
    """Logits' gradients sum to 0 in a row, so that distances may count from anywhere: from the mean they lose least."""
    from_mean = x - (p * x).sum(-1, keepdim=True)
    return (cumsoftmax_backward(grad_gate, p, 1.0) * from_mean).sum(-1, keepdim=True) / width**2


def _fake(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape)


def _fake_with_share(
    h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float, floor: float, detach_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape), empty_share(b_uni, 4)


def _fake_backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    b_uni: Tensor,
    b_paired: Tensor,
    width: float,
    floor: float,
    detach_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), b_uni.new_empty(b_uni.shape), b_paired.new_empty(b_paired.shape)


_partition_boundary = define(
    "partition_boundary(Tensor h, Tensor b_uni, Tensor b_paired, float width, float floor, bool detach_gates) -> "
    "(Tensor, Tensor)",
    _reference,
    _fake,
)
_partition_boundary_with_share = define(
    "partition_boundary_with_share(Tensor h, Tensor b_uni, Tensor b_paired, float width, float floor, "
    "bool detach_gates) -> (Tensor, Tensor, Tensor)",
    _reference_with_share,
    _fake_with_share,
)
_partition_boundary_backward = define_backward(
    "partition_boundary_backward(Tensor grad_uni, Tensor grad_paired, Tensor? grad_share, Tensor h, Tensor b_uni, "
    "Tensor b_paired, float width, float floor, bool detach_gates) -> (Tensor, Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)

register_native("partition_boundary", _fake, gates=0)
register_native("partition_boundary_with_share", _fake_with_share, gates=0)
register_native("partition_boundary_backward", _fake_backward, gates=0)
register_triton("partition_boundary")
register_triton("partition_boundary_with_share", "partition_boundary", "forward_with_share")


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.width, ctx.floor, ctx.detach_gates = inputs
    ctx.save_for_backward(*tensors)


def _setup_context_with_share(ctx, inputs, output) -> None:
    _setup_context(ctx, inputs, output)
    # a share that nothing is trained by costs nothing
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_uni: Tensor | None, grad_paired: Tensor | None, grad_share: Tensor | None = None):
    h, b_uni, b_paired = ctx.saved_tensors
    grads = (torch.zeros_like(h) if grad is None else grad for grad in (grad_uni, grad_paired))
    found = _partition_boundary_backward(*grads, grad_share, h, b_uni, b_paired, ctx.width, ctx.floor, ctx.detach_gates)
    if ctx.detach_gates and grad_share is None:
        # boundaries that nothing trains have no gradient, not one of zeros: an optimizer leaves them alone
        found = found[0], None, None
    return *found, None, None, None


define_autograd(_partition_boundary, _setup_context, _backward)
define_autograd(_partition_boundary_with_share, _setup_context_with_share, _backward)
