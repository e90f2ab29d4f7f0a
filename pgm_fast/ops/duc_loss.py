"""Contrastive loss that hands chosen dimensions of one modality, the teacher, to another, the student.

    l_ij = <student_i, teacher_j> / temperature over the dimensions in dims
    loss = sum_i weight_i (logsumexp_j l_ij - l_ii)

Plain products, no normalisation, no labels, the teacher detached. Source: the dimension-decoupled unidirectional
contrastive loss of DI-MML, Fan et al., ACM MM 2024, arXiv 2407.19514. Where there is no dimension to hand over the loss
is 0 (the released code gives log B, which is the same gradient).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.native import refuse_mixed_precision, register_host
from ..backends.triton import TRITON_PRODUCT_DTYPES, register_triton
from .checks import check_features, check_temperature, check_tensor
from .dtypes import accumulation_dtype
from .registration import define, define_autograd, define_backward
from .row_weights import weights_or_mean
from .tracing import surely

__all__ = ["duc_loss"]

# Products of a batch that makes its gradient at once, by device: up to 512 rows they fit a CPU core's cache. On others
# the gradient would take as long either way.
_KEPT_PRODUCTS = {"cpu": 1 << 18}


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

    What is kept for backward is the features and one number per row: the products are made again there. For small
    batches, where they are in the cache already, it is the gradient instead.

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
        RuntimeError: a dimension outside of ``[0, d)``; it is named on the CPU. Triton's kernels cannot raise:
            with them the loss is NaN.
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
    begin, end = (0, -1) if rows is None else rows
    if rows is not None and not 0 <= begin <= end <= student.shape[0]:
        raise ValueError(f"rows must be (begin, end) with 0 <= begin <= end <= {student.shape[0]}, got {rows}")
    learns = torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad)
    keep = learns and surely(student.shape[0] ** 2 <= _KEPT_PRODUCTS.get(student.device.type, -1))
    try:
        return _duc_loss(student, teacher, dims, reverse_dims, weight, begin, end, temperature, keep)[0]
    except (IndexError, RuntimeError):
        _check_range("dims", dims, student.shape[1])
        _check_range("reverse_dims", reverse_dims, student.shape[1])
        raise


def _check_dims(name: str, dims: object, student: Tensor) -> None:
    if not isinstance(dims, Tensor) or dims.dtype not in (torch.int64, torch.bool):
        got = dims.dtype if isinstance(dims, Tensor) else type(dims).__name__
        raise TypeError(f"{name} must be an int64 tensor of dimensions or a bool mask, got {got}")
    if dims.device != student.device:
        raise ValueError(f"{name} is on {dims.device}, but student is on {student.device}; move them to one device")
    d = student.shape[1]
    if dims.ndim != 1 or (dims.dtype == torch.bool and dims.shape[0] != d):
        raise ValueError(f"{name} must have shape [k], or [{d}] for a mask, got {list(dims.shape)}")


def _check_range(name: str, dims: Tensor | None, d: int) -> None:
    """Names dimensions that a CPU did not find; other devices are not asked."""
    if dims is None or dims.device.type != "cpu" or dims.dtype == torch.bool or not dims.numel():
        return
    low, high = int(dims.min()), int(dims.max())
    if low < 0 or high >= d:
        raise RuntimeError(f"{name} must be in [0, {d}), the dimensions of student, got {low} to {high}") from None


def _chosen(x: Tensor, dims: Tensor) -> Tensor:
    """The chosen dimensions ``[B, k]`` in the accumulation dtype; under a mask ``[B, d]`` with zeros elsewhere."""
    chosen = x * dims if dims.dtype == torch.bool else x.index_select(1, dims)
    return chosen.to(accumulation_dtype(x.dtype))


def _any(dims: Tensor) -> Tensor | float:
    return dims.any() if dims.dtype == torch.bool else float(dims.shape[0] > 0)


def _logits(student: Tensor, teacher: Tensor, counted: Tensor | None, temperature: float) -> Tensor:
    # products stay in the accumulation dtype also where the caller's autocast region would lower them
    with torch.autocast(student.device.type, enabled=False):
        logits = student @ teacher.t() / temperature
    return logits if counted is None else logits.masked_fill(~counted, -torch.inf)


def _counted(weight: Tensor | None) -> Tensor | None:
    """Pairs of any weight; None for all of them."""
    return None if weight is None else weight != 0


def _one_way(student, teacher, dims, w, counted, begin, end, temperature, keep_gradient) -> tuple[Tensor, Tensor]:
    """Loss of the rows, and what backward needs: their gradient for a loss of gradient 1, or their log-sum-exps."""
    rows = end - begin
    if rows == 0:
        return w.new_zeros(()), w.new_zeros((0, dims.shape[0]) if keep_gradient else 0)
    own, all_ = _chosen(student[begin:end], dims), _chosen(teacher.detach(), dims)
    logits, w_own, here = _logits(own, all_, counted, temperature), w[begin:end], torch.arange(rows, device=w.device)
    lse = logits.logsumexp(1)
    if counted is None:
        # as it is written in plain PyTorch, which compilers know to fuse
        per_row = F.cross_entropy(logits, begin + here, reduction="none")
    else:
        per_row = torch.where(counted[begin:end], lse - logits[here, begin + here], torch.zeros_like(lse))
    loss = (w_own * per_row).sum() * _any(dims)
    if not keep_gradient:
        return loss, lse
    return loss, _by_dim(logits, lse, all_, w_own, begin, temperature)


def _by_dim(logits, lse, teacher, w, begin, temperature) -> Tensor:
    """Gradient on the chosen dimensions ``[rows, k]``: w_i (softmax_j l_ij - 1[i = j]) @ teacher / temperature."""
    here = torch.arange(logits.shape[0], device=w.device)
    p = torch.where((w != 0).unsqueeze(1), (logits - lse.unsqueeze(1)).exp(), torch.zeros_like(logits))
    p[here, begin + here] -= (w != 0).to(p.dtype)
    with torch.autocast(teacher.device.type, enabled=False):
        return (p * w.unsqueeze(1)) @ teacher / temperature


def _one_way_backward(grad, student, teacher, dims, w, kept, begin, end, temperature) -> Tensor:
    """Gradient with respect to every student row ``[B, d]``."""
    if end == begin:
        return torch.zeros_like(student)
    by_dim = kept
    if kept.ndim == 1:
        own, all_ = _chosen(student[begin:end], dims), _chosen(teacher, dims)
        by_dim = _by_dim(_logits(own, all_, w != 0, temperature), kept, all_, w[begin:end], begin, temperature)
    by_dim = by_dim * (grad * _any(dims))
    if dims.dtype == torch.bool:
        by_row = by_dim * dims
    else:
        by_row = by_dim.new_zeros(end - begin, student.shape[1]).index_copy(1, dims, by_dim)
    return F.pad(by_row.to(student.dtype), (0, 0, begin, student.shape[0] - end))


def _reference(student, teacher, dims, reverse_dims, weight, begin, end, temperature, keep_gradient):
    w, counted, end = weights_or_mean(weight, student), _counted(weight), _end(end, student)
    loss, kept = _one_way(student, teacher, dims, w, counted, begin, end, temperature, keep_gradient)
    if reverse_dims is None:
        return loss, kept, kept.new_empty(0)
    back, back_kept = _one_way(teacher, student, reverse_dims, w, counted, begin, end, temperature, keep_gradient)
    return loss + back, kept, back_kept


def _reference_backward(
    grad, student, teacher, dims, reverse_dims, weight, kept, reverse_kept, begin, end, temperature
) -> tuple[Tensor, Tensor]:
    w, end = weights_or_mean(weight, student), _end(end, student)
    by_student = _one_way_backward(grad, student, teacher, dims, w, kept, begin, end, temperature)
    if reverse_dims is None:
        return by_student, student.new_empty(0)
    return by_student, _one_way_backward(grad, teacher, student, reverse_dims, w, reverse_kept, begin, end, temperature)


def _end(end: int, student: Tensor) -> int:
    # a number that does not change with the batch: compiled code then serves every batch size
    return student.shape[0] if end < 0 else end


def _fake(student, teacher, dims, reverse_dims, weight, begin, end, temperature, keep_gradient):
    dtype, rows = accumulation_dtype(student.dtype), _end(end, student) - begin

    def kept(dims):
        return student.new_empty((rows, dims.shape[0]) if keep_gradient else (rows,), dtype=dtype)

    back = student.new_empty(0, dtype=dtype) if reverse_dims is None else kept(reverse_dims)
    return student.new_empty((), dtype=dtype), kept(dims), back


def _fake_backward(grad, student, teacher, dims, reverse_dims, weight, kept, reverse_kept, begin, end, temperature):
    back = (0,) if reverse_dims is None else teacher.shape
    return student.new_empty(student.shape), teacher.new_empty(back)


_duc_loss = define(
    "duc_loss(Tensor student, Tensor teacher, Tensor dims, Tensor? reverse_dims, Tensor? weight, int begin, int end, "
    "float temperature, bool keep_gradient) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_duc_loss_backward = define_backward(
    "duc_loss_backward(Tensor grad, Tensor student, Tensor teacher, Tensor dims, Tensor? reverse_dims, Tensor? weight, "
    "Tensor kept, Tensor reverse_kept, int begin, int end, float temperature) -> (Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)

register_host("duc_loss")
register_host("duc_loss_backward")


def _refuse_by_triton(*arguments) -> str | None:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if len({x.dtype for x in tensors if not x.is_floating_point()}) > 1:
        return "takes numbers of dimensions or masks, not one for each direction"
    if arguments[-1] is True or any(x.ndim == 2 for x in arguments[6:8] if isinstance(x, Tensor)):
        return "keeps no gradient in forward"
    return refuse_mixed_precision(*arguments)


register_triton("duc_loss", dtypes=TRITON_PRODUCT_DTYPES, refuse=_refuse_by_triton)


def _setup_context(ctx, inputs, output) -> None:
    student, teacher, dims, reverse_dims, weight, ctx.begin, ctx.end, ctx.temperature, _ = inputs
    ctx.save_for_backward(student, teacher, dims, reverse_dims, weight, *output[1:])


def _backward(ctx, grad: Tensor, _grad_kept, _grad_reverse_kept):
    by_student, by_teacher = _duc_loss_backward(grad, *ctx.saved_tensors, ctx.begin, ctx.end, ctx.temperature)
    by_teacher = None if ctx.saved_tensors[3] is None else by_teacher
    return by_student, by_teacher, None, None, None, None, None, None, None


define_autograd(_duc_loss, _setup_context, _backward)
