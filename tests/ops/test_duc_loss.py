from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import FP32, FP64

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import duc_loss

BACKENDS = [name for name, reason in backends.implementations()["duc_loss"].items() if reason is None]


@pytest.fixture(autouse=True, params=BACKENDS)
def _backend(request):
    with pgm_fast.backend(request.param):
        yield


def _features(rows=7, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]


def _by_hand(student, teacher, dims, temperature, weight=None):
    """The formula and its gradient for one direction, sample by sample in numpy."""
    x, y = student.detach().numpy()[:, dims], teacher.detach().numpy()[:, dims]
    weight = np.full(len(x), 1 / len(x)) if weight is None else weight
    loss, gradient = 0.0, np.zeros(student.shape)
    for i in range(len(x)):
        if weight[i] == 0:
            continue
        logits = np.array([np.dot(x[i], y[j]) / temperature if weight[j] else -np.inf for j in range(len(y))])
        top = logits.max()
        p = np.exp(logits - top) / np.exp(logits - top).sum()
        loss -= weight[i] * np.log(p[i])
        gradient[i, dims] = weight[i] * (p @ y - y[i]) / temperature
    return loss, gradient


def _close(got, want):
    want = torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), want, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("temperature", [1.0, 50.0])
@pytest.mark.parametrize("mask", [False, True], ids=["numbers", "mask"])
def test_both_directions_equal_the_formula_and_teachers_get_nothing_from_teaching(temperature, mask):
    student, teacher = _features()
    forth, back = np.array([4, 0]), np.array([1, 5, 3])

    def given(dims):
        numbers = torch.as_tensor(dims)
        return torch.zeros(6, dtype=torch.bool).index_fill_(0, numbers, True) if mask else numbers

    loss, gradient = _by_hand(student, teacher, forth, temperature)
    one = duc_loss(student, teacher, given(forth), temperature)
    _close(one, loss)
    _close(torch.autograd.grad(one, student)[0], gradient)
    back_loss, back_gradient = _by_hand(teacher, student, back, temperature)
    both = duc_loss(student, teacher, given(forth), temperature, reverse_dims=given(back))
    _close(both, loss + back_loss)
    by_student, by_teacher = torch.autograd.grad(both, [student, teacher])
    _close(by_student, gradient)
    _close(by_teacher, back_gradient)


def test_without_reverse_dims_the_teacher_has_no_gradient():
    student, teacher = _features()
    assert torch.autograd.grad(duc_loss(student, teacher, torch.arange(3)), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("dims", [torch.zeros(0, dtype=torch.int64), torch.zeros(6, dtype=torch.bool)], ids=str)
def test_nothing_to_hand_over_is_no_loss_and_no_gradient(dims):
    student, teacher = _features()
    loss = duc_loss(student, teacher, dims, reverse_dims=dims)
    gradients = torch.autograd.grad(loss, [student, teacher])
    assert loss.item() == 0 and not any(g.any() for g in gradients)


def test_pairs_of_weight_zero_are_as_if_removed():
    student, teacher = _features()
    weight = torch.tensor([0.2, 0, 0.2, 0.2, 0, 0.2, 0.2], dtype=torch.float64)
    keep, dims = weight > 0, torch.tensor([0, 2, 5])
    masked = duc_loss(student, teacher, dims, 2.0, weight, reverse_dims=dims)
    removed = duc_loss(student[keep], teacher[keep], dims, 2.0, reverse_dims=dims)
    _close(masked, removed.detach())
    for x, y in zip(
        torch.autograd.grad(masked, [student, teacher]), torch.autograd.grad(removed, [student, teacher]), strict=True
    ):
        _close(x, y)


def test_the_rows_of_ranks_add_up_to_the_whole():
    student, teacher = _features()
    forth, back = torch.tensor([0, 1, 2]), torch.tensor([3, 4])
    weight = torch.linspace(0, 1, 7, dtype=torch.float64)
    whole = duc_loss(student, teacher, forth, 3.0, weight, reverse_dims=back)
    parts = [
        duc_loss(student, teacher, forth, 3.0, weight, reverse_dims=back, rows=rows)
        for rows in ((0, 3), (3, 3), (3, 7))
    ]
    _close(sum(parts), whole.detach())
    gradients = [torch.autograd.grad(part, [student, teacher]) for part in parts]
    assert not gradients[0][0][3:].any() and not gradients[2][1][:3].any()
    for k, want in enumerate(torch.autograd.grad(whole, [student, teacher])):
        _close(sum(g[k] for g in gradients), want)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_scale_of_the_features_overflows_at_temperature_one(scale, dtype):
    student, teacher = ((scale * x.detach()).to(dtype).requires_grad_() for x in _features(40, 33))
    loss = duc_loss(student, teacher, torch.arange(33), 1.0, reverse_dims=torch.arange(33))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and teacher.grad.isfinite().all()


def test_equal_rows_cost_log_b_each_way():
    same = torch.ones(9, 4, requires_grad=True)
    loss = duc_loss(same, same.detach(), torch.arange(4), reverse_dims=torch.arange(4))
    torch.testing.assert_close(loss.item(), 2 * np.log(9), rtol=FP32, atol=0)


def test_more_rows_than_a_block_equal_the_formula():
    """200 rows are several blocks and a rest, and 70 dimensions several vectors and a rest."""
    student, teacher = _features(200, 90)
    dims = np.random.default_rng(0).permutation(90)[:70]
    weight = np.random.default_rng(1).random(200) * (np.arange(200) % 7 > 0)
    loss, gradient = _by_hand(student, teacher, dims, 10.0, weight)
    got = duc_loss(student, teacher, torch.as_tensor(dims), 10.0, torch.as_tensor(weight))
    _close(got, loss)
    _close(torch.autograd.grad(got, student)[0], gradient)


def test_backward_keeps_no_matrix_of_products():
    """Everything saved for backward is of the size of the inputs."""
    saved = []
    student, teacher = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        duc_loss(student, teacher, torch.arange(4))
    assert saved and max(x.numel() for x in saved) <= student.numel()


def test_wrong_dims_and_rows_are_named():
    student, teacher = _features()
    for dims, error, message in (
        (torch.arange(3.0), TypeError, "dims must be an int64 tensor of dimensions or a bool mask, got torch.float32"),
        ([0, 1], TypeError, "got list"),
        (torch.zeros(5, dtype=torch.bool), ValueError, r"dims must have shape \[k\], or \[6\] for a mask, got \[5\]"),
        (torch.zeros(1, 2, dtype=torch.int64), ValueError, "dims must have shape"),
        (torch.tensor([2, 6]), RuntimeError, r"^dims must be in \[0, 6\), the dimensions of student, got 2 to 6"),
        (torch.tensor([-1]), RuntimeError, r"^dims must be in \[0, 6\), .* got -1 to -1"),
    ):
        with pytest.raises(error, match=message):
            duc_loss(student, teacher, dims)
    with pytest.raises(RuntimeError, match=r"^reverse_dims must be in \[0, 6\), .* got 9 to 9"):
        duc_loss(student, teacher, torch.arange(2), reverse_dims=torch.tensor([9]))
    with pytest.raises(ValueError, match=r"teacher must have shape \[7, 6\], got \[6, 6\]"):
        duc_loss(student, teacher[:6], torch.arange(2))
    with pytest.raises(ValueError, match=r"rows must be \(begin, end\) .* 7, got \(3, 8\)"):
        duc_loss(student, teacher, torch.arange(2), rows=(3, 8))
