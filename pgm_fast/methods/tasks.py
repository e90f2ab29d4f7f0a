"""The task losses: weighted sums over rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["repeated", "task_loss", "task_rows"]


def task_loss(task: str, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Sum over rows of ``weight`` ``[n]`` (see :class:`~pgm_fast.data.batch.Batch`) times :func:`task_rows`, a float32
    (or wider) scalar."""
    return (task_rows(task, logits, labels) * weight).sum()


def task_rows(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of every row, float32 (or wider) ``[n]``.

    - ``classification``: cross-entropy of ``[n, C]`` logits with int64 ``[n]`` labels;
    - ``multilabel``: binary cross-entropy with logits, mean over the C labels of a row;
    - ``regression``: squared error, mean over the targets of a row. Squared rather than absolute, so that the output
      estimates the conditional mean and the gradient fades as the error does.

    Args:
        task: one of the above.
        logits: ``[n, C]``.
        labels: int64 ``[n]`` or float ``[n, C]``.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if task == "classification":
        return F.cross_entropy(logits, labels, reduction="none")
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(-1)
    if task == "regression":
        return (logits - labels.to(logits.dtype)).square().mean(-1)
    raise ValueError(f"task is {task!r}, must be classification, multilabel or regression")


def repeated(labels: Tensor, heads: int) -> Tensor:
    """Labels of the rows ``[heads * n]`` of several heads' logits, one head after the other."""
    return labels.repeat(heads, *[1] * (labels.dim() - 1))
