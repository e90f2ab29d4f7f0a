from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import FP64

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import info_nce

BACKENDS = [name for name, reason in backends.implementations()["info_nce"].items() if reason is None]


@pytest.fixture(autouse=True, params=BACKENDS)
def _backend(request):
    with pgm_fast.backend(request.param):
        yield


def _views(rows=6, d=5):
    return torch.randn(rows, d, dtype=torch.float64), torch.randn(rows, d, dtype=torch.float64)


def _log_sum_exp(x):
    top = x.max(1, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(1, keepdims=True)))[:, 0]


@pytest.mark.parametrize("rows", [1, 64, 131])
def test_the_loss_is_the_formula_for_any_number_of_rows(rows):
    """In numpy, pair by pair that counts; gradients are checked with every op's."""
    a, b = _views(rows, 19)
    weight = torch.rand(rows, dtype=torch.float64) * (torch.arange(rows) % 3 != 1)
    kept = weight.numpy() > 0
    x, y = (v.numpy()[kept] / np.linalg.norm(v.numpy()[kept], axis=1, keepdims=True) for v in (a, b))
    logits = x @ y.T / 0.2
    expected = 0.5 * weight.numpy()[kept] @ (_log_sum_exp(logits) + _log_sum_exp(logits.T) - 2 * logits.diagonal())
    loss = info_nce(a, b, 0.2, weight=weight)
    torch.testing.assert_close(loss.item(), expected.item(), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("rows", [6, 131])
@pytest.mark.parametrize("normalize", [True, False])
def test_pairs_of_weight_zero_are_as_if_removed(normalize, rows):
    a, b = _views(rows)
    keep = torch.arange(rows) % 3 != 1
    weight = keep.double() / keep.sum()
    leaves = [a.requires_grad_(), b.requires_grad_()]
    masked = info_nce(a, b, 0.5, normalize, weight)
    removed = info_nce(a[keep], b[keep], 0.5, normalize)
    torch.testing.assert_close(masked, removed, rtol=FP64, atol=FP64)
    for x, y in zip(torch.autograd.grad(masked, leaves), torch.autograd.grad(removed, leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=FP64, atol=FP64)


def test_stacked_pairs_have_the_losses_and_gradients_of_each_alone():
    a, b = torch.randn(2, 3, 6, 5, dtype=torch.float64).requires_grad_().unbind(0)
    weight = torch.rand(3, 6, dtype=torch.float64) * torch.tensor([[1.0], [0.0], [1.0]])
    weight[2, :2] = 0
    together = info_nce(a, b, 0.5, weight=weight)
    alone = torch.stack([info_nce(x, y, 0.5, weight=w) for x, y, w in zip(a, b, weight, strict=True)])
    torch.testing.assert_close(together, alone, rtol=FP64, atol=FP64)
    slopes = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    grads = [torch.autograd.grad(losses @ slopes, (a, b)) for losses in (together, alone)]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=FP64, atol=FP64)


def test_uninformative_views_cost_log_b_and_equal_ones_nothing():
    constant = torch.ones(8, 4, dtype=torch.float64)
    torch.testing.assert_close(info_nce(constant, constant).item(), math.log(8), rtol=FP64, atol=FP64)
    identity = torch.eye(8, dtype=torch.float64)
    assert info_nce(identity, identity, temperature=0.01).item() < FP64


def test_large_products_and_zero_rows_stay_finite():
    a = (1e4 * torch.randn(6, 5)).requires_grad_()
    loss = info_nce(a, a.detach(), temperature=1e-2, normalize=False)
    zero = torch.zeros(6, 5, requires_grad=True)
    (loss + info_nce(zero, zero.detach())).backward()
    assert loss.isfinite() and a.grad.isfinite().all() and zero.grad.isfinite().all()


def test_nothing_counted_gives_zero_loss_and_gradient():
    a, b = (x.requires_grad_() for x in _views())
    loss = info_nce(a, b, weight=torch.zeros(6, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0 and a.grad.abs().max() == 0 and b.grad.abs().max() == 0


def test_backward_keeps_no_matrix_of_products():
    """Everything saved for backward is of the size of the inputs."""
    saved = []
    a, b = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        info_nce(a, b)
    assert saved and max(x.numel() for x in saved) <= a.numel()
