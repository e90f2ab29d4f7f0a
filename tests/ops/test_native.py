"""The compiled CPU kernels: there where they were built, and equal to the reference on every width and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BOUNDARIES, PARTITIONS, boundary_call, forward_and_gradients
from tolerances import (
    EPS,
    FP32,
    FP64,
    NATIVE_TIMES_EPS,
    ROW_OF_40_UNDERFLOWS,
    SUM_OF_2500_ROWS_FP64,
    steps,
    summed_by_gates,
)

import pgm_fast
from pgm_fast import backends, ops
from pgm_fast.backends import host, selection

_reason = backends.implementations()["partition"]["native"]
pytestmark = pytest.mark.skipif(_reason is not None, reason=f"compiled kernels: {_reason}")

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@settings(max_examples=150)
@given(
    op=st.sampled_from(sorted(PARTITIONS)),
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
    run, count = PARTITIONS[op]
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, gates * chunk, generator=generator).to(dtype)
    logits = [(spread * torch.randn(rows, gates, generator=generator)).to(z_dtype) for _ in range(count)]
    _compare(run, [h, *logits], threads)


@settings(max_examples=100)
@given(
    op=st.sampled_from(sorted(BOUNDARIES)),
    rows=st.integers(0, 40),
    d=st.integers(1, 300),
    dtype=dtypes,
    b_dtype=dtypes,
    width=st.sampled_from([0.03, 0.12, 1.0, 1e3]),
    floor=st.sampled_from([0.0, 0.3]),
    detached=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_boundaries_equal_the_reference_on_every_shape_and_dtype(
    op, rows, d, dtype, b_dtype, width, floor, detached, threads, seed
):
    if (dtype == torch.float64) != (b_dtype == torch.float64):
        b_dtype = dtype
    _compare(*boundary_call(op, rows, d, dtype, b_dtype, width, floor, detached, seed), threads)


def _compare(run, tensors, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pgm_fast.backend("native"):
            got = sum(forward_and_gradients(run, tensors), [])
    finally:
        torch.set_num_threads(before)
    with pgm_fast.backend("torch"):
        parts, gradients = forward_and_gradients(run, tensors)
    least = [1.0] * (len(parts) + 1) + [max(1.0, summed_by_gates(tensors[0]))] * (len(tensors) - 1)
    for a, b, scale in zip(got, [*parts, *gradients], least, strict=True):
        scale = max(scale, b.abs().max().item()) if b.numel() else scale
        bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (a.dtype != torch.float64)) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("rows", [3, 6000])
def test_large_operands_that_bypass_the_cache_are_written_whole(rows):
    """6000 rows are past the size from which outputs are streamed; the first rows must be those of the small call."""
    h, z_uni, z_paired = (torch.randn(rows, 256) for _ in range(3))
    with pgm_fast.backend("native"):
        whole, first = (
            [
                *ops.partition(h[some], z_uni[some]),
                *ops.partition_dual(h[some], z_uni[some], z_paired[some]),
                *ops.partition_boundary(h[some], z_uni[some, :1], z_paired[some, :1]),
            ]
            for some in (slice(None), slice(3))
        )
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
        uni, paired, share = ops.partition(h, z, return_share=True)
    assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all()  # the last uni gate is 0 by definition
    assert share[1].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_boundary_that_is_not_finite_reaches_the_outputs_of_its_row(value):
    h, b = torch.randn(2, 40), torch.tensor([[0.5], [value]])
    with pgm_fast.backend("native"):
        uni, paired, share = ops.partition_boundary(h, b, b, return_share=True)
    assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all() and share[1].isnan().all()


@pytest.mark.parametrize("width", [1e-30, 1e-4, 1e30])
@pytest.mark.parametrize("b", [-1e18, -2.0, 0.3, 3.0, 1e18])
def test_boundaries_out_of_sight_and_edges_of_any_sharpness_give_shares(b, width):
    """All or nothing beyond the row, a step at a sharp edge, a slope along the whole row at none."""
    d = 50
    with pgm_fast.backend("native"):
        *_, share = ops.partition_boundary(
            torch.ones(1, d), torch.tensor([[b]]), torch.tensor([[0.0]]), width, return_share=True
        )
    taken = share[0, 0] + share[0, 2]
    want = 0.5 if width == 1e30 else min(max(b, 0.0), 1.0)
    assert abs(taken.item() - want) <= steps(d)


def test_mixed_double_and_single_precision_falls_back():
    h, z = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8)
    uni, paired = ops.partition(h, z)
    torch.testing.assert_close(uni + paired, h, rtol=FP32, atol=FP32)
    with pgm_fast.backend("native"), pytest.raises(pgm_fast.PgmFastError, match="does not mix"):
        ops.partition(h, z)


@pytest.mark.parametrize("op", ["partition", "partition_dual", "partition_boundary"])
def test_cuda_kernels_take_no_more_gates_than_the_memory_of_a_block_has_sums_for(op):
    for d in (32768, 32769):
        h, z = (torch.empty(2, n, device="meta") for n in (d, 1 if op == "partition_boundary" else d))
        logits, numbers = ([z], (1.0,)) if op == "partition" else ([z, z], (0.1, 0.0, False))
        forward, backward = [h, *logits], [h] * (3 if op == "partition_dual" else 2) + [None, h, *logits]
        for name, tensors in ((op, forward), (f"{op}_backward", backward)):
            (kernel,) = (x for served, x in selection._implementations[name]["native"].items() if "cuda" in served)
            reason = kernel.refuse(*tensors, *numbers)
            assert reason is None if d == 32768 else "at most 32768 gates" in reason


@pytest.mark.skipif(host.load_or_none() is None, reason="the host path is not built here")
@pytest.mark.parametrize(
    ("activation", "threads", "d", "n_uni", "n_paired"),
    [
        pytest.param(None, 1, 24, 7, 5, id="narrow"),
        pytest.param("relu", 2, 24, 7, 5, id="narrow, sums of two threads"),
        pytest.param("gelu", 1, 24, 7, 30, id="operands in rows of the output"),
        pytest.param(None, 2, 24, 7, 30, id="operands in rows of the output, two threads"),
        pytest.param("relu", 1, 256, 300, 300, id="weights past the cache"),
    ],
)
def test_projections_in_blocks_equal_the_reference(activation, d, n_uni, n_paired, threads):
    """2500 rows are whole blocks and a rest, in float64 so that only a wrong row or sum can show."""
    shapes = [(2500, d), (2500, d // 2), (n_uni, d), (n_uni,), (n_paired, d), (n_paired,)]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    before, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for backend in ("native", "native", "torch"):
            with pgm_fast.backend(backend):
                results.append(sum(forward_and_gradients(ops.partitioned_linear, tensors, activation=activation), []))
    finally:
        torch.set_num_threads(before)
    once, again, reference = results
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for a, b in zip(once, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=SUM_OF_2500_ROWS_FP64)


@pytest.mark.parametrize("op", sorted(PARTITIONS))
def test_logits_past_the_range_of_exp_share_the_row_as_the_formula_does(op):
    """Masked logits, ties, and distances that leave nothing of the smaller ones."""
    run, count = PARTITIONS[op]
    rows = [
        [0.0, -float("inf"), 1.0, -float("inf")] * 10,
        [1e30, -1e30, 1e30, 0.0] * 10,
        [3e38] * 40,
        [-80.0 * k for k in range(40)],
        [-2.0 * k for k in range(40)],
    ]
    z = torch.tensor(rows)
    tensors = [torch.ones_like(z), *([z] * count)]
    with pgm_fast.backend("native"):
        got = run(*tensors)
    with pgm_fast.backend("torch"):
        want = run(*(x.double() for x in tensors))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=NATIVE_TIMES_EPS * EPS[torch.float32], atol=ROW_OF_40_UNDERFLOWS)
