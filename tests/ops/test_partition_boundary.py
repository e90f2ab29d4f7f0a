"""The boundary partition is the dual one of bumps, whichever backend forms the gates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES, EDGE, forward_and_gradients
from tolerances import FP64, SCAN_FP32, steps
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

import pgm_fast
from pgm_fast.ops import partition_boundary, partition_dual, partition_share

WITH_SHARE = [case for case in CASES if case.name == "partition_boundary_with_share"]
by_backend = pytest.mark.parametrize("case", WITH_SHARE, ids=lambda case: case.id)


def _logits(d: int, b: torch.Tensor, width: float) -> torch.Tensor:
    x = (torch.arange(d, dtype=b.dtype) + 0.5) / d
    return -(x - b).square() / (2 * width**2)


@settings(max_examples=40)
@given(
    d=st.integers(1, 40),
    width=st.sampled_from([0.03, 0.12, 1.0, 50.0]),
    floor=st.sampled_from([0.0, 0.3, 0.99]),
    seed=st.integers(0, 99),
)
def test_is_the_dual_partition_of_bumps_with_a_floor(d, width, floor, seed):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 3, d, generator=generator, dtype=torch.float64)
    places = [1.3 * torch.rand(2, 3, 1, generator=generator, dtype=torch.float64) - 0.15 for _ in range(2)]

    def by_logits(h, b_uni, b_paired):
        logits = _logits(d, b_uni, width), _logits(d, 1 - b_paired, width)
        uni_only, paired_only, shared, share = partition_dual(h, *logits, return_share=True)
        return torch.lerp(uni_only + shared, h, floor), torch.lerp(paired_only + shared, h, floor), share

    def run(*tensors):
        return partition_boundary(*tensors, width, floor=floor, return_share=True)

    (got, got_gradients), (want, want_gradients) = (forward_and_gradients(f, [h, *places]) for f in (run, by_logits))
    for a, b in zip(got + got_gradients, want + want_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64 * max(1.0, b.abs().max().item()))


def test_boundaries_say_how_much_of_a_row_each_part_takes():
    """Of a sharp edge the share is the boundary itself, up to the step of a dimension; far outside all or nothing."""
    d = 400
    b_uni, b_paired = (torch.tensor(x).double().unsqueeze(1) for x in ([0.25, 0.5, -3.0, 4.0], [0.5, 0.25, 4.0, -3.0]))
    *_, share = partition_boundary(torch.ones(4, d).double(), b_uni, b_paired, 1e-4, return_share=True)
    uni, paired = (b.clamp(0, 1).squeeze(1) for b in (b_uni, b_paired))
    torch.testing.assert_close(share[:, 0] + share[:, 2], uni, rtol=0, atol=steps(d))
    torch.testing.assert_close(share[:, 1] + share[:, 2], paired, rtol=0, atol=steps(d))
    torch.testing.assert_close(share.sum(1), torch.ones(4).double(), rtol=0, atol=FP64)


@by_backend
def test_share_is_that_of_the_logits(case):
    h, b_uni, b_paired = case.tensors(7, 33)
    with pgm_fast.backend(case.backend):
        *_, share = case.run(h, b_uni, b_paired)
    want = partition_share(_logits(33, b_uni.cpu(), EDGE["width"]), _logits(33, 1 - b_paired.cpu(), EDGE["width"]))
    assert share.shape == (7, 4) and share.dtype == torch.float32
    torch.testing.assert_close(share.cpu(), want, rtol=0, atol=SCAN_FP32)


@by_backend
def test_detached_gates_are_trained_by_the_share_alone(case):
    case.skip_unless_served(torch.float64)
    h, *places = (x.requires_grad_() for x in case.tensors(5, 12, torch.float64))
    found = {}
    with pgm_fast.backend(case.backend):
        for detached in (False, True):
            *parts, share = case.run(h, *places, detach_gates=detached)
            by_parts = torch.autograd.grad(
                sum(x.square().sum() for x in parts), [h, *places], retain_graph=True, allow_unused=True
            )
            by_share = torch.autograd.grad(share.square().sum(), [h, *places], materialize_grads=True)
            found[detached] = parts, by_parts, by_share
    assert all(torch.equal(a, b) for a, b in zip(found[False][0], found[True][0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[False][2], found[True][2], strict=True))
    assert torch.equal(found[False][1][0], found[True][1][0])
    assert all((x != 0).all() for x in found[False][1][1:]) and found[True][1][1:] == (None, None)


def test_detached_gates_have_no_tangent_in_the_parts():
    h, b_uni, b_paired = (torch.rand(3, n).double() for n in (8, 1, 1))
    with forward_ad.dual_level():
        moving = [forward_ad.make_dual(b, torch.ones_like(b)) for b in (b_uni, b_paired)]
        *parts, share = partition_boundary(h, *moving, detach_gates=True, return_share=True)
        assert all(forward_ad.unpack_dual(x).tangent is None for x in parts)
        assert forward_ad.unpack_dual(share).tangent.abs().min() > 0


def test_a_width_that_is_annealed_compiles_twice():
    counter = CompileCounter()
    compiled = torch.compile(partition_boundary, fullgraph=True, backend=counter)
    tensors = WITH_SHARE[0].tensors(4, 6, torch.float64)
    for width in (0.5, 0.4, 0.3, 0.2):
        for a, b in zip(compiled(*tensors, width), partition_boundary(*tensors, width), strict=True):
            torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0.0},
        {"width": -1.0},
        {"width": float("nan")},
        {"width": float("inf")},
        {"width": torch.tensor(1.0)},
        {"floor": 1.0},
        {"floor": -0.1},
        {"floor": float("nan")},
        {"floor": True},
    ],
    ids=str,
)
def test_a_wrong_number_is_named(wrong):
    (name,) = wrong
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        partition_boundary(torch.ones(2, 4), torch.ones(2, 1), torch.ones(2, 1), **wrong)


def test_one_boundary_per_row_is_asked_for():
    with pytest.raises(ValueError, match=r"b_paired must have shape \[2, 1\], got \[2\]"):
        partition_boundary(torch.ones(2, 4), torch.ones(2, 1), torch.ones(2))
