"""The sample's noise is replayed exactly, belongs to row and column alone, and the divergence is a mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import SEED
from tolerances import (
    DIVERGENCE_OF_17,
    EPS,
    EXP_LESS_LINE,
    FP64,
    GRADIENT_OF_DIVERGENCE,
    NATIVE_TIMES_EPS,
    ROW_WEIGHT_FP32,
    mean_of_draws,
)

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import gaussian_sample_kl
from pgm_fast.ops.philox import normal

_native = backends.implementations()["gaussian_sample_kl"]["native"] is None
BACKENDS = ["torch", *(["native"] if _native else [])]
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def _made(rows=6, d=70, count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)]


@on_every_backend
def test_the_replayed_gradient_is_that_of_stored_noise(backend):
    mu, logvar = _made()
    direction = torch.randn_like(mu)
    with pgm_fast.backend(backend):
        z, _ = gaussian_sample_kl(mu, logvar)
        got = torch.autograd.grad((z * direction).sum(), (mu, logvar))
    stored = ((z - mu) / torch.exp(0.5 * logvar)).detach()
    want = torch.autograd.grad(((mu + torch.exp(0.5 * logvar) * stored) * direction).sum(), (mu, logvar))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_noise_belongs_to_its_row_and_column(backend, dtype):
    """Rows added behind, or columns, change no number of those before, however many lanes or threads work."""
    mu, logvar = (x.detach() for x in _made(300, 200, dtype=dtype))
    with pgm_fast.backend(backend):
        whole = gaussian_sample_kl(mu, logvar, seed=SEED)[0]
        assert torch.equal(whole[:7], gaussian_sample_kl(mu[:7], logvar[:7], seed=SEED)[0])
        assert torch.equal(whole[:, :33], gaussian_sample_kl(mu[:, :33], logvar[:, :33], seed=SEED)[0])
        other = gaussian_sample_kl(mu, logvar, seed=SEED + 1)[0]
    assert (whole != other).float().mean() > 0.9


def test_a_saved_generator_state_brings_the_noise_back():
    mu, logvar = (x.detach() for x in _made())
    state = torch.get_rng_state()
    first, second = (gaussian_sample_kl(mu, logvar)[0] for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(gaussian_sample_kl(mu, logvar)[0], first) and not torch.equal(first, second)
    before = torch.get_rng_state()
    own = [gaussian_sample_kl(mu, logvar, generator=torch.Generator().manual_seed(5))[0] for _ in range(2)]
    assert torch.equal(*own) and torch.equal(torch.get_rng_state(), before)


def test_without_a_sample_z_is_mu_and_no_number_is_drawn():
    mu, logvar = _made()
    before = torch.get_rng_state()
    z, kl = gaussian_sample_kl(mu, logvar, sample=False)
    assert z is mu and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(kl, gaussian_sample_kl(mu, logvar, seed=SEED)[1])


@on_every_backend
def test_the_divergence_is_a_mean_over_rows_and_dimensions_and_agrees_with_torch(backend):
    distributions = torch.distributions
    mu, logvar, prior_mu, prior_logvar = _made(count=4)
    with pgm_fast.backend(backend):
        _, kl = gaussian_sample_kl(mu, logvar, prior_mu, prior_logvar)
        weight = torch.rand(len(mu), dtype=torch.float64)
        _, weighted = gaussian_sample_kl(mu, logvar, prior_mu, prior_logvar, row_weight=weight)
        _, standard = gaussian_sample_kl(mu, logvar, torch.zeros_like(mu), torch.zeros_like(mu))
        _, none_given = gaussian_sample_kl(mu, logvar)
    q, p = (distributions.Normal(m, torch.exp(0.5 * x)) for m, x in ((mu, logvar), (prior_mu, prior_logvar)))
    each = distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl, each.mean(), rtol=FP64, atol=FP64)
    torch.testing.assert_close(weighted, (each.mean(1) * weight).sum(), rtol=FP64, atol=FP64)
    torch.testing.assert_close(none_given, standard, rtol=FP64, atol=FP64)


def test_halves_of_one_matrix_are_read_where_they_lie():
    both = torch.randn(2, 5, 140).requires_grad_()
    mu, logvar = both.chunk(2, -1)
    z, kl = gaussian_sample_kl(mu, logvar, seed=SEED, layers=2)
    (strided,) = torch.autograd.grad(z.sum() + kl.sum(), both)
    a, b = (x.detach().contiguous().requires_grad_() for x in (mu, logvar))
    z_dense, kl_dense = gaussian_sample_kl(a, b, seed=SEED, layers=2)
    assert z.shape == (2, 5, 70) and kl.shape == (2, 5, 2)
    assert torch.equal(z, z_dense) and torch.equal(kl, kl_dense)
    dense = torch.autograd.grad(z_dense.sum() + kl_dense.sum(), (a, b))
    assert torch.equal(strided, torch.cat(dense, -1))


def test_extreme_variances_stay_what_they_are_in_torch():
    logvar = torch.tensor([[-300.0, 300.0, -80.0, 80.0, 0.0]])
    results = []
    for backend in BACKENDS:
        with pgm_fast.backend(backend):
            results.append(gaussian_sample_kl(torch.zeros(1, 5), logvar, seed=SEED))
    for z, kl in results:
        assert z[0, 0] == 0 and z[0, 1].isinf() and kl.isinf()
        assert z[0, 2:].isfinite().all()


@pytest.mark.skipif(not _native, reason="the compiled kernels are not there")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["standard", "given"])
def test_a_posterior_near_its_prior_has_a_divergence_with_all_its_digits(dtype, given):
    """Rows of 17 equal columns, whole vectors and a rest; both sides of where a series takes over."""
    size = torch.cat([2.0 ** -torch.arange(0, 13, dtype=torch.float64), torch.tensor([0.999, 1.001, 2.0]).double()])
    logvar = torch.cat([size, -size]).to(dtype)[:, None].expand(-1, 17).clone().requires_grad_()
    prior = [torch.zeros_like(logvar)] * 2 if given else []
    with pgm_fast.backend("native"):
        _, kl = gaussian_sample_kl(torch.zeros_like(logvar), logvar, *prior, sample=False, layers=1)
        (gradient,) = torch.autograd.grad(kl.sum(), logvar)
    r = logvar.detach().double()
    terms = [r**n / float(math.factorial(n)) for n in range(2, 30)]
    divergence = 0.5 * sum(reversed(terms))
    torch.testing.assert_close(kl.double(), divergence[:, :1], rtol=DIVERGENCE_OF_17 * EPS[dtype], atol=0)
    want = (divergence + 0.5 * r) / 17
    torch.testing.assert_close(gradient.double(), want, rtol=GRADIENT_OF_DIVERGENCE * EPS[dtype], atol=0)


@on_every_backend
@pytest.mark.parametrize("given", [False, True], ids=["standard", "given"])
@pytest.mark.parametrize("sample", [False, True], ids=["still", "sampled"])
def test_extreme_log_variances_give_what_the_formula_gives(backend, given, sample):
    """As far as fp32 holds it: finite numbers to a few roundings, infinity where it is past the largest."""
    logvar = torch.tensor([-1e30, -300.0, -104.0, -88.0, -50.0, 50.0, 80.0, 88.0, 100.0, 1e30])[:, None]
    if sample:
        logvar = logvar[:-1]  # at 1e30 the sample itself is infinite, and 0 times it no number
    prior = [torch.zeros_like(logvar)] * 2 if given else []
    with pgm_fast.backend(backend):
        leaf = logvar.clone().requires_grad_()
        z, kl = gaussian_sample_kl(torch.zeros_like(leaf), leaf, *prior, seed=SEED, sample=sample, layers=1)
        (gradient,) = torch.autograd.grad(kl.sum(), leaf)
    exact = logvar.double()
    # an argument of 88 that is rounded, or halved, scaled and squared as the sample's is, is off by 88 units at most
    bound = (EXP_LESS_LINE + 88) * EPS[torch.float32]
    want = 0.5 * (torch.expm1(exact) - exact), 0.5 * torch.expm1(exact)
    for got, formula in zip((kl, gradient), want, strict=True):
        torch.testing.assert_close(got, formula.float(), rtol=bound, atol=0)


@pytest.mark.skipif(not _native, reason="the compiled kernels are not there")
@settings(max_examples=100)
@given(
    rows=st.integers(0, 40),
    each=st.integers(1, 140),
    layers=st.integers(1, 3),
    prior=st.booleans(),
    sample=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    threads=st.sampled_from([1, 2]),
)
def test_the_kernel_equals_the_reference_on_every_shape_and_dtype(rows, each, layers, prior, sample, dtype, threads):
    tensors = [x.detach().requires_grad_() for x in _made(rows, each * layers, 4 if prior else 2, dtype)]
    before, results = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for backend in ("native", "torch"):
            with pgm_fast.backend(backend):
                z, kl = gaussian_sample_kl(*tensors, seed=SEED, sample=sample, layers=layers)
                total = (z.to(kl.dtype) * 1.5).sum() + (kl * torch.arange(1, layers + 1)).sum()
                results.append([z, kl, *torch.autograd.grad(total, tensors)])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@pytest.mark.skipif(not _native, reason="the compiled kernels are not there")
def test_large_operands_that_bypass_the_cache_are_written_whole():
    mu, logvar = (x.requires_grad_() for x in torch.randn(2, 9000, 256))
    with pgm_fast.backend("native"):
        z, kl = gaussian_sample_kl(mu, logvar, seed=SEED)
        whole = [z, *torch.autograd.grad(z.sum() + 9000 * kl, (mu, logvar))]
        z, kl = gaussian_sample_kl(mu[:3], logvar[:3], seed=SEED)
        first = [z, *torch.autograd.grad(z.sum() + 3 * kl, (mu, logvar))]
    for a, b in zip(whole, first, strict=True):
        torch.testing.assert_close(a[:3], b[:3], rtol=ROW_WEIGHT_FP32, atol=0)


def test_compiles_with_the_seed_drawn_inside():
    mu, logvar = (x.float().detach() for x in _made())
    compiled = torch.compile(gaussian_sample_kl, fullgraph=True, backend="aot_eager")
    torch.manual_seed(7)
    z, kl = compiled(mu, logvar)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip((z, kl), gaussian_sample_kl(mu, logvar), strict=True))
    noise = (z - mu) / torch.exp(0.5 * logvar)
    assert noise.std() > 0.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 3}, TypeError, "seed must be an int64 tensor, got int"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, ValueError, r"seed must have shape \[1\]"),
        ({"prior_mu": torch.zeros(4, 6)}, ValueError, "prior_logvar must be given with prior_mu"),
        ({"layers": 4}, ValueError, r"divides the last dimension \(6\), got 4"),
        ({"layers": 2, "row_weight": torch.ones(4)}, ValueError, "row_weight must be None"),
        ({"logvar": torch.zeros(4, 6).double()}, TypeError, "logvar must have the dtype of mu"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"mu": torch.zeros(4, 6), "logvar": torch.zeros(4, 6), **change}
    with pytest.raises(error, match=message):
        gaussian_sample_kl(**arguments)


def test_the_reference_noise_is_standard_normal():
    noise = normal(SEED, 2000, 100, torch.float64)
    n = noise.numel()
    assert noise.mean().abs() < mean_of_draws(1.0, n)
    assert (noise.square().mean() - 1).abs() < mean_of_draws(math.sqrt(2.0), n)
