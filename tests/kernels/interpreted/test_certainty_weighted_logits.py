"""The kernel of certainty-weighted heads against the reference: absent heads, many classes, ties, counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import forward_and_gradients
from pgm_fast.kernels import mixtures
from tolerances import EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast.ops import certainty_weighted_logits, certainty_weighted_prediction

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def _made(rows, classes, heads, dtype=torch.float32):
    """Logits whose maxima are no ties, which 16 bits have many of: there a gradient has a choice."""
    steps = torch.rand(heads, rows, classes).argsort(-1) - classes / 2
    return [x.to(dtype) for x in (steps / 8).unbind(0)]


def _compare(logits, present, temperature):
    results = []
    for backend in ("triton", "torch"):
        with pgm_fast.backend(backend):
            made = forward_and_gradients(lambda *z: certainty_weighted_logits(z, temperature, present), logits)
            results.append(sum(made, []))
    for a, b in zip(*results, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@settings(max_examples=10)
@given(
    rows=st.integers(0, 30),
    classes=st.integers(1, 40),
    heads=st.integers(1, 5),
    masked=st.booleans(),
    dtype=dtypes,
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_equals_the_reference_on_every_shape_and_dtype(rows, classes, heads, masked, dtype, temperature):
    present = torch.rand(rows, heads) < 0.6 if masked else None
    _compare(_made(rows, classes, heads, dtype), present, temperature)


@pytest.mark.parametrize("classes", [33, 48])
def test_rows_of_more_classes_than_a_program_holds(classes, monkeypatch):
    monkeypatch.setattr(mixtures, "THREADS", 8)
    _compare(_made(3, classes, 3), None, 0.3)
    logits = [torch.zeros(2, classes)]
    logits[0][0, [classes - 1, 20]] = 2.0  # a tie: the first of them
    with pgm_fast.backend("triton"):
        assert certainty_weighted_prediction(logits).classes.tolist() == [20, 0]


def test_predictions_are_of_what_is_returned_and_are_counted():
    logits, labels = list(torch.randn(3, 90, 7)), torch.randint(-1, 8, (90,))
    present = torch.rand(90, 3) < 0.6
    present[0] = False
    with pgm_fast.backend("triton"):
        for mask in (present, None):
            fused, weights = certainty_weighted_logits(logits, 0.3, mask)
            got = certainty_weighted_prediction(logits, 0.3, mask, labels)
            assert torch.equal(got.fused, fused) and torch.equal(got.weights, weights)
            assert torch.equal(got.classes, fused.argmax(1)) and got.correct == (got.classes == labels).sum()
            assert certainty_weighted_prediction(logits, 0.3, mask).correct == 0


@pytest.mark.parametrize("temperature", [1e-3, 1e300])
def test_extreme_logits_and_temperatures_stay_finite(temperature):
    z = torch.tensor([[1e30, -1e30], [-1e4, 1e4]])
    with pgm_fast.backend("triton"):
        made = forward_and_gradients(lambda *x: certainty_weighted_logits(x, temperature), [z, -z])
    assert all(x.isfinite().all() for x in sum(made, []))


def test_more_heads_than_the_kernel_takes_are_named():
    with pgm_fast.backend("triton"), pytest.raises(pgm_fast.PgmFastError, match="at most 8 heads, not 9"):
        certainty_weighted_logits(_made(3, 4, 9))
