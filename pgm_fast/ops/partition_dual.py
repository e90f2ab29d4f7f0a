"""Dual-gate partition: what only one modality teaches, what only modalities together teach, what both do, and a rest
that nobody takes.

    e = 1 - cumsoftmax(z_uni / temperature),  r = cumsoftmax(z_paired / temperature)
    uni_only = (e - e*r) * h,  paired_only = (r - e*r) * h,  shared = e*r * h

Source: the partition filter of PFN (Yan et al., EMNLP 2021). Its use as PgM's modal partitioner is this project's
reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.native import register_native
from ..backends.triton import register_triton
from .checks import check_features, check_gate, check_temperature
from .dtypes import accumulation_dtype
from .gates import (
    Gate,
    chunk_sum,
    cumsoftmax,
    cumsoftmax_backward,
    dual_grad_gates,
    dual_masses,
    dual_share,
    dual_share_backward,
    empty_share,
    expand_gate,
)
from .registration import define, define_autograd, define_backward

__all__ = ["partition_dual"]


def partition_dual(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float = 1.0, *, return_share: bool = False
) -> tuple[Tensor, ...]:
    """Splits ``h`` by two gates that open from opposite ends.

    The uni learner's input is ``uni_only + shared``, the paired learner's ``paired_only + shared``.

    Args:
        h: ``[..., d]``, floating point.
        z_uni, z_paired: gate logits ``[..., d]`` or ``[..., d/c]``, both of one width. May have another dtype than
            ``h``.
        temperature: softmax temperature of both gates, finite and > 0.
        return_share: also return what :func:`~pgm_fast.ops.partition_share` gives for the logits, from the same pass.

    Returns:
        ``(uni_only, paired_only, shared)``, each with the shape and dtype of ``h``. Gates are formed in fp32 (fp64 for
        fp64). With ``return_share`` ``(uni_only, paired_only, shared, share)``: the mean gate mass of the three and of
        what nobody takes per row ``[..., 4]``, fp32 (fp64 where the logits are), differentiable in them, with a sum of
        1.

    Under autocast the op runs in the dtypes it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or a temperature that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("h", h)
    check_gate("z_uni", z_uni, h)
    check_gate("z_paired", z_paired, h)
    if z_uni.shape != z_paired.shape:
        raise ValueError(f"z_paired must have the shape of z_uni {list(z_uni.shape)}, got {list(z_paired.shape)}")
    temperature = check_temperature(temperature)
    if return_share:
        return _partition_dual_with_share(h, z_uni, z_paired, temperature)
    return _partition_dual(h, z_uni, z_paired, temperature)


def _split(h: Tensor, uni: Gate, paired: Gate) -> tuple[Tensor, Tensor, Tensor]:
    uni_only, paired_only, shared = (
        (expand_gate(mass, h.shape[-1]) * h).to(h.dtype) for mass in dual_masses(uni, paired)
    )
    return uni_only, paired_only, shared


def _reference(h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return _split(h, cumsoftmax(z_uni, temperature), cumsoftmax(z_paired, temperature))


def _reference_with_share(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    uni, paired = cumsoftmax(z_uni, temperature), cumsoftmax(z_paired, temperature)
    return *_split(h, uni, paired), dual_share(uni, paired)


def _reference_backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_shared: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    z_uni: Tensor,
    z_paired: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    d, gates = h.shape[-1], z_uni.shape[-1]
    uni, paired = cumsoftmax(z_uni, temperature), cumsoftmax(z_paired, temperature)
    wide = h.to(accumulation_dtype(h.dtype))
    grads = [grad.to(wide.dtype) for grad in (grad_uni, grad_paired, grad_shared)]
    of_uni, of_paired, of_shared = (
        expand_gate(mass, d) * grad for mass, grad in zip(dual_masses(uni, paired), grads, strict=True)
    )
    by_mass = [chunk_sum(grad * wide, gates) for grad in grads]
    if grad_share is not None:
        by_mass = [by + more for by, more in zip(by_mass, dual_share_backward(grad_share, gates), strict=True)]
    grad_gate_uni, grad_gate_paired = dual_grad_gates(uni, paired, *by_mass)
    return (
        (of_uni + of_paired + of_shared).to(h.dtype),
        cumsoftmax_backward(grad_gate_uni, uni.p, temperature).to(z_uni.dtype),
        cumsoftmax_backward(grad_gate_paired, paired.p, temperature).to(z_paired.dtype),
    )


def _fake(h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape), h.new_empty(h.shape)


def _fake_with_share(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_fake(h, z_uni, z_paired, temperature), empty_share(z_uni, 4)


def _fake_backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_shared: Tensor,
    grad_share: Tensor | None,
    h: Tensor,
    z_uni: Tensor,
    z_paired: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), z_uni.new_empty(z_uni.shape), z_paired.new_empty(z_paired.shape)


_partition_dual = define(
    "partition_dual(Tensor h, Tensor z_uni, Tensor z_paired, float temperature) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_partition_dual_with_share = define(
    "partition_dual_with_share(Tensor h, Tensor z_uni, Tensor z_paired, float temperature) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _reference_with_share,
    _fake_with_share,
)
_partition_dual_backward = define_backward(
    "partition_dual_backward(Tensor grad_uni, Tensor grad_paired, Tensor grad_shared, Tensor? grad_share, Tensor h, "
    "Tensor z_uni, Tensor z_paired, float temperature) -> (Tensor, Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)

register_native("partition_dual", _fake)
register_native("partition_dual_with_share", _fake_with_share)
register_native("partition_dual_backward", _fake_backward)
register_triton("partition_dual")
register_triton("partition_dual_with_share", "partition_dual", "forward_with_share")


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors)


def _setup_context_with_share(ctx, inputs, output) -> None:
    _setup_context(ctx, inputs, output)
    # a share that nothing is trained by costs nothing
    ctx.set_materialize_grads(False)


def _backward(
    ctx,
    grad_uni: Tensor | None,
    grad_paired: Tensor | None,
    grad_shared: Tensor | None,
    grad_share: Tensor | None = None,
):
    h, z_uni, z_paired = ctx.saved_tensors
    grads = (torch.zeros_like(h) if grad is None else grad for grad in (grad_uni, grad_paired, grad_shared))
    return *_partition_dual_backward(*grads, grad_share, h, z_uni, z_paired, ctx.temperature), None


define_autograd(_partition_dual, _setup_context, _backward)
define_autograd(_partition_dual_with_share, _setup_context_with_share, _backward)
