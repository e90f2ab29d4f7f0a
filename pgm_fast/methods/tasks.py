"""The task losses: weighted sums over rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["task_loss"]


def task_loss(task: str, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Sum over rows of ``weight`` times the row's loss, a float32 (or wider) scalar.

    - ``classification``: cross-entropy of ``[n, C]`` logits with int64 ``[n]`` labels;
    - ``multilabel``: binary cross-entropy with logits, mean over the C labels of a row;
    - ``regression``: squared error, mean over the targets of a row. Squared rather than absolute, so that the output
      estimates the conditional mean and the gradient fades as the error does.

    Args:
        task: one of the above.
        logits: ``[n, C]``.
        labels: int64 ``[n]`` or float ``[n, C]``.
        weight: ``[n]``, see :class:`~pgm_fast.data.batch.Batch`.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if task == "classification":
        rows = F.cross_entropy(logits, labels, reduction="none")
    elif task == "multilabel":
        rows = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(-1)
    elif task == "regression":
        rows = (logits - labels.to(logits.dtype)).square().mean(-1)
    else:
        raise ValueError(f"task is {task!r}, must be classification, multilabel or regression")
    return (rows * weight).sum()
