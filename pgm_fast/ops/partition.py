"""Single-gate partition: every dimension of h is divided between uni-modal and paired-modal features.

    g = cumsoftmax(z / temperature),  paired = g * h,  uni = (1 - g) * h

The gate is ON-LSTM's (Shen et al., ICLR 2019). Its use as PgM's modal partitioner is this project's reconstruction.
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
    empty_share,
    expand_gate,
    single_share,
    single_share_backward,
)
from .registration import define, define_autograd, define_backward

__all__ = ["partition"]


def partition(h: Tensor, z: Tensor, temperature: float = 1.0, *, return_share: bool = False) -> tuple[Tensor, ...]:
    """Splits ``h`` into its uni-modal and its paired-modal part; the two add up to ``h``.

    Args:
        h: ``[..., d]``, floating point.
        z: gate logits ``[..., d]``, or ``[..., d/c]`` for one gate value per c neighbouring dimensions. May have
            another dtype than ``h``.
        temperature: softmax temperature, finite and > 0.
        return_share: also return what :func:`~pgm_fast.ops.partition_share` gives for ``z``, from the same pass.

    Returns:
        ``(uni, paired)``, each with the shape and dtype of ``h``. Gates are formed in fp32 (fp64 for fp64). With
        ``return_share`` ``(uni, paired, share)``: the mean gate mass of both per row ``[..., 2]``, fp32 (fp64 where
        ``z`` is), differentiable in ``z``, with a sum of 1.

    Under autocast the op runs in the dtypes it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or a temperature that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("h", h)
    check_gate("z", z, h)
    temperature = check_temperature(temperature)
    return _partition_with_share(h, z, temperature) if return_share else _partition(h, z, temperature)


def _split(h: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    d = h.shape[-1]
    return (expand_gate(gate.complement, d) * h).to(h.dtype), (expand_gate(gate.gate, d) * h).to(h.dtype)


def _reference(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return _split(h, cumsoftmax(z, temperature))


def _reference_with_share(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    gate = cumsoftmax(z, temperature)
    return *_split(h, gate), single_share(gate)


def _reference_backward(
    grad_uni: Tensor, grad_paired: Tensor, grad_share: Tensor | None, h: Tensor, z: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    gate, complement, p = cumsoftmax(z, temperature)
    d = h.shape[-1]
    grad_uni, grad_paired, wide = (x.to(accumulation_dtype(h.dtype)) for x in (grad_uni, grad_paired, h))
    grad_h = expand_gate(complement, d) * grad_uni + expand_gate(gate, d) * grad_paired
    grad_gate = chunk_sum((grad_paired - grad_uni) * wide, z.shape[-1])
    if grad_share is not None:
        grad_gate = grad_gate + single_share_backward(grad_share, z.shape[-1])
    grad_z = cumsoftmax_backward(grad_gate, p, temperature)
    return grad_h.to(h.dtype), grad_z.to(z.dtype)


def _fake(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape)


def _fake_with_share(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake(h, z, temperature), empty_share(z, 2)


def _fake_backward(
    grad_uni: Tensor, grad_paired: Tensor, grad_share: Tensor | None, h: Tensor, z: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), z.new_empty(z.shape)


_partition = define("partition(Tensor h, Tensor z, float temperature) -> (Tensor, Tensor)", _reference, _fake)
_partition_with_share = define(
    "partition_with_share(Tensor h, Tensor z, float temperature) -> (Tensor, Tensor, Tensor)",
    _reference_with_share,
    _fake_with_share,
)
_partition_backward = define_backward(
    "partition_backward(Tensor grad_uni, Tensor grad_paired, Tensor? grad_share, Tensor h, Tensor z, "
    "float temperature) -> (Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)

register_native("partition", _fake)
register_native("partition_with_share", _fake_with_share)
register_native("partition_backward", _fake_backward)
register_triton("partition")
register_triton("partition_with_share", "partition", "forward_with_share")


def _setup_context(ctx, inputs, output) -> None:
    h, z, ctx.temperature = inputs
    ctx.save_for_backward(h, z)


def _setup_context_with_share(ctx, inputs, output) -> None:
    _setup_context(ctx, inputs, output)
    # a share that nothing is trained by costs nothing
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_uni: Tensor | None, grad_paired: Tensor | None, grad_share: Tensor | None = None):
    h, z = ctx.saved_tensors
    grads = (torch.zeros_like(h) if grad is None else grad for grad in (grad_uni, grad_paired))
    grad_h, grad_z = _partition_backward(*grads, grad_share, h, z, ctx.temperature)
    return grad_h, grad_z, None


define_autograd(_partition, _setup_context, _backward)
define_autograd(_partition_with_share, _setup_context_with_share, _backward)
