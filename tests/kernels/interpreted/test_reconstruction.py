"""The decoder against the plain formula in fp64: every size class, gradient formed in registers and formed before.

bf16 is left to the compiled lane: the interpreter multiplies the bit patterns of bf16 as integers.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_cases import forward_and_gradients
from pgm_fast.kernels import reconstruction as kernels
from tolerances import EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast import ops


@pytest.fixture(autouse=True, params=["small", "large"])
def _size(request, monkeypatch):
    """Tiles of large problems on small ones."""
    if request.param == "large":
        monkeypatch.setattr(kernels, "FILL", 1)
    with pgm_fast.backend("triton"):
        yield


def _tensors(rows, d, n_u, n_p, dtype):
    shapes = [(rows, n_u), (rows, n_p), (d, n_u), (d, n_p), (d,), (rows, d)]
    made = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for i in (2, 3):
        made[i] /= made[i].shape[1] ** 0.5
    return [x.to(dtype) for x in made]


def _plain(u, p, w_uni, w_paired, bias, target, weight):
    decoded = F.linear(torch.cat([u, p], -1), torch.cat([w_uni, w_paired], -1), bias)
    weight = torch.full((len(u),), 1 / max(len(u), 1)) if weight is None else weight
    return decoded, (weight.double() * (decoded - target).square().mean(1)).sum()


@pytest.mark.parametrize(
    ("dtype", "weighted", "moves_target"),
    [
        (torch.float32, False, True),
        (torch.float32, True, False),
        (torch.float16, True, True),
        *(
            pytest.param(*combination, marks=pytest.mark.slow)
            for combination in [
                (torch.float32, False, False),
                (torch.float32, True, True),
                (torch.float16, False, False),
                (torch.float16, False, True),
                (torch.float16, True, False),
            ]
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "d", "n_u", "n_p"),
    [(5, 7, 3, 4), (37, 150, 33, 71), (550, 20, 5, 9), (6, 9, 270, 3), (1, 1, 1, 1), (0, 6, 3, 4)],
)
def test_equals_the_plain_formula(dtype, weighted, moves_target, rows, d, n_u, n_p):
    *inputs, target = _tensors(rows, d, n_u, n_p, dtype)
    weight = torch.rand(rows) if weighted else None
    tensors = [*inputs, target] if moves_target else inputs

    def run(function, exact):
        fixed = [target.double() if exact else target][: 0 if moves_target else 1]
        given = [x.double() for x in tensors] if exact else tensors
        return sum(forward_and_gradients(lambda *x: function(*x, *fixed, weight), given), [])

    for a, b in zip(run(ops.reconstruction, False), run(_plain, True), strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[dtype] * scale)


def test_the_loss_is_of_what_is_returned_and_in_fp32():
    *inputs, target = _tensors(70, 50, 9, 6, torch.float16)
    decoded, loss = ops.reconstruction(*inputs, target)
    exact = (decoded.double() - target.double()).square().mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=NATIVE_TIMES_EPS * EPS[torch.float32], atol=0)


def test_bias_is_optional_and_the_target_keeps_its_dtype():
    u, p, w_uni, w_paired, _, target = _tensors(5, 6, 3, 4, torch.float16)
    target = target.float().requires_grad_()
    decoded, loss = ops.reconstruction(u.requires_grad_(), p, w_uni, w_paired, None, target)
    loss.backward()
    assert decoded.dtype == torch.float16 and target.grad.dtype == torch.float32 and u.grad.dtype == torch.float16


def test_a_row_of_weight_zero_has_no_say_in_the_loss():
    *inputs, target = _tensors(5, 40, 3, 4, torch.float32)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    clean = ops.reconstruction(*inputs, target, weight)[1]
    target[1] = 1e6
    assert torch.equal(ops.reconstruction(*inputs, target, weight)[1], clean)


def test_what_lies_around_the_tensors_is_neither_read_nor_written():
    whole = [torch.full((x.shape[0] + 4, *x.shape[1:]), float("nan")) for x in _tensors(5, 37, 6, 9, torch.float32)]
    inner = [x[2:-2] for x in whole]
    for x in inner:
        x.normal_()
    result, gradients = forward_and_gradients(ops.reconstruction, inner)
    assert all(x.isfinite().all() for x in result + gradients)
    assert all(x[:2].isnan().all() and x[-2:].isnan().all() for x in whole)
