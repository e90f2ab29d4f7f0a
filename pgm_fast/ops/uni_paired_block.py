"""One modality's way through PgM in one op: gate, both learners, decoder.

    z = W_g h + b_g,  (uni, paired) = the parts of h that the gates of z / temperature let through
    f_u = layer_norm(W2_u (keep_u * gelu(W1_u uni + b1_u)) + b2_u),  f_p the same of paired
    decoded = W_du f_u + W_dp f_p + b_d,  loss = sum_i weight_i * mean_over_d (decoded_i - h_i)^2

The fusion of ``nn.ModalPartitioner``, ``nn.UniPairedLearners`` and ``nn.UniPairedDecoder``, for batches so small that
calls, and threads that wait for each other, cost more than the arithmetic. The formulas are this project's
reconstruction of PgM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activations
from .checks import autocast_dtype, check_features, check_same_dtype, check_temperature, check_tensor
from .gates import accumulation_dtype, chunk_sum, cumsoftmax, cumsoftmax_backward, expand_gate
from .native import register_host
from .reconstruction import reference as decode
from .reconstruction import reference_backward as decode_backward
from .registration import define, define_autograd, define_backward

__all__ = ["LearnerParameters", "uni_paired_block"]


class LearnerParameters(NamedTuple):
    """One learner's two layers ``[hidden, d]`` and ``[features, hidden]`` with their biases, the layer norm behind them
    and what the decoder multiplies its features with, ``[d, features]``."""

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    decoder_weight: Tensor


def uni_paired_block(
    h: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    uni: LearnerParameters,
    paired: LearnerParameters,
    decoder_bias: Tensor,
    *,
    dual: bool = False,
    temperature: float = 1.0,
    keep_uni: Tensor | None = None,
    keep_paired: Tensor | None = None,
    row_weight: Tensor | None = None,
    through: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of both learners, the decoded representation and its reconstruction loss.

    Args:
        h: ``[..., d]``, floating point; all tensors are of its dtype and on its device.
        gate_weight: ``[gates, d]``, ``gate_bias``: ``[gates]``; gates divide d. For the dual gate twice as many, those
            of the uni-modal gate first.
        uni, paired: see :class:`LearnerParameters`; d fits, hidden widths and features are free.
        decoder_bias: ``[d]``.
        dual: two gates, as in :func:`~pgm_fast.ops.partition_dual`: the learners read what their own lets through.
        temperature: of the gates' softmax, finite and > 0.
        keep_uni, keep_paired: ``[..., hidden]``, factors of the hidden features, as dropout draws them (0, or 1 / (1 -
            p)); None for 1. Not differentiated.
        row_weight: ``[...]``, weight of each row in the loss, not differentiated; None means 1 / rows, the mean.
        through: the loss also moves its target, ``h``.
        eps: of the layer norms.

    Returns:
        ``(f_u[..., features], f_p[..., features], decoded[..., d], loss)``; the loss a scalar in fp32 (fp64 for fp64).

    Under autocast all tensors but ``row_weight`` are cast to the autocast dtype, as for
    ``torch.nn.functional.linear``; norms and the loss are formed in fp32.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ, a temperature that is not a
            Python number.
        ValueError: shapes that do not fit, tensors on different devices, a temperature that is not finite and positive.
    """
    check_features("h", h)
    d, leading = h.shape[-1], h.shape[:-1]
    dtype = autocast_dtype(h)
    if dtype is not None:
        h, gate_weight, gate_bias, decoder_bias, keep_uni, keep_paired = (
            x.to(dtype) if isinstance(x, Tensor) else x
            for x in (h, gate_weight, gate_bias, decoder_bias, keep_uni, keep_paired)
        )
        uni, paired = (LearnerParameters(*(x.to(dtype) for x in learner)) for learner in (uni, paired))
    _check_gates(gate_weight, gate_bias, h, dual)
    for name, learner in (("uni", uni), ("paired", paired)):
        check_tensor(f"{name}.in_weight", learner.in_weight, shape=(None, d), like=h)
        hidden = learner.in_weight.shape[0]
        check_tensor(f"{name}.out_weight", learner.out_weight, shape=(None, hidden), like=h)
        features = learner.out_weight.shape[0]
        shapes = [(hidden, d), (hidden,), (features, hidden), (features,), (features,), (features,), (d, features)]
        _check_all(name, learner, shapes, h)
    check_tensor("decoder_bias", decoder_bias, shape=(d,), like=h)
    check_same_dtype("h", h, gate_weight=gate_weight, gate_bias=gate_bias, decoder_bias=decoder_bias)
    temperature = check_temperature(temperature)
    keeps = []
    for name, keep, learner in (("keep_uni", keep_uni, uni), ("keep_paired", keep_paired, paired)):
        if keep is not None:
            check_tensor(name, keep, shape=(*leading, learner.in_weight.shape[0]), like=h)
            check_same_dtype("h", h, **{name: keep})
            keep = keep.detach().reshape(-1, keep.shape[-1])
        keeps.append(keep)
    if row_weight is not None:
        check_tensor("row_weight", row_weight, shape=tuple(leading), like=h)
        row_weight = row_weight.detach().flatten()
    parameters = [gate_weight, gate_bias, *uni, *paired, decoder_bias]
    rows = h if len(leading) == 1 else h.reshape(-1, d)
    f_u, f_p, decoded, loss, _ = _block(rows, parameters, *keeps, row_weight, dual, through, temperature, float(eps))
    if len(leading) != 1:
        f_u, f_p, decoded = (x.reshape(*leading, x.shape[-1]) for x in (f_u, f_p, decoded))
    return f_u, f_p, decoded, loss


def _check_gates(weight: Tensor, bias: Tensor, h: Tensor, dual: bool) -> None:
    d = h.shape[-1]
    check_tensor("gate_weight", weight, shape=(None, d), like=h)
    check_tensor("gate_bias", bias, shape=(weight.shape[0],), like=h)
    gates = weight.shape[0] // (1 + dual)
    if gates == 0 or weight.shape[0] % (1 + dual) or d % gates:
        raise ValueError(
            f"gate_weight must have as many rows as gates, whose number divides the width of h ({d})"
            f"{', twice' if dual else ''}; got {weight.shape[0]}"
        )


def _check_all(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], h: Tensor) -> None:
    """Checks shapes, dtype and device. All at once first: for a small batch checks take as long as arithmetic."""
    dtype, device = h.dtype, h.device
    if all(map(torch.is_tensor, tensors)) and [x.shape for x in tensors] == shapes:
        if all([x.dtype == dtype and x.device == device for x in tensors]):
            return
    for field, x, shape in zip(LearnerParameters._fields, tensors, shapes, strict=True):
        check_tensor(f"{name}.{field}", x, shape=shape, like=h)
        check_same_dtype("h", h, **{f"{name}.{field}": x})


def _learners(parameters: list[Tensor]) -> tuple[LearnerParameters, LearnerParameters]:
    size = len(LearnerParameters._fields)
    return LearnerParameters(*parameters[2 : 2 + size]), LearnerParameters(*parameters[2 + size : -1])


def _open(logits: list[Tensor], temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """What of h the uni-modal and the paired learner get, per gate, and the softmaxes: one, or one for each."""
    gates = [cumsoftmax(z, temperature) for z in logits]
    return [gates[0].complement, gates[-1].gate], [gate.p for gate in gates]


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _normed(y: Tensor, statistics: Tensor) -> Tensor:
    mean, rstd = statistics.unsqueeze(-1)
    return (y.to(statistics.dtype) - mean) * rstd


def _reference(h, parameters, keep_uni, keep_paired, row_weight, dual, through, temperature, eps):
    gate_weight, gate_bias, *_, decoder_bias = parameters
    d, wide = h.shape[1], accumulation_dtype(h.dtype)
    pairs = zip(gate_weight.chunk(1 + dual), gate_bias.chunk(1 + dual), strict=True)
    logits = [F.linear(h, weight, bias) for weight, bias in pairs]
    gates, _ = _open(logits, temperature)
    features, saved = [], []
    for gate, learner, keep in zip(gates, _learners(parameters), (keep_uni, keep_paired), strict=True):
        x = F.linear((expand_gate(gate, d) * h).to(h.dtype), learner.in_weight, learner.in_bias)
        y = F.linear(_kept(F.gelu(x), keep), learner.out_weight, learner.out_bias)
        mean = y.to(wide).mean(-1)
        statistics = torch.stack([mean, ((y - mean.unsqueeze(-1)).square().mean(-1) + eps).rsqrt()])
        features.append((_normed(y, statistics) * learner.norm_weight + learner.norm_bias).to(h.dtype))
        saved += [x, y, statistics]
    weights = [learner.decoder_weight for learner in _learners(parameters)]
    target = h if through else h.detach()
    return *features, *decode(*features, *weights, decoder_bias, target, row_weight), logits + saved


def _reference_backward(
    grad_uni,
    grad_paired,
    grad_decoded,
    grad_loss,
    h,
    parameters,
    keep_uni,
    keep_paired,
    row_weight,
    uni,
    paired,
    decoded,
    saved,
    dual,
    through,
    temperature,
):
    d, wide, logits = h.shape[1], accumulation_dtype(h.dtype), saved[: 1 + dual]
    learners, gate_weights = _learners(parameters), parameters[0].chunk(1 + dual)
    weights = [learner.decoder_weight for learner in learners]
    *by_decoder, grad_decoder_uni, grad_decoder_paired, grad_decoder_bias, grad_target = decode_backward(
        grad_decoded, grad_loss, uni, paired, *weights, decoded, h, row_weight, through
    )
    gates, p = _open(logits, temperature)
    grad_h = grad_target.to(wide) if through else torch.zeros(h.shape, dtype=wide, device=h.device)
    by_gates, grads = [], []
    for side, learner, gate, keep, given, from_decoder, grad_decoder in zip(
        (0, 1),
        learners,
        gates,
        (keep_uni, keep_paired),
        (grad_uni, grad_paired),
        by_decoder,
        (grad_decoder_uni, grad_decoder_paired),
        strict=True,
    ):
        x, y, statistics = saved[1 + dual + 3 * side : 4 + dual + 3 * side]
        by_features, n = (given + from_decoder).to(wide), _normed(y, statistics)
        by_n = by_features * learner.norm_weight
        by_y = by_n - by_n.mean(-1, keepdim=True) - n * (by_n * n).mean(-1, keepdim=True)
        by_y = (by_y * statistics[1].unsqueeze(-1)).to(h.dtype)
        by_hidden = _kept(by_y @ learner.out_weight, keep).to(wide)
        by_x = activations.activate_backward(by_hidden, x.to(wide), "gelu").to(h.dtype)
        by_part = (by_x @ learner.in_weight).to(wide)
        grad_h = grad_h + expand_gate(gate, d) * by_part
        by_gates.append(chunk_sum(by_part * h, gate.shape[-1]))
        grads += [
            by_x.t() @ (expand_gate(gate, d) * h).to(h.dtype),
            by_x.sum(0),
            by_y.t() @ _kept(F.gelu(x), keep),
            by_y.sum(0),
            (by_features * n).sum(0).to(h.dtype),
            by_features.sum(0).to(h.dtype),
            grad_decoder,
        ]
    # the uni-modal learner gets what its gate withholds
    by_gates = [-by_gates[0], by_gates[1]] if dual else [by_gates[1] - by_gates[0]]
    by_logits = [cumsoftmax_backward(by, q, temperature).to(h.dtype) for by, q in zip(by_gates, p, strict=True)]
    for by, weight in zip(by_logits, gate_weights, strict=True):
        grad_h = grad_h + by @ weight
    grad_gate = [torch.cat([by.t() @ h for by in by_logits]), torch.cat([by.sum(0) for by in by_logits])]
    return grad_h.to(h.dtype), [*grad_gate, *grads, grad_decoder_bias]


def _fake(h, parameters, keep_uni, keep_paired, row_weight, dual, through, temperature, eps):
    rows, wide, gates = h.shape[0], accumulation_dtype(h.dtype), parameters[0].shape[0] // (1 + dual)
    features, saved = [], [h.new_empty(rows, gates) for _ in range(1 + dual)]
    for learner in _learners(parameters):
        x, y = (h.new_empty(rows, weight.shape[0]) for weight in (learner.in_weight, learner.out_weight))
        features.append(torch.empty_like(y))
        saved += [x, y, h.new_empty((2, rows), dtype=wide)]
    return *features, h.new_empty(h.shape), h.new_empty((), dtype=wide), saved


def _fake_backward(grad_uni, grad_paired, grad_decoded, grad_loss, h, parameters, *_):
    return h.new_empty(h.shape), [x.new_empty(x.shape) for x in parameters]


_block = define(
    "uni_paired_block(Tensor h, Tensor[] parameters, Tensor? keep_uni, Tensor? keep_paired, Tensor? row_weight, "
    "bool dual, bool through, float temperature, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _reference,
    _fake,
)
_block_backward = define_backward(
    "uni_paired_block_backward(Tensor grad_uni, Tensor grad_paired, Tensor grad_decoded, Tensor grad_loss, Tensor h, "
    "Tensor[] parameters, Tensor? keep_uni, Tensor? keep_paired, Tensor? row_weight, Tensor uni, Tensor paired, "
    "Tensor decoded, Tensor[] saved, bool dual, bool through, float temperature) -> (Tensor, Tensor[])",
    _reference_backward,
    _fake_backward,
)

register_host("uni_paired_block", dtypes=(torch.float32, torch.float64))
register_host("uni_paired_block_backward", dtypes=(torch.float32, torch.float64))


def _setup_context(ctx, inputs, output) -> None:
    h, parameters, keep_uni, keep_paired, row_weight, ctx.dual, ctx.through, ctx.temperature, _ = inputs
    uni, paired, decoded, _, saved = output
    ctx.count = len(parameters)
    ctx.save_for_backward(h, keep_uni, keep_paired, row_weight, uni, paired, decoded, *parameters, *saved)


def _backward(ctx, grad_uni: Tensor, grad_paired: Tensor, grad_decoded: Tensor, grad_loss: Tensor, _):
    h, keep_uni, keep_paired, row_weight, *results = ctx.saved_tensors[:7]
    parameters, saved = ctx.saved_tensors[7 : 7 + ctx.count], ctx.saved_tensors[7 + ctx.count :]
    grad_h, grad_parameters = _block_backward(
        grad_uni, grad_paired, grad_decoded, grad_loss, h, list(parameters), keep_uni, keep_paired, row_weight,
        *results, list(saved), ctx.dual, ctx.through, ctx.temperature,
    )  # fmt: skip
    return grad_h, grad_parameters, *[None] * 7


define_autograd(_block, _setup_context, _backward)
