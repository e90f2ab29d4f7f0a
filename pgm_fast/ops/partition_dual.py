"""Dual-gate partition: what only one modality teaches, what only modalities together teach, what both do, and a rest
that nobody takes.

    e = 1 - cumsoftmax(z_uni / temperature),  r = cumsoftmax(z_paired / temperature)
    uni_only = (e - e*r) * h,  paired_only = (r - e*r) * h,  shared = e*r * h

Source: the partition filter of PFN (Yan et al., EMNLP 2021). Its use as PgM's modal partitioner is this project's
reconstruction.
"""

from __future__ import annotations

from torch import Tensor

from .checks import check_features, check_gate, check_temperature
from .gates import accumulation_dtype, chunk_sum, cumsoftmax, cumsoftmax_backward, expand_gate
from .native import register_native
from .registration import define, define_autograd, define_backward
from .triton import register_triton

__all__ = ["partition_dual"]


def partition_dual(
    h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits ``h`` by two gates that open from opposite ends.

    The uni learner's input is ``uni_only + shared``, the paired learner's ``paired_only + shared``.

    Args:
        h: ``[..., d]``, floating point.
        z_uni, z_paired: gate logits ``[..., d]`` or ``[..., d/c]``, both of one width. May have another dtype than
            ``h``.
        temperature: softmax temperature of both gates, finite and > 0.

    Returns:
        ``(uni_only, paired_only, shared)``, each with the shape and dtype of ``h``. Gates are formed in fp32 (fp64 for
        fp64).

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
    return _partition_dual(h, z_uni, z_paired, temperature)


def _reference(h: Tensor, z_uni: Tensor, z_paired: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    d = h.shape[-1]
    not_e, e, _ = cumsoftmax(z_uni, temperature)
    r, not_r, _ = cumsoftmax(z_paired, temperature)
    gates = (e * not_r, r * not_e, e * r)
    return tuple((expand_gate(gate, d) * h).to(h.dtype) for gate in gates)


def _reference_backward(
    grad_uni: Tensor,
    grad_paired: Tensor,
    grad_shared: Tensor,
    h: Tensor,
    z_uni: Tensor,
    z_paired: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    d, gates = h.shape[-1], z_uni.shape[-1]
    not_e, e, p_uni = cumsoftmax(z_uni, temperature)
    r, not_r, p_paired = cumsoftmax(z_paired, temperature)
    grad_uni, grad_paired, grad_shared, wide = (
        x.to(accumulation_dtype(h.dtype)) for x in (grad_uni, grad_paired, grad_shared, h)
    )
    grad_h = (
        expand_gate(e * not_r, d) * grad_uni
        + expand_gate(r * not_e, d) * grad_paired
        + expand_gate(e * r, d) * grad_shared
    )
    by_uni, by_paired, by_shared = (chunk_sum(g * wide, gates) for g in (grad_uni, grad_paired, grad_shared))
    grad_e = by_uni * not_r + (by_shared - by_paired) * r
    grad_r = by_paired * not_e + (by_shared - by_uni) * e
    return (
        grad_h.to(h.dtype),
        cumsoftmax_backward(-grad_e, p_uni, temperature).to(z_uni.dtype),
        cumsoftmax_backward(grad_r, p_paired, temperature).to(z_paired.dtype),
    )


_partition_dual = define(
    "partition_dual(Tensor h, Tensor z_uni, Tensor z_paired, float temperature) -> (Tensor, Tensor, Tensor)",
    _reference,
    lambda h, z_uni, z_paired, temperature: tuple(h.new_empty(h.shape) for _ in range(3)),
)
_partition_dual_backward = define_backward(
    "partition_dual_backward(Tensor grad_uni, Tensor grad_paired, Tensor grad_shared, Tensor h, Tensor z_uni, "
    "Tensor z_paired, "
    "float temperature) -> (Tensor, Tensor, Tensor)",
    _reference_backward,
    lambda grad_uni, grad_paired, grad_shared, h, z_uni, z_paired, temperature: tuple(
        x.new_empty(x.shape) for x in (h, z_uni, z_paired)
    ),
)

register_native("partition_dual", outputs=(0, 0, 0))
register_native("partition_dual_backward", outputs=(3, 4, 5))
register_triton("partition_dual")


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_uni: Tensor, grad_paired: Tensor, grad_shared: Tensor):
    return *_partition_dual_backward(grad_uni, grad_paired, grad_shared, *ctx.saved_tensors, ctx.temperature), None


define_autograd(_partition_dual, _setup_context, _backward)
