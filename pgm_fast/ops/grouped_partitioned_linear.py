"""The split projections of several modalities at once, of different widths: one launch per stage on a GPU.

Each entry of the lists is one problem of :func:`~pgm_fast.ops.partitioned_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends import host
from ..backends.native import NATIVE_DTYPES
from ..backends.triton import TRITON_PRODUCT_DTYPES, register_triton
from .partitioned_linear import (
    fake,
    fake_backward,
    keeps_pre_activation,
    prepare,
    reference,
    reference_backward,
)
from .registration import define, define_autograd, define_backward

__all__ = ["grouped_partitioned_linear"]


def grouped_partitioned_linear(
    h: Sequence[Tensor],
    z: Sequence[Tensor],
    w_uni: Sequence[Tensor],
    b_uni: Sequence[Tensor | None],
    w_paired: Sequence[Tensor],
    b_paired: Sequence[Tensor | None],
    activation: str | None = None,
    temperature: float = 1.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """:func:`~pgm_fast.ops.partitioned_linear` of every entry of the lists.

    Args:
        h, z, w_uni, b_uni, w_paired, b_paired: lists of one length, at least 1; entry i of each as
            ``partitioned_linear`` takes it. Rows and widths may differ from entry to entry, device and dtype of ``h``
            may not.
        activation, temperature: the same for all.

    Returns:
        ``(u, p)``, two lists.

    Autocast as in ``partitioned_linear``.

    Raises:
        TypeError, ValueError: as ``partitioned_linear``, naming the entry; lists of different lengths or empty, entries
            on different devices or of different dtypes.
    """
    lists = {"h": h, "z": z, "w_uni": w_uni, "b_uni": b_uni, "w_paired": w_paired, "b_paired": b_paired}
    for name, values in lists.items():
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} must be a list of tensors, got {type(values).__name__}")
        if len(values) != len(h) or not values:
            raise ValueError(f"{name} must have as many entries as h ({len(h)}), at least 1, got {len(values)}")
    problems, leading = [], []
    for i, problem in enumerate(zip(*lists.values(), strict=True)):
        try:
            problems.append(prepare(*problem, activation=activation, temperature=temperature))
        except (TypeError, ValueError) as error:
            raise type(error)(f"entry {i}: {error}") from None
        leading.append(problem[0].shape[:-1])
        first, other = problems[0][0], problems[i][0]
        if other.dtype != first.dtype:
            raise TypeError(f"entry {i}: h must have the dtype of entry 0 ({first.dtype}), got {other.dtype}")
        if other.device != first.device:
            raise ValueError(f"entry {i}: h is on {other.device}, but entry 0 is on {first.device}")
    # a list with None in it is opaque to torch's autograd of lists: an empty tensor stands for no bias
    empty = problems[0][0].new_empty(0)
    tensors = ([empty if x is None else x for x in values] for values in zip(*problems, strict=True))
    made = _grouped(*tensors, activation, float(temperature))
    u, p = ([x.reshape(*sizes, x.shape[-1]) for x, sizes in zip(values, leading, strict=True)] for values in made[:2])
    return u, p


def _each(function, *lists):
    """``function`` of entry i of every list; its outputs as lists."""
    made = [function(*entry) for entry in zip(*lists, strict=True)]
    return tuple(map(list, zip(*made, strict=True)))


def _forward_by(function):
    def forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
        b_uni, b_paired = ([b if b.numel() else None for b in biases] for biases in (b_uni, b_paired))
        u, p, x_uni, x_paired = _each(
            lambda *entry: function(*entry, activation, temperature), h, z, w_uni, b_uni, w_paired, b_paired
        )
        return (u, p, x_uni, x_paired) if keeps_pre_activation(activation) else (u, p, [], [])

    return forward


def _backward_by(function):
    def backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
        saved_u, saved_p = (saved_u, saved_p) if activation else (grad_u, grad_p)
        return _each(
            lambda *entry: function(*entry, activation, temperature),
            *(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired),
        )

    return backward


_grouped = define(
    "grouped_partitioned_linear(Tensor[] h, Tensor[] z, Tensor[] w_uni, Tensor[] b_uni, Tensor[] w_paired, Tensor[] "
    "b_paired, str? activation, float temperature) -> (Tensor[], Tensor[], Tensor[], Tensor[])",
    _forward_by(reference),
    _forward_by(fake),
)
_grouped_backward = define_backward(
    "grouped_partitioned_linear_backward(Tensor[] grad_u, Tensor[] grad_p, Tensor[] saved_u, Tensor[] saved_p, "
    "Tensor[] h, Tensor[] z, Tensor[] w_uni, Tensor[] w_paired, str? activation, float temperature) -> (Tensor[], "
    "Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
    _backward_by(reference_backward),
    _backward_by(fake_backward),
)


def _load_native(by, op):
    host.load()
    return by(op)


for _name, _by in (("partitioned_linear", _forward_by), ("partitioned_linear_backward", _backward_by)):
    _op = getattr(torch.ops.pgm_fast, _name).default
    backends.register(
        f"grouped_{_name}",
        "native",
        lambda by=_by, op=_op: _load_native(by, op),
        devices=("cpu",),
        dtypes=tuple(NATIVE_DTYPES),
    )


def _refuse_logits(z: list[Tensor]) -> str | None:
    """One launch has one type of logits."""
    dtypes = {x.dtype for x in z}
    if len(dtypes) > 1:
        return f"does not mix gate logits of {' and '.join(sorted(map(str, dtypes)))} in one launch"
    return f"does not serve gate logits of {torch.float64}" if torch.float64 in dtypes else None


for _name, _function, _position in (
    ("grouped_partitioned_linear", "grouped_forward", 1),
    ("grouped_partitioned_linear_backward", "grouped_backward", 5),
):
    register_triton(
        _name,
        "partitioned_linear",
        _function,
        dtypes=TRITON_PRODUCT_DTYPES,
        refuse=lambda *arguments, position=_position: _refuse_logits(arguments[position]),
    )


def _setup_context(ctx, inputs, output) -> None:
    h, z, w_uni, b_uni, w_paired, b_paired, ctx.activation, ctx.temperature = inputs
    u, p, x_uni, x_paired = output
    ctx.has_bias = [x.numel() > 0 for x in b_uni], [x.numel() > 0 for x in b_paired]
    ctx.count = len(h)
    saved = (*u, *p) if ctx.activation == "relu" else (*x_uni, *x_paired)
    ctx.save_for_backward(*h, *z, *w_uni, *w_paired, *saved)


def _backward(ctx, grad_u: list[Tensor], grad_p: list[Tensor], _grad_x_uni, _grad_x_paired):
    count, saved = ctx.count, ctx.saved_tensors
    lists = [list(saved[start : start + count]) for start in range(0, 6 * count, count)]
    grads = _grouped_backward(grad_u, grad_p, *lists[4:], *lists[:4], ctx.activation, ctx.temperature)
    grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired = grads
    grad_b_uni, grad_b_paired = (
        [x if has else None for x, has in zip(biases, given, strict=True)]
        for biases, given in zip((grad_b_uni, grad_b_paired), ctx.has_bias, strict=True)
    )
    return grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired, None, None


define_autograd(_grouped, _setup_context, _backward)
