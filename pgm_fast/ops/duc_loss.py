"""Contrastive loss that hands chosen dimensions of one modality, the teacher, to another, the student.

    l_ij = <student_i, teacher_j> / temperature over the dimensions in dims
    loss = sum_i weight_i (logsumexp_j l_ij - l_ii)

Plain products, no normalisation, no labels, the teacher detached. Source: the dimension-decoupled unidirectional
contrastive loss of DI-MML, Fan et al., ACM MM 2024, arXiv 2407.19514. Where there is no dimension to hand over the loss
is 0 (the released code gives log B, which is the same gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from .checks import check_features, check_temperature, check_tensor
from .gates import accumulation_dtype
from .native import NATIVE_DTYPES, matrix
from .registration import define, define_autograd, define_backward

__all__ = ["duc_loss"]


def duc_loss(
    student: Tensor,
    teacher: Tensor,
    dims: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    *,
    reverse_dims: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Pulls ``student[i]`` towards ``teacher[i]`` and away from the other rows' teachers, on some dimensions only.

    What is kept for backward is the features and one number per row: the products are made again there.

    Args:
        student, teacher: ``[B, d]``, floating point, of one dtype.
        dims: int64 ``[k]``, each dimension once, or a boolean mask ``[d]`` (whose dimensions are all multiplied, since
            their number is not known without asking the device: prefer numbers).
        temperature: divides the products, finite and > 0. No scale of the features overflows.
        weight: ``[B]``, weight of each pair in the loss, not normalised here and not differentiated. A pair of weight 0
            is no negative either. None means 1 / B, the mean.
        reverse_dims: adds the loss of the opposite direction on these dimensions: ``student`` teaches ``teacher``.
        rows: ``(begin, end)``, the rows whose loss is computed and which receive a gradient; every row stays a
            negative. For data-parallel training, with the joined features of all ranks. None for all.

    Returns:
        Scalar in fp32 (fp64 for fp64); 0 for an empty batch, no rows or no dimensions. Products accumulate in that
        dtype, under autocast too.

    Raises:
        TypeError: a feature argument that is not a floating-point tensor, dtypes that differ, ``dims`` that are neither
            int64 nor bool, a temperature that is not a Python number.
        ValueError: shapes that do not fit, tensors on different devices, rows outside of the batch, a temperature that
            is not finite and positive.
        RuntimeError: a dimension outside of ``[0, d)``, as from ``torch.index_select``.
    """
    check_tensor("student", student, shape=(None, None))
    check_features("student", student)
    check_tensor("teacher", teacher, shape=tuple(student.shape), like=student)
    if student.dtype != teacher.dtype:
        raise TypeError(f"teacher must have the dtype of student ({student.dtype}), got {teacher.dtype}")
    temperature = check_temperature(temperature)
    _check_dims("dims", dims, student)
    if reverse_dims is not None:
        _check_dims("reverse_dims", reverse_dims, student)
    if weight is not None:
        check_tensor("weight", weight, shape=(student.shape[0],), like=student)
        weight = weight.detach()
    begin, end = (0, student.shape[0]) if rows is None else rows
    if not 0 <= begin <= end <= student.shape[0]:
        raise ValueError(f"rows must be (begin, end) with 0 <= begin <= end <= {student.shape[0]}, got {rows}")
    return _duc_loss(student, teacher, dims, reverse_dims, weight, begin, end, temperature)[0]


def _check_dims(name: str, dims: object, student: Tensor) -> None:
    if not isinstance(dims, Tensor) or dims.dtype not in (torch.int64, torch.bool):
        got = dims.dtype if isinstance(dims, Tensor) else type(dims).__name__
        raise TypeError(f"{name} must be an int64 tensor of dimensions or a bool mask, got {got}")
    if dims.device != student.device:
        raise ValueError(f"{name} is on {dims.device}, but student is on {student.device}; move them to one device")
    d = student.shape[1]
    if dims.ndim != 1 or (dims.dtype == torch.bool and dims.shape[0] != d):
        raise ValueError(f"{name} must have shape [k], or [{d}] for a mask, got {list(dims.shape)}")


def _chosen(x: Tensor, dims: Tensor) -> Tensor:
    """The chosen dimensions ``[B, k]`` in the accumulation dtype; under a mask ``[B, d]`` with zeros elsewhere."""
    chosen = x * dims if dims.dtype == torch.bool else x.index_select(1, dims)
    return chosen.to(accumulation_dtype(x.dtype))


def _any(dims: Tensor) -> Tensor | float:
    return dims.any() if dims.dtype == torch.bool else float(dims.shape[0] > 0)


def _weights(weight: Tensor | None, x: Tensor) -> Tensor:
    dtype = accumulation_dtype(x.dtype)
    if weight is None:
        return x.new_full((x.shape[0],), 1.0 / max(x.shape[0], 1), dtype=dtype)
    return weight.to(dtype)


def _logits(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> Tensor:
    # products stay in the accumulation dtype also where the caller's autocast region would lower them
    with torch.autocast(student.device.type, enabled=False):
        logits = student @ teacher.t() / temperature
    return logits.masked_fill(~counted, -torch.inf)


def _one_way(student, teacher, dims, w, begin, end, temperature) -> tuple[Tensor, Tensor]:
    """Loss of the rows, and their log-sum-exps ``[end - begin]``."""
    own, all_ = _chosen(student[begin:end], dims), _chosen(teacher, dims)
    if end == begin:
        return w.new_zeros(()), w.new_zeros(0)
    logits, w, here = _logits(own, all_, w != 0, temperature), w[begin:end], torch.arange(end - begin, device=w.device)
    lse = logits.logsumexp(1)
    per_row = torch.where(w != 0, lse - logits[here, begin + here], torch.zeros_like(lse))
    return (w * per_row).sum() * _any(dims), lse


def _one_way_backward(grad, student, teacher, dims, w, lse, begin, end, temperature) -> Tensor:
    """Gradient with respect to every student row ``[B, d]``: w_i (softmax_j l_ij - 1[i = j]) @ teacher / T."""
    own, all_ = _chosen(student[begin:end], dims), _chosen(teacher, dims)
    p = (_logits(own, all_, w != 0, temperature) - lse.unsqueeze(1)).exp()
    w, here = w[begin:end], torch.arange(end - begin, device=w.device)
    p = torch.where((w != 0).unsqueeze(1), p, torch.zeros_like(p))
    p[here, begin + here] -= (w != 0).to(p.dtype)
    with torch.autocast(student.device.type, enabled=False):
        by_dim = (p * w.unsqueeze(1)) @ all_ * (grad * _any(dims) / temperature)
    result = student.new_zeros(student.shape)
    if dims.dtype == torch.bool:
        result[begin:end] = (by_dim * dims).to(student.dtype)
    else:
        result[begin:end].index_copy_(1, dims, by_dim.to(student.dtype))
    return result


def _reference(student, teacher, dims, reverse_dims, weight, begin, end, temperature):
    w = _weights(weight, student)
    loss, lse = _one_way(student, teacher, dims, w, begin, end, temperature)
    if reverse_dims is None:
        return loss, lse, lse.new_empty(0)
    back, back_lse = _one_way(teacher, student, reverse_dims, w, begin, end, temperature)
    return loss + back, lse, back_lse


def _reference_backward(
    grad, student, teacher, dims, reverse_dims, weight, lse, reverse_lse, begin, end, temperature
) -> tuple[Tensor, Tensor]:
    w = _weights(weight, student)
    by_student = _one_way_backward(grad, student, teacher, dims, w, lse, begin, end, temperature)
    if reverse_dims is None:
        return by_student, student.new_empty(0)
    return by_student, _one_way_backward(grad, teacher, student, reverse_dims, w, reverse_lse, begin, end, temperature)


def _fake(student, teacher, dims, reverse_dims, weight, begin, end, temperature):
    dtype = accumulation_dtype(student.dtype)
    back = 0 if reverse_dims is None else end - begin
    return tuple(student.new_empty(shape, dtype=dtype) for shape in ((), (end - begin,), (back,)))


def _fake_backward(grad, student, teacher, dims, reverse_dims, weight, lse, reverse_lse, begin, end, temperature):
    back = (0,) if reverse_dims is None else teacher.shape
    return student.new_empty(student.shape), teacher.new_empty(back)


_duc_loss = define(
    "duc_loss(Tensor student, Tensor teacher, Tensor dims, Tensor? reverse_dims, Tensor? weight, SymInt begin, "
    "SymInt end, float temperature) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_duc_loss_backward = define_backward(
    "duc_loss_backward(Tensor grad, Tensor student, Tensor teacher, Tensor dims, Tensor? reverse_dims, Tensor? weight, "
    "Tensor lse, Tensor reverse_lse, SymInt begin, SymInt end, float temperature) -> (Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)


def _load_native():
    import pgm_fast._native as native

    def one_way(student, teacher, dims, w, begin, end, temperature):
        dims = _numbers(dims)
        loss, lse = w.new_empty(1), w.new_empty(end - begin)
        if not native.duc_loss(
            student.shape[0],
            matrix(student),
            matrix(teacher),
            dims.data_ptr(),
            dims.shape[0],
            matrix(w),
            begin,
            end,
            temperature,
            matrix(loss),
            matrix(lse),
            torch.get_num_threads(),
        ):
            raise RuntimeError(f"dims hold a dimension that is out of range [0, {student.shape[1]})")
        return loss.squeeze(0), lse

    def forward(student, teacher, dims, reverse_dims, weight, begin, end, temperature):
        student, teacher, w = student.contiguous(), teacher.contiguous(), _weights(weight, student).contiguous()
        loss, lse = one_way(student, teacher, dims, w, begin, end, temperature)
        if reverse_dims is None:
            return loss, lse, lse.new_empty(0)
        back, back_lse = one_way(teacher, student, reverse_dims, w, begin, end, temperature)
        return loss + back, lse, back_lse

    return forward


def _load_native_backward():
    import pgm_fast._native as native

    def one_way(grad, student, teacher, dims, w, lse, begin, end, temperature):
        dims = _numbers(dims)
        whole = (begin, end) == (0, student.shape[0])
        result = torch.empty_like(student) if whole else torch.zeros_like(student)
        native.duc_loss_backward(
            student.shape[0],
            matrix(student),
            matrix(teacher),
            dims.data_ptr(),
            dims.shape[0],
            matrix(w),
            begin,
            end,
            temperature,
            matrix(grad),
            matrix(lse),
            matrix(result),
            torch.get_num_threads(),
        )
        return result

    def backward(grad, student, teacher, dims, reverse_dims, weight, lse, reverse_lse, begin, end, temperature):
        student, teacher, w = student.contiguous(), teacher.contiguous(), _weights(weight, student).contiguous()
        grad = grad.to(w.dtype).reshape(1)
        by_student = one_way(grad, student, teacher, dims, w, lse, begin, end, temperature)
        if reverse_dims is None:
            return by_student, student.new_empty(0)
        return by_student, one_way(grad, teacher, student, reverse_dims, w, reverse_lse, begin, end, temperature)

    return backward


def _numbers(dims: Tensor) -> Tensor:
    """Dimensions as contiguous numbers; on the CPU looking at a mask costs nothing."""
    return dims.nonzero().squeeze(-1) if dims.dtype == torch.bool else dims.contiguous()


backends.register("duc_loss", "native", _load_native, devices=("cpu",), dtypes=tuple(NATIVE_DTYPES))
# the first tensor is the gradient of the loss, which is never of 16 bits
backends.register("duc_loss_backward", "native", _load_native_backward, devices=("cpu",), dtypes=tuple(NATIVE_DTYPES))


def _setup_context(ctx, inputs, output) -> None:
    student, teacher, dims, reverse_dims, weight, ctx.begin, ctx.end, ctx.temperature = inputs
    ctx.save_for_backward(student, teacher, dims, reverse_dims, weight, *output[1:])


def _backward(ctx, grad: Tensor, _grad_lse, _grad_reverse_lse):
    by_student, by_teacher = _duc_loss_backward(grad, *ctx.saved_tensors, ctx.begin, ctx.end, ctx.temperature)
    by_teacher = None if ctx.saved_tensors[3] is None else by_teacher
    return by_student, by_teacher, None, None, None, None, None, None


define_autograd(_duc_loss, _setup_context, _backward)
