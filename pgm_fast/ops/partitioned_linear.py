"""The split projections: the first layers of the uni and the paired learner, applied to the two parts of h.

    g = cumsoftmax(z / temperature)
    u = activation(((1 - g) * h) @ w_uni.T + b_uni),  p = activation((g * h) @ w_paired.T + b_paired)

This project's fusion of :func:`~pgm_fast.ops.partition` with the two matrix products that follow it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..backends.native import register_host
from ..backends.triton import TRITON_PRODUCT_DTYPES, register_triton
from .activations import ACTIVATIONS, activate, activate_backward
from .checks import (
    autocast_dtype,
    check_features,
    check_gate,
    check_same_dtype,
    check_temperature,
    check_tensor,
)
from .dtypes import accumulation_dtype
from .gates import chunk_sum, cumsoftmax, cumsoftmax_backward, expand_gate
from .registration import define, define_autograd, define_backward

__all__ = ["partitioned_linear"]


def partitioned_linear(
    h: Tensor,
    z: Tensor,
    w_uni: Tensor,
    b_uni: Tensor | None,
    w_paired: Tensor,
    b_paired: Tensor | None,
    activation: str | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Partitions ``h`` and projects each part with its own weights.

    Args:
        h: ``[..., d]``, floating point.
        z: gate logits ``[..., d]`` or ``[..., d/c]``; may have another dtype than ``h``.
        w_uni: ``[n_u, d]``; ``b_uni``: ``[n_u]`` or None.
        w_paired: ``[n_p, d]``; ``b_paired``: ``[n_p]`` or None. Weights and biases have the dtype of ``h``.
        activation: None, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``.
        temperature: softmax temperature of the gate, finite and > 0.

    Returns:
        ``(u[..., n_u], p[..., n_p])`` in the dtype of ``h``. Gates are formed in fp32 (fp64 for fp64).

    Under autocast ``h``, weights and biases are cast to the autocast dtype, as for ``torch.nn.functional.linear``;
    ``z`` is left as it is.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ, a temperature that is not a
            Python number.
        ValueError: shapes that do not fit, tensors on different devices, an unknown activation, a wrong temperature.
    """
    prepared = prepare(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature)
    u, p, _, _ = _partitioned_linear(*prepared, activation, float(temperature))
    leading = h.shape[:-1]
    if len(leading) == 1:
        return u, p
    return u.reshape(*leading, u.shape[-1]), p.reshape(*leading, p.shape[-1])


def prepare(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature) -> tuple[Tensor | None, ...]:
    """Checks the arguments of :func:`partitioned_linear` and returns its tensors as the op takes them: cast where
    autocast says so, h and z ``[rows, ...]``."""
    check_features("h", h)
    check_gate("z", z, h)
    d = h.shape[-1]
    check_tensor("w_uni", w_uni, shape=(None, d), like=h)
    check_tensor("w_paired", w_paired, shape=(None, d), like=h)
    if b_uni is not None:
        check_tensor("b_uni", b_uni, shape=(w_uni.shape[0],), like=h)
    if b_paired is not None:
        check_tensor("b_paired", b_paired, shape=(w_paired.shape[0],), like=h)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    check_temperature(temperature)
    dtype = autocast_dtype(h)
    if dtype is not None:
        h, w_uni, w_paired = (x.to(dtype) for x in (h, w_uni, w_paired))
        b_uni, b_paired = (None if b is None else b.to(dtype) for b in (b_uni, b_paired))
    check_same_dtype("h", h, w_uni=w_uni, b_uni=b_uni, w_paired=w_paired, b_paired=b_paired)
    if h.dim() != 2:
        h, z = h.reshape(-1, d), z.reshape(-1, z.shape[-1])
    return h, z, w_uni, b_uni, w_paired, b_paired


def keeps_pre_activation(activation: str | None) -> bool:
    # relu's mask can be read off its output
    return activation in ("gelu", "silu")


def reference(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    gate, complement, _ = cumsoftmax(z, temperature)
    d = h.shape[-1]
    x_uni = F.linear((expand_gate(complement, d) * h).to(h.dtype), w_uni, b_uni)
    x_paired = F.linear((expand_gate(gate, d) * h).to(h.dtype), w_paired, b_paired)
    u, p = activate(x_uni, activation), activate(x_paired, activation)
    if keeps_pre_activation(activation):
        return u, p, x_uni, x_paired
    return u, p, h.new_empty(0), h.new_empty(0)


def _at_pre_activation(grad: Tensor, saved: Tensor, activation: str | None) -> Tensor:
    if activation is None:
        return grad
    wide = accumulation_dtype(grad.dtype)
    return activate_backward(grad.to(wide), saved.to(wide), activation).to(grad.dtype)


def reference_backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    gate, complement, p = cumsoftmax(z, temperature)
    d, wide = h.shape[-1], accumulation_dtype(h.dtype)
    gate, complement = expand_gate(gate, d), expand_gate(complement, d)
    grad_u, grad_p = _at_pre_activation(grad_u, saved_u, activation), _at_pre_activation(grad_p, saved_p, activation)
    grad_uni, grad_paired = grad_u @ w_uni, grad_p @ w_paired
    grad_h = complement * grad_uni + gate * grad_paired
    grad_z = cumsoftmax_backward(chunk_sum((grad_paired - grad_uni).to(wide) * h, z.shape[-1]), p, temperature)
    return (
        grad_h.to(h.dtype),
        grad_z.to(z.dtype),
        grad_u.t() @ (complement * h).to(h.dtype),
        grad_u.sum(0),
        grad_p.t() @ (gate * h).to(h.dtype),
        grad_p.sum(0),
    )


def fake(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    u, p = h.new_empty((h.shape[0], w_uni.shape[0])), h.new_empty((h.shape[0], w_paired.shape[0]))
    if keeps_pre_activation(activation):
        return u, p, torch.empty_like(u), torch.empty_like(p)
    return u, p, h.new_empty(0), h.new_empty(0)


def fake_backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    grads = [x.new_empty(x.shape) for x in (h, z, w_uni)]
    return *grads, h.new_empty(w_uni.shape[0]), w_paired.new_empty(w_paired.shape), h.new_empty(w_paired.shape[0])


_partitioned_linear = define(
    "partitioned_linear(Tensor h, Tensor z, Tensor w_uni, Tensor? b_uni, Tensor w_paired, Tensor? b_paired, "
    "str? activation, "
    "float temperature) -> (Tensor, Tensor, Tensor, Tensor)",
    reference,
    fake,
)
_partitioned_linear_backward = define_backward(
    "partitioned_linear_backward(Tensor grad_u, Tensor grad_p, Tensor saved_u, Tensor saved_p, Tensor h, "
    "Tensor z, Tensor w_uni, "
    "Tensor w_paired, str? activation, float temperature) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_backward,
    fake_backward,
)


def by_parts(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    """As :func:`reference`: both parts written once by the kernels of ``partition``, and multiplied by torch's own
    products."""
    uni, paired = backends.run("partition", (h, z, temperature))
    x_uni, x_paired = F.linear(uni, w_uni, b_uni), F.linear(paired, w_paired, b_paired)
    if activation is None:
        return x_uni, x_paired, h.new_empty(0), h.new_empty(0)
    u, p = activate(x_uni, activation), activate(x_paired, activation)
    if keeps_pre_activation(activation):
        return u, p, x_uni, x_paired
    return u, p, h.new_empty(0), h.new_empty(0)


def by_parts_backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    """As :func:`reference_backward`; the parts are made again, nothing of them is kept."""
    grad_u, grad_p = _at_pre_activation(grad_u, saved_u, activation), _at_pre_activation(grad_p, saved_p, activation)
    uni, paired = backends.run("partition", (h, z, temperature))
    grad_w_uni, grad_w_paired = grad_u.t() @ uni, grad_p.t() @ paired
    del uni, paired
    grads = grad_u @ w_uni, grad_p @ w_paired
    grad_h, grad_z = backends.run("partition_backward", (*grads, None, h, z, temperature))
    return grad_h, grad_z, grad_w_uni, grad_u.sum(0), grad_w_paired, grad_p.sum(0)


# One pass writes the parts and another reads them, 8 bytes an element of h in 16 bits. A kernel that forms them as it
# multiplies saves that and keeps the matrix units busy half the time: by bytes over bandwidth and operations over peak
# the two are even where both widths together are about 960, as long as there are rows enough to fill a device.
# Estimated for an H100, measured on none.
FUSED_BELOW_WIDTH, FUSED_BELOW_ROWS = 1024, 4096


def _fused_is_faster(h: Tensor, w_uni: Tensor, w_paired: Tensor) -> bool:
    return len(h) < FUSED_BELOW_ROWS or len(w_uni) + len(w_paired) < FUSED_BELOW_WIDTH


register_host("partitioned_linear")
register_host("partitioned_linear_backward")
register_triton("partitioned_linear", dtypes=TRITON_PRODUCT_DTYPES)
backends.register(
    "partitioned_linear",
    "native",
    lambda: by_parts,
    devices=("cuda",),
    outdone=lambda h, z, w_uni, b_uni, w_paired, *rest: _fused_is_faster(h, w_uni, w_paired),
)
backends.register(
    "partitioned_linear_backward",
    "native",
    lambda: by_parts_backward,
    devices=("cuda",),
    outdone=lambda grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, *rest: _fused_is_faster(h, w_uni, w_paired),
)


def _setup_context(ctx, inputs, output) -> None:
    h, z, w_uni, b_uni, w_paired, b_paired, ctx.activation, ctx.temperature = inputs
    u, p, x_uni, x_paired = output
    ctx.has_bias = b_uni is not None, b_paired is not None
    saved = (u, p) if ctx.activation == "relu" else (x_uni, x_paired)
    ctx.save_for_backward(*saved, h, z, w_uni, w_paired)


def _backward(ctx, grad_u: Tensor, grad_p: Tensor, _grad_x_uni, _grad_x_paired):
    grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired = _partitioned_linear_backward(
        grad_u, grad_p, *ctx.saved_tensors, ctx.activation, ctx.temperature
    )
    has_uni, has_paired = ctx.has_bias
    grad_b_uni = grad_b_uni if has_uni else None
    grad_b_paired = grad_b_paired if has_paired else None
    return grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired, None, None


define_autograd(_partitioned_linear, _setup_context, _backward)
