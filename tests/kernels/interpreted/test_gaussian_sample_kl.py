"""The sampling kernel against the reference: layers that begin anywhere, rows of many steps, rows that lie apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import normals
from op_cases import SEED
from pgm_fast.kernels import gaussian_sample_kl as kernels
from tolerances import EPS, EXP_LESS_LINE, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast.ops import gaussian_sample_kl

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def _made(rows, d, count, dtype):
    return [torch.randn(rows, d).to(dtype).requires_grad_() for _ in range(count)]


def _results(backend, tensors, layers, sample):
    with pgm_fast.backend(backend):
        z, kl = gaussian_sample_kl(*tensors, seed=SEED, sample=sample, layers=layers)
        total = (z.to(kl.dtype) * 1.5).sum() + (kl * torch.arange(1, layers + 1)).sum()
        return [z.detach(), kl.detach(), *torch.autograd.grad(total, tensors)]


def _compare(tensors, layers, sample):
    got, want = (_results(backend, tensors, layers, sample) for backend in ("triton", "torch"))
    for a, b in zip(got, want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@settings(max_examples=12)
@given(
    rows=st.integers(0, 40),
    each=st.integers(1, 140),
    layers=st.integers(1, 3),
    prior=st.booleans(),
    sample=st.booleans(),
    dtype=dtypes,
)
def test_equals_the_reference_on_every_shape_and_dtype(rows, each, layers, prior, sample, dtype):
    _compare(_made(rows, each * layers, 4 if prior else 2, dtype), layers, sample)


@pytest.mark.parametrize(
    ("each", "layers"),
    [(65, 3), (300, 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((66, 5), (191, 3), (64, 2)))],
)
def test_layers_that_take_several_steps_leave_no_column_out(each, layers, monkeypatch):
    """With tiles of one group of columns."""
    monkeypatch.setattr(kernels, "THREADS", 4)
    _compare(_made(3, each * layers, 4, torch.float32), layers, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_posterior_near_its_prior_has_a_divergence_with_all_its_digits(dtype):
    """Rows of one column, so that nothing is summed; both sides of where a series takes over."""
    size = torch.cat([2.0 ** -torch.arange(0, 13, dtype=torch.float64), torch.tensor([0.999, 1.001, 2.0]).double()])
    logvar = torch.cat([size, -size]).to(dtype)[:, None].requires_grad_()
    with pgm_fast.backend("triton"):
        _, kl = gaussian_sample_kl(torch.zeros_like(logvar), logvar, sample=False, layers=1)
        (gradient,) = torch.autograd.grad(kl.sum(), logvar)
    r = logvar.detach().double()
    terms = [r**n / float(math.factorial(n)) for n in range(2, 30)]
    for got, want in ((kl, 0.5 * sum(reversed(terms))), (gradient, 0.5 * (r + sum(reversed(terms))))):
        torch.testing.assert_close(got.double(), want, rtol=EXP_LESS_LINE * EPS[dtype], atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2**61 + 12345, 2**62 - 1])
def test_the_noise_is_that_of_the_second_implementation(seed):
    with pgm_fast.backend("triton"):
        for dtype in (torch.float64, torch.float32):
            still = torch.zeros(5, 200, dtype=dtype)
            z, _ = gaussian_sample_kl(still, still, seed=torch.tensor([seed]))
            bound = NATIVE_TIMES_EPS * EPS[dtype]
            torch.testing.assert_close(z.double(), torch.from_numpy(normals(seed, 5, 200)), rtol=bound, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_and_bits_belong_to_their_row_and_column(dtype):
    mu, logvar = (x.detach() for x in _made(70, 200, 2, dtype))
    with pgm_fast.backend("triton"):
        whole, kl = gaussian_sample_kl(mu, logvar, seed=SEED, layers=1)
        first, first_kl = gaussian_sample_kl(mu[:7], logvar[:7], seed=SEED, layers=1)
        narrow = gaussian_sample_kl(mu[:, :33], logvar[:, :33], seed=SEED)[0]
        other = gaussian_sample_kl(mu, logvar, seed=SEED + 1)[0]
    assert torch.equal(whole[:7], first) and torch.equal(kl[:7], first_kl) and torch.equal(whole[:, :33], narrow)
    assert (whole != other).float().mean() > 0.9


def test_rows_that_lie_apart_are_read_where_they_lie(monkeypatch):
    """Halves of a matrix, a prior that is one row for all, gradients that are columns of a wider table."""
    both, prior = torch.randn(5, 140).requires_grad_(), torch.randn(2, 1, 70).requires_grad_()
    beside = torch.randn(5, 3)

    def run(densely):
        tensors = [*both.chunk(2, -1), *prior.expand(-1, 5, -1).unbind(0)]
        if densely:
            tensors = [x.contiguous() for x in tensors]
        z, kl = gaussian_sample_kl(*tensors, seed=SEED, layers=2)
        table = torch.cat([beside, z, kl, beside], 1)
        return torch.autograd.grad((table * torch.arange(table.shape[1])).sum(), (both, prior))

    with pgm_fast.backend("triton"):
        dense = run(True)
        monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: x if x.is_contiguous() else pytest.fail("a copy"))
        apart = run(False)
    assert all(torch.equal(a, b) for a, b in zip(apart, dense, strict=True))


def test_what_lies_around_the_tensors_is_neither_read_nor_written():
    whole = [torch.full((9, 43), float("nan")) for _ in range(4)]
    inner = [x[2:7, 3:40] for x in whole]
    for x in inner:
        x.normal_()
    leaves = [x.detach().requires_grad_() for x in inner]
    assert all(x.isfinite().all() for x in _results("triton", leaves, 1, True))
    assert all(x.isnan().sum() == x.numel() - 5 * 37 for x in whole)


def test_extreme_variances_stay_what_they_are_in_torch():
    logvar = torch.tensor([[-300.0, 300.0, -80.0, 80.0, 0.0]])
    with pgm_fast.backend("triton"):
        z, kl = gaussian_sample_kl(torch.zeros(1, 5), logvar, seed=SEED)
    assert z[0, 0] == 0 and z[0, 1].isinf() and kl.isinf() and z[0, 2:].isfinite().all()


def test_extreme_log_variances_give_the_divergence_of_the_formula():
    logvar = torch.tensor([-1e30, -300.0, -104.0, -88.0, -50.0, 50.0, 80.0, 88.0, 100.0, 1e30])[
        :, None
    ].requires_grad_()
    with pgm_fast.backend("triton"):
        _, kl = gaussian_sample_kl(torch.zeros_like(logvar), logvar, sample=False, layers=1)
        (gradient,) = torch.autograd.grad(kl.sum(), logvar)
    exact = logvar.detach().double()
    # an argument of 88 that is rounded is off by 88 units at most
    bound = (EXP_LESS_LINE + 88) * EPS[torch.float32]
    for got, formula in ((kl, torch.expm1(exact) - exact), (gradient, torch.expm1(exact))):
        torch.testing.assert_close(got, (0.5 * formula).float(), rtol=bound, atol=0)
