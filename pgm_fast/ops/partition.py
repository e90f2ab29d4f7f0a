"""Single-gate partition: every dimension of h is divided between uni-modal and paired-modal features.

    g = cumsoftmax(z / temperature),  paired = g * h,  uni = (1 - g) * h

The gate is ON-LSTM's (Shen et al., ICLR 2019). Its use as PgM's modal partitioner is this project's reconstruction.
"""

from __future__ import annotations

from torch import Tensor

from .checks import check_features, check_gate, check_temperature
from .gates import accumulation_dtype, chunk_sum, cumsoftmax, cumsoftmax_backward, expand_gate
from .native import register_native
from .registration import define, define_autograd, define_backward
from .triton import register_triton

__all__ = ["partition"]


def partition(h: Tensor, z: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Splits ``h`` into its uni-modal and its paired-modal part; the two add up to ``h``.

    Args:
        h: ``[..., d]``, floating point.
        z: gate logits ``[..., d]``, or ``[..., d/c]`` for one gate value per c neighbouring dimensions. May have
            another dtype than ``h``.
        temperature: softmax temperature, finite and > 0.

    Returns:
        ``(uni, paired)``, each with the shape and dtype of ``h``. Gates are formed in fp32 (fp64 for fp64).

    Under autocast the op runs in the dtypes it is given.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or a temperature that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("h", h)
    check_gate("z", z, h)
    temperature = check_temperature(temperature)
    return _partition(h, z, temperature)


def _reference(h: Tensor, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    gate, complement, _ = cumsoftmax(z, temperature)
    d = h.shape[-1]
    return (expand_gate(complement, d) * h).to(h.dtype), (expand_gate(gate, d) * h).to(h.dtype)


def _reference_backward(
    grad_uni: Tensor, grad_paired: Tensor, h: Tensor, z: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    gate, complement, p = cumsoftmax(z, temperature)
    d = h.shape[-1]
    grad_uni, grad_paired, wide = (x.to(accumulation_dtype(h.dtype)) for x in (grad_uni, grad_paired, h))
    grad_h = expand_gate(complement, d) * grad_uni + expand_gate(gate, d) * grad_paired
    grad_gate = chunk_sum((grad_paired - grad_uni) * wide, z.shape[-1])
    grad_z = cumsoftmax_backward(grad_gate, p, temperature)
    return grad_h.to(h.dtype), grad_z.to(z.dtype)


_partition = define(
    "partition(Tensor h, Tensor z, float temperature) -> (Tensor, Tensor)",
    _reference,
    lambda h, z, temperature: (h.new_empty(h.shape), h.new_empty(h.shape)),
)
_partition_backward = define_backward(
    "partition_backward(Tensor grad_uni, Tensor grad_paired, Tensor h, Tensor z, float temperature) -> "
    "(Tensor, Tensor)",
    _reference_backward,
    lambda grad_uni, grad_paired, h, z, temperature: (h.new_empty(h.shape), z.new_empty(z.shape)),
)

register_native("partition", outputs=(0, 0))
register_native("partition_backward", outputs=(2, 3))
register_triton("partition")


def _setup_context(ctx, inputs, output) -> None:
    h, z, ctx.temperature = inputs
    ctx.save_for_backward(h, z)


def _backward(ctx, grad_uni: Tensor, grad_paired: Tensor):
    grad_h, grad_z = _partition_backward(grad_uni, grad_paired, *ctx.saved_tensors, ctx.temperature)
    return grad_h, grad_z, None


define_autograd(_partition, _setup_context, _backward)
