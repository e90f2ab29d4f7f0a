"""The uni-paired decoder: rebuilds a modality's representation from both learners' features and scores the result.

    decoded = u @ w_uni.T + p @ w_paired.T + bias,  loss = sum_i weight_i * mean_over_d (decoded_i - target_i)^2

This project's reconstruction of PgM's decoder.
"""

from __future__ import annotations

from torch import Tensor

from ..backends.native import register_host
from ..backends.triton import TRITON_PRODUCT_DTYPES, register_triton
from .checks import autocast_dtype, check_features, check_same_dtype, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward
from .row_weights import weights_or_mean

__all__ = ["reconstruction"]


def reconstruction(
    u: Tensor,
    p: Tensor,
    w_uni: Tensor,
    w_paired: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decodes both parts and measures the squared error, in one pass.

    Args:
        u: ``[..., n_u]``; ``p``: ``[..., n_p]``, same leading sizes, floating point.
        w_uni: ``[d, n_u]``; ``w_paired``: ``[d, n_p]``; ``bias``: ``[d]`` or None; in the dtype of ``u``.
        target: ``[..., d]``, any floating dtype. Receives a gradient if it requires one; detach it where it should not.
        row_weight: ``[...]``, weight of each row in the loss, not normalised here and not differentiated; None means 1
            / rows, the mean.

    Returns:
        ``(decoded[..., d], loss)``: decoded in the dtype of ``u``; loss a scalar in fp32 (fp64 for fp64), measured on
        decoded as it is returned, and 0 for an empty batch.

    Under autocast ``u``, ``p``, weights and bias are cast to the autocast dtype, as for ``torch.nn.functional.linear``.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or dtypes that differ.
        ValueError: shapes that do not fit, or tensors on different devices.
    """
    check_features("u", u)
    check_tensor("p", p, shape=(*u.shape[:-1], None), like=u)
    check_features("p", p)
    check_tensor("w_uni", w_uni, shape=(None, u.shape[-1]), like=u)
    d = w_uni.shape[0]
    check_tensor("w_paired", w_paired, shape=(d, p.shape[-1]), like=u)
    if bias is not None:
        check_tensor("bias", bias, shape=(d,), like=u)
    check_tensor("target", target, shape=(*u.shape[:-1], d), like=u)
    if row_weight is not None:
        check_tensor("row_weight", row_weight, shape=tuple(u.shape[:-1]), like=u)
        row_weight = row_weight.detach().flatten()
    dtype = autocast_dtype(u)
    if dtype is not None:
        u, p, w_uni, w_paired = (x.to(dtype) for x in (u, p, w_uni, w_paired))
        bias = None if bias is None else bias.to(dtype)
    check_same_dtype("u", u, p=p, w_uni=w_uni, w_paired=w_paired, bias=bias)
    leading = u.shape[:-1]
    if len(leading) != 1:
        u, p, target = (x.reshape(-1, x.shape[-1]) for x in (u, p, target))
    decoded, loss = _reconstruction(u, p, w_uni, w_paired, bias, target, row_weight)
    return decoded if len(leading) == 1 else decoded.reshape(*leading, d), loss


def reference(u, p, w_uni, w_paired, bias, target, row_weight):
    decoded = u @ w_uni.t() + p @ w_paired.t()
    if bias is not None:
        decoded = decoded + bias
    dtype = accumulation_dtype(u.dtype)
    residual = decoded.to(dtype) - target
    loss = (residual.square() * weights_or_mean(row_weight, decoded).unsqueeze(1)).sum() / decoded.shape[1]
    return decoded, loss.to(dtype)


def reference_backward(grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight, target_grad):
    dtype = accumulation_dtype(u.dtype)
    residual = decoded.to(dtype) - target
    by_loss = residual * (weights_or_mean(row_weight, decoded).unsqueeze(1) * (2.0 / decoded.shape[1])) * grad_loss
    grad = (grad_decoded.to(dtype) + by_loss).to(u.dtype)
    return (
        grad @ w_uni,
        grad @ w_paired,
        grad.t() @ u,
        grad.t() @ p,
        grad.sum(0),
        (-by_loss).to(target.dtype) if target_grad else target.new_empty(0),
    )


_reconstruction = define(
    "reconstruction(Tensor u, Tensor p, Tensor w_uni, Tensor w_paired, Tensor? bias, Tensor target, Tensor? "
    "row_weight) -> (Tensor, Tensor)",
    reference,
    lambda u, p, w_uni, w_paired, bias, target, row_weight: (
        u.new_empty((u.shape[0], w_uni.shape[0])),
        u.new_empty((), dtype=accumulation_dtype(u.dtype)),
    ),
)
_reconstruction_backward = define_backward(
    "reconstruction_backward(Tensor grad_decoded, Tensor grad_loss, Tensor u, Tensor p, Tensor w_uni, Tensor "
    "w_paired, Tensor decoded, "
    "Tensor target, Tensor? row_weight, bool target_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_backward,
    lambda grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight, target_grad: (
        *(x.new_empty(x.shape) for x in (u, p, w_uni, w_paired)),
        u.new_empty(w_uni.shape[0]),
        target.new_empty(target.shape if target_grad else 0),
    ),
)

register_triton("reconstruction", dtypes=TRITON_PRODUCT_DTYPES)


register_host("reconstruction")
register_host("reconstruction_backward")


def _setup_context(ctx, inputs, output) -> None:
    u, p, w_uni, w_paired, bias, target, row_weight = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(u, p, w_uni, w_paired, output[0], target, row_weight)


def _backward(ctx, grad_decoded: Tensor, grad_loss: Tensor):
    target_grad = ctx.needs_input_grad[5]
    grad_u, grad_p, grad_w_uni, grad_w_paired, grad_bias, grad_target = _reconstruction_backward(
        grad_decoded, grad_loss, *ctx.saved_tensors, target_grad
    )
    grad_target = grad_target if target_grad else None
    return grad_u, grad_p, grad_w_uni, grad_w_paired, grad_bias if ctx.has_bias else None, grad_target, None


define_autograd(_reconstruction, _setup_context, _backward)
