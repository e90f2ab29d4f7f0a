"""The boundary partition's kernels against the reference, and what boundaries and widths may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BOUNDARIES, boundary_call, forward_and_gradients
from pgm_fast.kernels import partition_boundary as kernels
from tolerances import EPS, NATIVE_TIMES_EPS, SCAN_FP32, steps

import pgm_fast
from pgm_fast.ops import partition_boundary

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
by_op = pytest.mark.parametrize("op", BOUNDARIES)


def _compare(run, tensors):
    results = []
    for backend in ("triton", "torch"):
        with pgm_fast.backend(backend):
            results.append(sum(forward_and_gradients(run, tensors), []))
    for a, b in zip(*results, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (a.dtype != torch.float64)) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@settings(max_examples=20)
@given(
    op=st.sampled_from(sorted(BOUNDARIES)),
    rows=st.integers(0, 12),
    d=st.integers(1, 70),
    dtype=dtypes,
    b_dtype=dtypes,
    width=st.sampled_from([0.05, 0.12, 1.0, 50.0]),
    floor=st.sampled_from([0.0, 0.3, 0.99]),
    detached=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_on_every_shape_and_dtype(op, rows, d, dtype, b_dtype, width, floor, detached, seed):
    if (dtype == torch.float64) != (b_dtype == torch.float64):
        b_dtype = dtype
    _compare(*boundary_call(op, rows, d, dtype, b_dtype, width, floor, detached, seed))


@by_op
@pytest.mark.parametrize(("d", "detached"), [(33, False), (64, False), (50, True)])
def test_rows_longer_than_a_block_carry_their_sums(op, d, detached, monkeypatch):
    """With blocks of 8 gates, so that every carry is used."""
    monkeypatch.setattr(kernels, "LONGEST_FORWARD", 16)
    monkeypatch.setattr(kernels, "LONGEST_BACKWARD", 16)
    _compare(*boundary_call(op, 3, d, torch.float32, torch.float32, 0.12, 0.1, detached, 0))


@by_op
def test_what_lies_around_the_tensors_is_neither_read_nor_written(op):
    whole = [torch.full((9, n), float("nan")) for n in (37, 1, 1)]
    for x in whole:
        x[2:7].normal_()
    with pgm_fast.backend("triton"):
        result, gradients = forward_and_gradients(BOUNDARIES[op], [x[2:7] for x in whole])
    assert all(x.isfinite().all() for x in result + gradients)
    assert all(x[:2].isnan().all() and x[7:].isnan().all() for x in whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_boundary_that_is_not_finite_reaches_the_outputs_of_its_row(value):
    h, b = torch.randn(2, 40), torch.tensor([[0.5], [value]])
    with pgm_fast.backend("triton"):
        uni, paired, share = partition_boundary(h, b, b, return_share=True)
    assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all() and share[1].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_entry_that_is_not_finite_stays_its_own(value):
    h, b = torch.randn(2, 40), torch.rand(2, 1)
    h[1, 7] = value
    with pgm_fast.backend("triton"):
        uni, paired, share = partition_boundary(h, b, b, floor=0.1, return_share=True)
    for part in (uni, paired):
        assert torch.equal(part.isfinite(), h.isfinite())
    assert share.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1e-200, 1e-30, 1e-4, 1e30, 1e200])
def test_boundaries_out_of_sight_and_edges_of_any_sharpness_give_shares(width, dtype):
    """All or nothing beyond the row, a step at a sharp edge, a slope along the whole row at none; and gradients."""
    d = 50
    places = torch.tensor([-3e38, -1e18, -2.0, 0.3, 0.5, 3.0, 1e18, 3e38], dtype=dtype).unsqueeze(1)
    tensors = [torch.ones(len(places), d, dtype=dtype), places, places.flip(0)]
    with pgm_fast.backend("triton"):
        (*_, share), gradients = forward_and_gradients(
            lambda *x: partition_boundary(*x, width, return_share=True), tensors
        )
    wide = width > 1
    for gate, b in ((share[:, 0], places), (share[:, 1], places.flip(0))):
        want = torch.full_like(share[:, 0], 0.5) if wide else b.clamp(0, 1).squeeze(1)
        torch.testing.assert_close(gate + share[:, 2], want, rtol=0, atol=steps(d) + SCAN_FP32)
    assert all(x.isfinite().all() for x in gradients)


def test_a_row_has_the_same_bits_in_every_batch_and_with_its_share_too():
    h, b_uni, b_paired = torch.randn(2, 3, 100), torch.rand(2, 3, 1), torch.rand(2, 3, 1)
    with pgm_fast.backend("triton"):
        whole, alone = (partition_boundary(h[some], b_uni[some], b_paired[some]) for some in (..., slice(1, 2)))
        *beside, _ = partition_boundary(h, b_uni, b_paired, return_share=True)
    assert all(torch.equal(a[1:2], b) and torch.equal(a, c) for a, b, c in zip(whole, alone, beside, strict=True))
