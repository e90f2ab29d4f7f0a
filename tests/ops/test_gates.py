"""The cumulative softmax: what is exact, what is bounded, and where the plain form 1 - gate goes wrong."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FP64, SCAN_FP32

from pgm_fast.ops.gates import chunk_sum, cumsoftmax, expand_gate

logits = st.integers(1, 48).flatmap(
    lambda d: st.lists(st.floats(-80, 80, width=32), min_size=d, max_size=d).map(lambda row: torch.tensor([row]))
)


@settings(max_examples=100)
@given(z=logits, temperature=st.floats(0.1, 10))
def test_gate_and_complement_are_monotone_bounded_and_add_up(z, temperature):
    gate, complement, p = cumsoftmax(z, temperature)
    assert ((gate >= 0) & (gate <= 1)).all() and ((complement >= 0) & (complement <= 1)).all()
    assert (gate.diff() >= 0).all() and (complement.diff() <= 0).all()
    torch.testing.assert_close(gate + complement, torch.ones_like(gate), rtol=0, atol=SCAN_FP32)
    torch.testing.assert_close(gate[..., -1], torch.ones(1), rtol=0, atol=SCAN_FP32)
    assert complement[..., -1] == 0


def test_complement_keeps_its_digits_where_the_gate_is_near_one():
    """All mass on the first entry but a tail of e^-60: 1 - gate is 0 in fp32, the scan from the right is not."""
    z = torch.tensor([60.0] + [0.0] * 15)
    exact = torch.softmax(z.double(), -1).flip(-1).cumsum(-1).flip(-1)[1:]
    got = cumsoftmax(z, 1.0).complement[:-1]
    torch.testing.assert_close(got.double(), exact, rtol=SCAN_FP32, atol=0)


def test_extreme_logits_stay_finite():
    gate, complement, _ = cumsoftmax(torch.tensor([[1e30, -1e30, 0.0], [-1e30, 1e30, 1e30]]), 1.0)
    assert gate.isfinite().all() and complement.isfinite().all()


def test_chunks_repeat_one_gate_over_neighbours_and_sum_back():
    gate = torch.rand(2, 4, dtype=torch.float64)
    assert torch.equal(expand_gate(gate, 12).view(2, 4, 3), gate.unsqueeze(-1).expand(2, 4, 3))
    x = torch.rand(2, 12, dtype=torch.float64)
    torch.testing.assert_close((expand_gate(gate, 12) * x).sum(), (gate * chunk_sum(x, 4)).sum(), rtol=FP64, atol=FP64)
