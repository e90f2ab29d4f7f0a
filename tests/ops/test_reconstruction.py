from __future__ import annotations

import torch
from tolerances import FINITE_DIFFERENCE, FP64

from pgm_fast.ops import reconstruction


def _arguments(rows=5, n_u=3, n_p=4, d=6):
    shapes = [(rows, n_u), (rows, n_p), (d, n_u), (d, n_p), (d,), (rows, d)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_row_weights_scale_each_rows_mean_squared_error():
    *inputs, target = _arguments()
    weight = torch.tensor([0.5, 0.0, 2.0, 0.1, 0.0], dtype=torch.float64)
    decoded, loss = reconstruction(*inputs, target, weight)
    expected = (weight * (decoded - target).square().mean(1)).sum()
    torch.testing.assert_close(loss, expected, rtol=FP64, atol=FP64)
    mean = reconstruction(*inputs, target)[1]
    torch.testing.assert_close(mean, (decoded - target).square().mean(), rtol=FP64, atol=FP64)


def test_weighted_gradients_equal_finite_differences():
    weight = torch.rand(5, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in _arguments()]
    assert torch.autograd.gradcheck(lambda *x: reconstruction(*x, weight), leaves, rtol=0, atol=FINITE_DIFFERENCE)


def test_a_row_of_weight_zero_has_no_say_in_the_loss():
    *inputs, target = _arguments()
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    leaves = [x.requires_grad_() for x in inputs]
    clean = torch.autograd.grad(reconstruction(*leaves, target, weight)[1], leaves)
    target[1] = 1e6
    spoilt = torch.autograd.grad(reconstruction(*leaves, target, weight)[1], leaves)
    assert all(torch.equal(a, b) for a, b in zip(clean, spoilt, strict=True))


def test_the_heads_and_the_losss_gradients_add_up():
    *inputs, target = _arguments()
    leaves = [x.requires_grad_() for x in inputs]
    direction = torch.randn_like(target)
    by_head = torch.autograd.grad((reconstruction(*leaves, target)[0] * direction).sum(), leaves)
    by_loss = torch.autograd.grad(reconstruction(*leaves, target)[1], leaves)
    decoded, loss = reconstruction(*leaves, target)
    both = torch.autograd.grad((decoded * direction).sum() + loss, leaves)
    for a, b, c in zip(by_head, by_loss, both, strict=True):
        torch.testing.assert_close(a + b, c, rtol=FP64, atol=FP64)


def test_bias_is_optional_and_the_target_keeps_its_dtype():
    u, p, w_uni, w_paired, _, target = [x.bfloat16() for x in _arguments()]
    target = target.float().requires_grad_()
    decoded, loss = reconstruction(u.requires_grad_(), p, w_uni, w_paired, None, target)
    loss.backward()
    assert decoded.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert target.grad.dtype == torch.float32 and u.grad.dtype == torch.bfloat16
