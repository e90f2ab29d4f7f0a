"""The kernels of duc_loss against the formula in fp64: both tile sizes, columns in parts, numbers and masks, some rows.

bf16 is left to the compiled lane: the interpreter multiplies the bit patterns of bf16 as integers.
"""

from __future__ import annotations

import pytest
import torch
from op_cases import forward_and_gradients
from pgm_fast.kernels import duc_loss as kernels
from tolerances import EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast import ops


@pytest.fixture(autouse=True, params=["small", "large"])
def _size(request, monkeypatch):
    """Kernels of large problems on small ones, and the other way round."""
    monkeypatch.setattr(kernels, "_GATHERED_ROWS", 0 if request.param == "large" else 1 << 30)
    with pgm_fast.backend("triton"):
        yield


def _plain(student, teacher, dims, back, temperature, weight, rows):
    """Both directions, row by row of those that count."""
    weight = torch.full((len(student),), 1 / max(len(student), 1)) if weight is None else weight
    total = 0.0 * (student.sum() + teacher.sum())
    for x, y, chosen in ((student, teacher.detach(), dims), (teacher, student.detach(), back)):
        if len(chosen):
            logits = (x[:, chosen] @ y[:, chosen].T / temperature).masked_fill(weight == 0, -torch.inf)
            own = [i for i in range(*(rows or (0, len(x)))) if weight[i] != 0]
            total = total + sum(weight[i] * (logits[i].logsumexp(0) - logits[i, i]) for i in own)
    return total


def _check(student, teacher, dims, back, temperature=1.3, weight=None, rows=None, mask=False):
    def ours(x, y):
        given = [torch.zeros(x.shape[1], dtype=torch.bool).index_fill_(0, i, True) if mask else i for i in (dims, back)]
        return ops.duc_loss(x, y, given[0], temperature, weight, reverse_dims=given[1], rows=rows)

    exact = [student.double(), teacher.double()]
    got = sum(forward_and_gradients(ours, [student, teacher]), [])
    want = sum(forward_and_gradients(lambda *x: _plain(*x, dims, back, temperature, weight, rows), exact), [])
    assert [x.dtype for x in got] == [torch.float32, student.dtype, student.dtype]
    for a, b in zip(got, want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


def _features(count, d, dtype=torch.float32):
    return [torch.randn(count, d).to(dtype) for _ in range(2)]


KINDS = [
    (torch.float32, True, True),
    (torch.float16, False, True),
    (torch.float32, False, False),
    (torch.float16, True, False),
]
SIZES = {(7, 6, 3): 3, (70, 150, 140): 2, (150, 40, 1): 1, (1, 1, 1): 3, (40, 20, 0): 3, (0, 4, 2): 3}
OF_LARGE = {(70, 350, 300): 1, (264, 9, 4): 1, (520, 9, 4): 0}
"""Size -> how many kinds of it are not slow."""


def _of_kinds(sizes):
    values = [
        pytest.param(*kind, *size, marks=[pytest.mark.slow] * (number >= few))
        for size, few in sizes.items()
        for number, kind in enumerate(KINDS)
    ]
    return pytest.mark.parametrize(("dtype", "mask", "weighted", "count", "d", "k"), values, ids=str)


@_of_kinds(SIZES)
def test_equals_the_formula(dtype, mask, weighted, count, d, k):
    """140 dimensions are more than a block of 128; 150 rows are more than one part of small tiles."""
    order = torch.randperm(d)
    weight = torch.rand(count) / max(count, 1) * (torch.arange(count) % 4 > 0) if weighted else None
    _check(*_features(count, d, dtype), order[:k], order[k:], weight=weight, mask=mask)


@pytest.mark.parametrize("_size", ["large"], indirect=True)
@_of_kinds(OF_LARGE)
def test_equals_the_formula_in_blocks_and_parts(dtype, mask, weighted, count, d, k):
    """300 dimensions are more than a block of 256; 264 rows are more than one part of tiles of 32 bits, 520 of 16."""
    test_equals_the_formula(dtype, mask, weighted, count, d, k)


@pytest.mark.parametrize(("d", "k"), [(120, 90), pytest.param(200, 180, marks=pytest.mark.slow)])
def test_tiles_where_products_read_registers(monkeypatch, d, k):
    monkeypatch.setattr(kernels.gathered, "operands_in_shared", lambda _: False)
    order = torch.randperm(d)
    _check(*_features(70, d, torch.float16), order[:k], order[k:])


@pytest.mark.parametrize("rows", [(0, 0), (0, 33), (33, 64), (40, 70)])
def test_rows_of_one_rank(rows):
    order = torch.randperm(50)
    _check(*_features(70, 50), order[:20], order[30:], rows=rows)


def test_one_direction_leaves_the_teacher_alone():
    student, teacher = (x.requires_grad_() for x in _features(9, 5))
    loss = ops.duc_loss(student, teacher, torch.tensor([3, 1]))
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("scale", [1e-4, 1e15, pytest.param(1e4, marks=pytest.mark.slow)])
def test_no_scale_of_the_features_overflows_at_temperature_one(scale):
    student, teacher = ((scale * x).requires_grad_() for x in _features(40, 33))
    loss = ops.duc_loss(student, teacher, torch.arange(33), 1.0, reverse_dims=torch.arange(33))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and teacher.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 6])
def test_a_number_that_is_no_dimension_makes_the_loss_nan_and_touches_nothing_else(wrong):
    whole = [torch.full((11, 6), float("nan")) for _ in range(2)]
    student, teacher = (x[2:9].normal_().requires_grad_() for x in whole)
    loss = ops.duc_loss(student, teacher, torch.tensor([0, wrong]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isnan() and gradient[:, 0].isnan().all() and not gradient[:, 1:].any()


def test_what_lies_around_the_tensors_is_neither_read_nor_written():
    whole = [torch.full((44, 37), float("nan")) for _ in range(2)]
    _check(*(x[2:-2].normal_() for x in whole), torch.arange(20), torch.arange(20, 37))
    assert all(x[:2].isnan().all() and x[-2:].isnan().all() for x in whole)


def test_numbers_one_way_and_a_mask_the_other_are_refused_with_a_reason():
    mask = torch.ones(5, dtype=torch.bool)
    with pytest.raises(pgm_fast.errors.BackendError, match="numbers of dimensions or masks, not one for each"):
        ops.duc_loss(*_features(4, 5), torch.arange(2), reverse_dims=mask)
