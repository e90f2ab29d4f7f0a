"""The compiled CPU kernels: there where they were built, and equal to the reference on every width and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import forward_and_gradients
from tolerances import EPS, FP32, FP64, NATIVE_TIMES_EPS, SUM_OF_2500_ROWS_FP64

import pgm_fast
from pgm_fast import backends, host, ops

_reason = backends.implementations()["partition"]["native"]
pytestmark = pytest.mark.skipif(_reason is not None, reason=f"compiled kernels: {_reason}")

OPS = {"partition": (ops.partition, 1), "partition_dual": (ops.partition_dual, 2)}
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@settings(deadline=None, max_examples=150)
@given(
    op=st.sampled_from(sorted(OPS)),
    rows=st.integers(0, 40),
    gates=st.integers(1, 70),
    chunk=st.integers(1, 5),
    dtype=dtypes,
    z_dtype=dtypes,
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_on_every_shape_and_dtype(op, rows, gates, chunk, dtype, z_dtype, spread, threads, seed):
    if (dtype == torch.float64) != (z_dtype == torch.float64):
        z_dtype = dtype
    run, count = OPS[op]
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, gates * chunk, generator=generator).to(dtype)
    logits = [(spread * torch.randn(rows, gates, generator=generator)).to(z_dtype) for _ in range(count)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pgm_fast.backend("native"):
            got = sum(forward_and_gradients(run, [h, *logits]), [])
    finally:
        torch.set_num_threads(before)
    with pgm_fast.backend("torch"):
        want = sum(forward_and_gradients(run, [h, *logits]), [])
    for a, b in zip(got, want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (a.dtype != torch.float64)) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("rows", [3, 6000])
def test_large_operands_that_bypass_the_cache_are_written_whole(rows):
    """6000 rows are past the size from which outputs are streamed; the first rows must be those of the small call."""
    h, z_uni, z_paired = (torch.randn(rows, 256) for _ in range(3))
    with pgm_fast.backend("native"):
        whole = [*ops.partition(h, z_uni), *ops.partition_dual(h, z_uni, z_paired)]
        first = [*ops.partition(h[:3], z_uni[:3]), *ops.partition_dual(h[:3], z_uni[:3], z_paired[:3])]
    assert all(x.isfinite().all() for x in whole)
    assert all(torch.equal(a[:3], b) for a, b in zip(whole, first, strict=True))


def test_the_number_of_threads_does_not_change_a_bit():
    tensors = [torch.randn(999, 96) for _ in range(3)]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pgm_fast.backend("native"):
            results.append(sum(forward_and_gradients(ops.partition_dual, tensors), []))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nan_reaches_the_outputs():
    """The trainer's guard against non-finite steps relies on it."""
    h, z = torch.randn(2, 40), torch.randn(2, 40)
    z[1, 39] = float("nan")
    with pgm_fast.backend("native"):
        uni, paired = ops.partition(h, z)
    assert uni[0].isfinite().all() and paired[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all()  # the last uni gate is 0 by definition


def test_mixed_double_and_single_precision_falls_back():
    h, z = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8)
    uni, paired = ops.partition(h, z)
    torch.testing.assert_close(uni + paired, h, rtol=FP32, atol=FP32)
    with pgm_fast.backend("native"), pytest.raises(pgm_fast.PgmFastError, match="does not mix"):
        ops.partition(h, z)


@pytest.mark.skipif(host.load_or_none() is None, reason="the host path is not built here")
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_projections_in_blocks_equal_the_reference(activation):
    """2500 rows are two whole blocks and a rest, in float64 so that only a wrong row or sum can show."""
    shapes = [(2500, 24), (2500, 12), (7, 24), (7,), (5, 24), (5,)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    results = []
    for backend in ("native", "torch"):
        with pgm_fast.backend(backend):
            results.append(sum(forward_and_gradients(ops.partitioned_linear, tensors, activation=activation), []))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=SUM_OF_2500_ROWS_FP64)
