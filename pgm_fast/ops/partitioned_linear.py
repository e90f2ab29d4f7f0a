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
from .activations import ACTIVATIONS, activate, activate_backward
from .checks import autocast_dtype, check_features, check_gate, check_temperature, check_tensor
from .gates import accumulation_dtype, chunk_sum, cumsoftmax, cumsoftmax_backward, expand_gate
from .native import NATIVE_DTYPES, native_kernel, refuse_mixed_precision
from .registration import define, define_autograd, define_backward
from .triton import TRITON_PRODUCT_DTYPES, register_triton

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
    named = {"h": h, "w_uni": w_uni, "b_uni": b_uni, "w_paired": w_paired, "b_paired": b_paired}
    dtype = autocast_dtype(h)
    if dtype is not None:
        named = {name: None if x is None else x.to(dtype) for name, x in named.items()}
    for name, x in named.items():
        if x is not None and x.dtype != named["h"].dtype:
            raise TypeError(f"{name} must have the dtype of h ({named['h'].dtype}), got {x.dtype}")
    h, w_uni, b_uni, w_paired, b_paired = named.values()
    return h.reshape(-1, d), z.reshape(-1, z.shape[-1]), w_uni, b_uni, w_paired, b_paired


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


def _block_rows(rows: int, dtype: torch.dtype) -> int:
    """Rows that the native path partitions at a time.

    1024 rows bound its memory and still feed the matrix products: of 256 to 4096 rows, fewer than 512 cost up to a
    third of the speed (2 cores, d = 512). 16-bit gradients of weights would round after every block: one block.
    """
    return max(1, min(rows, 1024) if dtype in (torch.float32, torch.float64) else rows)


def _load_native():
    split = native_kernel("partition")

    def forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
        """Partitions a block of rows and multiplies it while it is in cache; the partitioned operands never exist
        whole."""
        rows, d = h.shape
        h, z = h.contiguous(), z.contiguous()
        x_uni, x_paired = h.new_empty(rows, w_uni.shape[0]), h.new_empty(rows, w_paired.shape[0])
        size = _block_rows(rows, h.dtype)
        uni, paired = h.new_empty(size, d), h.new_empty(size, d)
        for begin in range(0, rows, size):
            part = slice(begin, min(begin + size, rows))
            n = part.stop - begin
            split((h[part], z[part]), temperature, (uni[:n], paired[:n]))
            _linear(uni[:n], w_uni, b_uni, x_uni[part])
            _linear(paired[:n], w_paired, b_paired, x_paired[part])
        if keeps_pre_activation(activation):
            return activate(x_uni, activation), activate(x_paired, activation), x_uni, x_paired
        if activation == "relu":
            x_uni.relu_()
            x_paired.relu_()
        return x_uni, x_paired, h.new_empty(0), h.new_empty(0)

    return forward


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _load_native_backward():
    split, split_backward = native_kernel("partition"), native_kernel("partition_backward")

    def backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
        rows, d = h.shape
        h, z = h.contiguous(), z.contiguous()
        grad_u, grad_p = (
            _at_pre_activation(grad_u, saved_u, activation),
            _at_pre_activation(grad_p, saved_p, activation),
        )
        grad_h, grad_z = torch.empty_like(h), torch.empty_like(z)
        grad_w_uni, grad_w_paired = torch.zeros_like(w_uni), torch.zeros_like(w_paired)
        size = _block_rows(rows, h.dtype)
        uni, paired = h.new_empty(size, d), h.new_empty(size, d)
        for begin in range(0, rows, size):
            part = slice(begin, min(begin + size, rows))
            n = part.stop - begin
            split((h[part], z[part]), temperature, (uni[:n], paired[:n]))
            grad_w_uni.addmm_(grad_u[part].t(), uni[:n])
            grad_w_paired.addmm_(grad_p[part].t(), paired[:n])
            # the operands have served: their memory takes the gradients that arrive at them
            torch.mm(grad_u[part], w_uni, out=uni[:n])
            torch.mm(grad_p[part], w_paired, out=paired[:n])
            split_backward((uni[:n], paired[:n], h[part], z[part]), temperature, (grad_h[part], grad_z[part]))
        return grad_h, grad_z, grad_w_uni, grad_u.sum(0), grad_w_paired, grad_p.sum(0)

    return backward


_NATIVE = {"devices": ("cpu",), "dtypes": tuple(NATIVE_DTYPES), "refuse": refuse_mixed_precision}
backends.register("partitioned_linear", "native", _load_native, **_NATIVE)
backends.register("partitioned_linear_backward", "native", _load_native_backward, **_NATIVE)
register_triton("partitioned_linear", dtypes=TRITON_PRODUCT_DTYPES)


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
