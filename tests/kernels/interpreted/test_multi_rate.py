"""Kernels of the multi-rate optimizers against the reference, and on tables as only large models have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from op_cases import interpret_triton
from optimizer_cases import OPTIMIZERS, STORAGE, stepped
from pgm_fast.kernels import multi_rate, multi_rate_rules
from tolerances import BIAS_CORRECTION, EPS, FP32, NORM_FP32, OPTIMIZER_FP64, OPTIMIZER_MOVE
from torch import nn

import pgm_fast
from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

interpret_triton()

# the interpreter drops the bits that a bfloat16 lacks where a GPU rounds: one step of theirs, off by an eps
STEPS = {torch.bfloat16: 1}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "master"), STORAGE, ids=str)
def test_a_step_is_that_of_the_reference(name, dtype, master):
    steps = STEPS.get(dtype, 3)
    got, optimizer = stepped("triton", name, dtype, master, steps=steps)
    want, reference = stepped("torch", name, dtype, master, steps=steps)
    near = OPTIMIZER_FP64 if dtype == torch.float64 else FP32
    for a, b in zip(got, want, strict=True):
        rtol, atol = (near, near) if dtype == torch.float64 else (max(FP32, EPS[dtype]), OPTIMIZER_MOVE[dtype])
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        ours, theirs = optimizer.state[a], reference.state[b]
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"param_remainder"}:
            bound = 0.0 if key in ("step", "waited") else near
            torch.testing.assert_close(ours[key], theirs[key], rtol=bound, atol=bound)


def test_tensors_past_those_that_a_program_counts_at_a_time():
    owned = [nn.Parameter(torch.ones(0)) for _ in range(multi_rate.THREADS + 4)] + [nn.Parameter(torch.ones(3))]
    optimizer = MultiRateSGD([{"params": owned[:5], "update_every": 2}, {"params": owned[5:]}], momentum=0.5)
    for p in owned:
        p.grad = torch.ones_like(p)
    with pgm_fast.backend("triton"):
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in owned] == [0.0] * 5 + [1.0] * multi_rate.THREADS
    assert [optimizer.state[p]["waited"].item() for p in owned[:5]] == [1.0] * 5
    (launch,) = optimizer._plan.launches
    assert launch.finished.item() == 0


def test_sums_of_squares_take_every_element_and_repeat_bitwise():
    """One chunk more than a program adds up at a time, in the second of three groups."""
    sizes = (5, multi_rate.THREADS * 1024 + 1, 0)
    owned = [nn.Parameter(torch.zeros(size)) for size in sizes]
    optimizer = MultiRateAdamW([{"params": [p]} for p in owned], max_norm=1.0)
    for p in owned:
        p.grad = torch.ones_like(p)
    with pgm_fast.backend("triton"):
        optimizer.total_norm()
        (launch,) = optimizer._plan.launches
        assert launch.sums.tolist() == [*sizes, sum(sizes)]
        for p in owned:
            p.grad.normal_()
        first, second = optimizer.total_norm(), optimizer.total_norm()
    assert torch.equal(first, second)
    exact = sum(p.grad.double().square().sum() for p in owned).sqrt()
    torch.testing.assert_close(first, exact, rtol=NORM_FP32, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bias_corrections_are_exact_for_every_beta_and_step(dtype):
    """As a power, 1 - beta^t loses up to 2e-4 of itself in fp32."""
    betas = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-6]
    steps = [1, 2, 3, 10, 100, 1000, 123_456, 2**24]
    pairs = [(beta, t) for beta in betas for t in steps]
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.array([beta for beta, _ in pairs]))
    log_beta = torch.tensor(logarithms, dtype=dtype)
    t = torch.tensor([float(t) for _, t in pairs], dtype=dtype)
    got = torch.empty_like(t)
    bias_corrections_kernel[(1,)](log_beta, t, got, len(pairs), triton.next_power_of_2(len(pairs)))
    exact = -np.expm1(log_beta.double().numpy() * t.double().numpy())
    np.testing.assert_allclose(got.numpy(), exact, rtol=BIAS_CORRECTION[dtype], atol=0)


@triton.jit
def bias_corrections_kernel(p_log_beta, p_t, p_out, count, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    mask = o < count
    log_beta, t = tl.load(p_log_beta + o, mask, -1.0), tl.load(p_t + o, mask, 1.0)
    tl.store(p_out + o, multi_rate_rules.bias_correction(log_beta, t), mask)
