"""Task losses are weighted sums over rows."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP32
from torch.nn import functional as F

from pgm_fast.methods.tasks import task_loss

CASES = {
    "classification": (lambda n: torch.arange(n) % 3, F.cross_entropy),
    "multilabel": (lambda n: (torch.randn(n, 3) > 0).float(), F.binary_cross_entropy_with_logits),
    "regression": (lambda n: torch.randn(n, 3), F.mse_loss),
}


@pytest.mark.parametrize("task", CASES)
def test_equal_weights_give_the_mean_and_zero_weights_remove_rows(task):
    make, mean_loss = CASES[task]
    logits, labels = torch.randn(8, 3, requires_grad=True), make(8)
    torch.testing.assert_close(
        task_loss(task, logits, labels, torch.full((8,), 1 / 8)), mean_loss(logits, labels), rtol=FP32, atol=FP32
    )
    weight = torch.tensor([0.2, 0, 0.2, 0.2, 0, 0.2, 0.2, 0])
    loss = task_loss(task, logits, labels, weight)
    torch.testing.assert_close(loss, mean_loss(logits[weight > 0], labels[weight > 0]), rtol=FP32, atol=FP32)
    assert not torch.autograd.grad(loss, logits)[0][weight == 0].any()


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_logits_are_summed_in_float32_and_no_rows_are_zero(task, dtype):
    make, _ = CASES[task]
    loss = task_loss(task, torch.randn(5, 3, dtype=dtype), make(5), torch.full((5,), 0.2))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    empty = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    loss = task_loss(task, empty, make(0), torch.zeros(0))
    loss.backward()
    assert loss == 0
