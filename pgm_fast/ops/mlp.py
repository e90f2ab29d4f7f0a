"""Two linear layers with GELU and dropout between them, in one op.

    hidden = keep * gelu(W1 x + b1),  y = W2 hidden + b2

What every encoder of vectors and every head here is, for batches so small that calls cost more than the arithmetic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.native import register_host
from .activations import activate_backward
from .checks import autocast_dtype, check_features, check_same_dtype, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward

__all__ = ["mlp"]


def mlp(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, keep: Tensor | None = None) -> Tensor:
    """``keep * gelu(x @ w_in.T + b_in) @ w_out.T + b_out``.

    Args:
        x: ``[..., d]``, floating point; all tensors are of its dtype and on its device.
        w_in: ``[hidden, d]``; ``b_in``: ``[hidden]``.
        w_out: ``[n, hidden]``; ``b_out``: ``[n]``.
        keep: ``[..., hidden]``, factors of the hidden features, as dropout draws them (0, or 1 / (1 - p)); None for 1.
            Not differentiated.

    Returns:
        ``[..., n]``.

    Under autocast all tensors are cast to the autocast dtype, as for ``torch.nn.functional.linear``.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or dtypes that differ.
        ValueError: shapes that do not fit, or tensors on different devices.
    """
    check_features("x", x)
    d, leading = x.shape[-1], x.shape[:-1]
    check_tensor("w_in", w_in, shape=(None, d), like=x)
    hidden = w_in.shape[0]
    check_tensor("b_in", b_in, shape=(hidden,), like=x)
    check_tensor("w_out", w_out, shape=(None, hidden), like=x)
    check_tensor("b_out", b_out, shape=(w_out.shape[0],), like=x)
    if keep is not None:
        check_tensor("keep", keep, shape=(*leading, hidden), like=x)
        keep = keep.detach().reshape(-1, hidden)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, w_in, b_in, w_out, b_out = (y.to(dtype) for y in (x, w_in, b_in, w_out, b_out))
        keep = None if keep is None else keep.to(dtype)
    check_same_dtype("x", x, w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out, keep=keep)
    if len(leading) == 1:
        return _mlp(x, w_in, b_in, w_out, b_out, keep)[0]
    return _mlp(x.reshape(-1, d), w_in, b_in, w_out, b_out, keep)[0].reshape(*leading, w_out.shape[0])


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _reference(x, w_in, b_in, w_out, b_out, keep):
    pre = F.linear(x, w_in, b_in)
    return F.linear(_kept(F.gelu(pre), keep), w_out, b_out), pre


def _reference_backward(grad, x, pre, w_in, w_out, keep, x_grad):
    wide = accumulation_dtype(x.dtype)
    at_pre = activate_backward(_kept(grad @ w_out, keep).to(wide), pre.to(wide), "gelu").to(x.dtype)
    return (
        at_pre @ w_in if x_grad else x.new_empty(0),
        at_pre.t() @ x,
        at_pre.sum(0),
        grad.t() @ _kept(F.gelu(pre), keep),
        grad.sum(0),
    )


_mlp = define(
    "mlp(Tensor x, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, Tensor? keep) -> (Tensor, Tensor)",
    _reference,
    lambda x, w_in, b_in, w_out, b_out, keep: (
        x.new_empty(x.shape[0], w_out.shape[0]),
        x.new_empty(x.shape[0], w_in.shape[0]),
    ),
)
_mlp_backward = define_backward(
    "mlp_backward(Tensor grad, Tensor x, Tensor pre, Tensor w_in, Tensor w_out, Tensor? keep, bool x_grad) -> (Tensor, "
    "Tensor, Tensor, Tensor, Tensor)",
    _reference_backward,
    lambda grad, x, pre, w_in, w_out, keep, x_grad: (
        x.new_empty(x.shape if x_grad else 0),
        w_in.new_empty(w_in.shape),
        x.new_empty(w_in.shape[0]),
        w_out.new_empty(w_out.shape),
        x.new_empty(w_out.shape[0]),
    ),
)

register_host("mlp", dtypes=(torch.float32, torch.float64))
register_host("mlp_backward", dtypes=(torch.float32, torch.float64))


def _setup_context(ctx, inputs, output) -> None:
    x, w_in, _, w_out, _, keep = inputs
    ctx.save_for_backward(x, output[1], w_in, w_out, keep)


def _backward(ctx, grad: Tensor, _):
    x_grad = ctx.needs_input_grad[0]
    grad_x, *grads = _mlp_backward(grad, *ctx.saved_tensors, x_grad)
    return grad_x if x_grad else None, *grads, None


define_autograd(_mlp, _setup_context, _backward)
