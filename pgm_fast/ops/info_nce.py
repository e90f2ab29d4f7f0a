"""Symmetric contrastive loss between two views of the same samples.

    l_ij = <a_i, b_j> / temperature
    loss = 1/2 sum_i weight_i [(logsumexp_j l_ij - l_ii) + (logsumexp_j l_ji - l_ii)]

Source: InfoNCE, van den Oord et al., 2018; the symmetric form of CLIP, Radford et al., 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.native import register_host
from .checks import check_features, check_temperature, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward
from .row_weights import weights_or_mean

__all__ = ["info_nce"]


def info_nce(
    a: Tensor, b: Tensor, temperature: float = 0.1, normalize: bool = True, weight: Tensor | None = None
) -> Tensor:
    """Pulls ``a[i]`` and ``b[i]`` together and apart from the other rows' partners.

    Only two vectors of log-sum-exps are kept for backward, not the matrix of products.

    Args:
        a, b: ``[B, d]``, or ``[P, B, d]`` for P losses at once; floating point, of one dtype.
        temperature: divides the products, finite and > 0.
        normalize: scale rows to unit length first (rows of length below 1e-12 are divided by 1e-12).
        weight: ``[B]`` or ``[P, B]``, weight of each pair in the loss, not normalised here and not differentiated. A
            pair of weight 0 is no negative either. None means 1 / B, the mean.

    Returns:
        Scalar, or ``[P]``, in fp32 (fp64 for fp64); 0 for an empty batch. Products accumulate in that dtype, under
        autocast too.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ, a temperature that is not a
            Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("a", a)
    check_tensor("a", a, shape=(None,) * min(max(a.ndim, 2), 3))
    check_tensor("b", b, shape=tuple(a.shape), like=a)
    temperature = check_temperature(temperature)
    if a.dtype != b.dtype:
        raise TypeError(f"b must have the dtype of a ({a.dtype}), got {b.dtype}")
    if weight is not None:
        check_tensor("weight", weight, shape=tuple(a.shape[:-1]), like=a)
        weight = weight.detach()
    return _info_nce(a, b, weight, temperature, bool(normalize))[0]


def _operands(a: Tensor, b: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    return (F.normalize(a, dim=-1), F.normalize(b, dim=-1)) if normalize else (a, b)


def _logits(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    # products stay in the accumulation dtype also where the caller's autocast region would lower them
    with torch.autocast(a.device.type, enabled=False):
        return (a @ b.mT) / temperature


def _reference(
    a: Tensor, b: Tensor, weight: Tensor | None, temperature: float, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = _operands(a, b, normalize)
    if a.shape[-2] == 0:
        return a.new_zeros(a.shape[:-2]), a.new_zeros(a.shape[:-1]), a.new_zeros(a.shape[:-1])
    logits, w = _logits(a, b, temperature), weights_or_mean(weight, a)
    own = logits.diagonal(dim1=-2, dim2=-1)
    if weight is None:
        rows, columns = logits.logsumexp(-1), logits.logsumexp(-2)
        per_pair = rows + columns - 2 * own
    else:
        counted = w != 0
        rows = logits.masked_fill(~counted.unsqueeze(-2), -torch.inf).logsumexp(-1)
        columns = logits.masked_fill(~counted.unsqueeze(-1), -torch.inf).logsumexp(-2)
        per_pair = torch.where(counted, rows + columns - 2 * own, torch.zeros_like(rows))
    return 0.5 * (w * per_pair).sum(-1), rows, columns


def _reference_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    a_hat, b_hat = _operands(a, b, normalize)
    logits, w = _logits(a_hat, b_hat, temperature), weights_or_mean(weight, a_hat)
    counted = w != 0
    pair = counted.unsqueeze(-2) & counted.unsqueeze(-1)
    by_rows = (logits - rows.unsqueeze(-1)).exp() * w.unsqueeze(-1)
    by_columns = (logits - columns.unsqueeze(-2)).exp() * w.unsqueeze(-2)
    grad_logits = torch.where(pair, by_rows + by_columns, torch.zeros_like(logits)) - torch.diag_embed(2 * w)
    grad_logits = grad_logits * (0.5 * grad / temperature)[..., None, None]
    with torch.autocast(a.device.type, enabled=False):
        grad_a, grad_b = grad_logits @ b_hat, grad_logits.mT @ a_hat
    if normalize:
        grad_a, grad_b = _normalize_backward(grad_a, a), _normalize_backward(grad_b, b)
    return grad_a.to(a.dtype), grad_b.to(b.dtype)


def _normalize_backward(grad: Tensor, x: Tensor) -> Tensor:
    x = x.to(grad.dtype)
    norm = x.norm(dim=-1, keepdim=True)
    clamped = norm.clamp_min(1e-12)
    x_hat = x / clamped
    along = torch.where(norm > 1e-12, (grad * x_hat).sum(-1, keepdim=True), torch.zeros_like(norm))
    return (grad - x_hat * along) / clamped


def _fake(a, b, weight, temperature, normalize):
    dtype = accumulation_dtype(a.dtype)
    per_row = a.new_empty(a.shape[:-1], dtype=dtype)
    return a.new_empty(a.shape[:-2], dtype=dtype), per_row, torch.empty_like(per_row)


_info_nce = define(
    "info_nce(Tensor a, Tensor b, Tensor? weight, float temperature, bool normalize) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_info_nce_backward = define_backward(
    "info_nce_backward(Tensor grad, Tensor a, Tensor b, Tensor? weight, Tensor rows, Tensor columns, float "
    "temperature, bool normalize) "
    "-> (Tensor, Tensor)",
    _reference_backward,
    lambda grad, a, b, weight, rows, columns, temperature, normalize: (a.new_empty(a.shape), b.new_empty(b.shape)),
)

register_host("info_nce")
register_host("info_nce_backward")


def _setup_context(ctx, inputs, output) -> None:
    a, b, weight, ctx.temperature, ctx.normalize = inputs
    ctx.save_for_backward(a, b, weight, *output[1:])


def _backward(ctx, grad: Tensor, _grad_rows, _grad_columns):
    return *_info_nce_backward(grad, *ctx.saved_tensors, ctx.temperature, ctx.normalize), None, None, None


define_autograd(_info_nce, _setup_context, _backward)
