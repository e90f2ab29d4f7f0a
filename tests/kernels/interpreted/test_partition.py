"""Partition kernels against the reference: every way in which rows and gates are laid over programs."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import PARTITIONS, forward_and_gradients
from tolerances import EPS, NATIVE_TIMES_EPS, summed_by_gates

import pgm_fast
from pgm_fast import ops

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def _compare(op, h, logits, temperature):
    run, _ = PARTITIONS[op]
    with pgm_fast.backend("triton"):
        got = sum(forward_and_gradients(run, [h, *logits], temperature=temperature), [])
    with pgm_fast.backend("torch"):
        parts, gradients = forward_and_gradients(run, [h, *logits], temperature=temperature)
    least = [1.0] * (len(parts) + 1) + [max(1.0, summed_by_gates(h))] * len(logits)
    for a, b, scale in zip(got, [*parts, *gradients], least, strict=True):
        scale = max(scale, b.abs().max().item()) if b.numel() else scale
        bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (a.dtype != torch.float64)) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@settings(max_examples=15)
@given(
    op=st.sampled_from(sorted(PARTITIONS)),
    rows=st.integers(0, 12),
    gates=st.integers(1, 70),
    chunk=st.integers(1, 5),
    dtype=dtypes,
    z_dtype=dtypes,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_on_every_shape_and_dtype(op, rows, gates, chunk, dtype, z_dtype, temperature, seed):
    if (dtype == torch.float64) != (z_dtype == torch.float64):
        z_dtype = dtype
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, gates * chunk, generator=generator).to(dtype)
    logits = [torch.randn(rows, gates, generator=generator).to(z_dtype) for _ in range(PARTITIONS[op][1])]
    _compare(op, h, logits, temperature)


@pytest.mark.parametrize("op", sorted(PARTITIONS))
@pytest.mark.parametrize(("gates", "chunk"), [(33, 1), (64, 1), (40, 3), (17, 300), (1, 2500)])
def test_rows_longer_than_a_block_carry_their_sums(op, gates, chunk, monkeypatch):
    """With blocks of 8 gates, so that every carry is used; the last shapes take a gate's entries in pieces."""
    kernels = importlib.import_module(f"pgm_fast.kernels.{op.removesuffix('_with_share')}")
    monkeypatch.setattr(kernels, "LONGEST_FORWARD", 16)
    monkeypatch.setattr(kernels, "LONGEST_BACKWARD", 16)
    h, *logits = (torch.randn(3, n) for n in (gates * chunk, *[gates] * PARTITIONS[op][1]))
    _compare(op, h, logits, 0.7)


@pytest.mark.parametrize("op", sorted(PARTITIONS))
def test_what_lies_around_the_tensors_is_neither_read_nor_written(op):
    run, count = PARTITIONS[op]
    whole = [torch.full((9, 37), float("nan")) for _ in range(count + 1)]
    for x in whole:
        x[2:7] = torch.randn(5, 37)
    with pgm_fast.backend("triton"):
        result, gradients = forward_and_gradients(run, [x[2:7] for x in whole])
    assert all(x.isfinite().all() for x in result + gradients)
    assert all(x[:2].isnan().all() and x[7:].isnan().all() for x in whole)


def test_complement_keeps_its_digits_where_the_gate_is_near_one():
    z = torch.tensor([[60.0] + [0.0] * 15])
    with pgm_fast.backend("triton"):
        uni, _ = ops.partition(torch.ones(1, 16), z)
    exact = torch.softmax(z.double(), -1).flip(-1).cumsum(-1).flip(-1)[:, 1:]
    torch.testing.assert_close(uni[:, :-1].double(), exact, rtol=NATIVE_TIMES_EPS * EPS[torch.float32], atol=0)


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_logits_and_temperatures_stay_finite(temperature):
    h, z = torch.ones(2, 3), torch.tensor([[1e30, -1e30, 0.0], [-1e30, 1e30, 1e30]])
    with pgm_fast.backend("triton"):
        assert all(x.isfinite().all() for x in (*ops.partition(h, z), *ops.partition(h, z * 1e-30, temperature)))


def test_nan_reaches_the_outputs():
    h, z = torch.randn(2, 40), torch.randn(2, 40)
    z[1, 39] = float("nan")
    with pgm_fast.backend("triton"):
        uni, paired, share = ops.partition(h, z, return_share=True)
    assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all() and share[1].isnan().all()


def test_a_row_has_the_same_bits_in_every_batch():
    h, z = torch.randn(7, 100), torch.randn(7, 100)
    with pgm_fast.backend("triton"):
        whole, alone = ops.partition(h, z), ops.partition(h[4:5], z[4:5])
    assert all(torch.equal(a[4:5], b) for a, b in zip(whole, alone, strict=True))
