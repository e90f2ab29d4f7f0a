"""The mixture's kernel against the reference: few classes, more than a program holds, labels that are none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import forward_and_gradients
from pgm_fast.kernels import mixtures
from tolerances import EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast.ops import gated_mixture, gated_mixture_loss

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def _made(rows, classes, mixed, others, dtype, gate_dtype=None):
    gate = torch.randn(rows, mixed).to(gate_dtype or dtype).requires_grad_()
    logits = [x.requires_grad_() for x in torch.randn(mixed + others, rows, classes).to(dtype).unbind(0)]
    return gate, logits[:mixed], logits[mixed:], torch.randint(0, classes, (rows,))


def _results(backend, gate, logits, others, labels):
    def run(gate, *every):
        if labels is None:
            return gated_mixture(every, gate)
        return gated_mixture_loss(every[: len(logits)], gate, labels, every[len(logits) :])

    with pgm_fast.backend(backend):
        return sum(forward_and_gradients(run, [gate, *logits, *(others if labels is not None else [])]), [])


def _compare(gate, logits, others, labels):
    results = (_results(backend, gate, logits, others, labels) for backend in ("triton", "torch"))
    for a, b in zip(*results, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@settings(max_examples=12)
@given(
    rows=st.integers(0, 30),
    classes=st.integers(1, 70),
    mixed=st.integers(1, 6),
    others=st.integers(0, 3),
    labelled=st.booleans(),
    dtype=dtypes,
    gate_dtype=dtypes,
)
def test_equals_the_reference_on_every_shape_and_dtype(rows, classes, mixed, others, labelled, dtype, gate_dtype):
    if (dtype == torch.float64) != (gate_dtype == torch.float64):
        gate_dtype = dtype
    gate, logits, more, labels = _made(rows, classes, mixed, others, dtype, gate_dtype)
    _compare(gate, logits, more, labels if labelled else None)


@pytest.mark.parametrize("classes", [33, 48, 70])
@pytest.mark.parametrize("labelled", [False, True])
def test_rows_of_more_classes_than_a_program_holds(classes, labelled, monkeypatch):
    """Steps of 8 and 32 classes; the peak comes in the last one."""
    monkeypatch.setattr(mixtures, "THREADS", 8)
    gate, logits, others, labels = _made(3, classes, 3, 1, torch.float32)
    with torch.no_grad():
        for x in (*logits, *others):
            x[:, -1] = 9.0
    _compare(gate, logits, others, labels if labelled else None)


def test_steps_of_nothing_but_minus_infinity_count_nothing(monkeypatch):
    monkeypatch.setattr(mixtures, "THREADS", 8)
    gate, logits, _, _ = _made(3, 48, 3, 0, torch.float32)
    labels = torch.tensor([5, 47, 46])
    with torch.no_grad(), pgm_fast.backend("triton"):
        for x in logits:
            x[1, :47], x[2, :46], x[2, 46:] = -torch.inf, -torch.inf, 2.0
        losses = gated_mixture_loss(logits, gate, labels)[2]
    assert losses[1].eq(0).all()
    bound = NATIVE_TIMES_EPS * EPS[torch.float32]
    torch.testing.assert_close(losses[2], torch.full((4,), math.log(2)), rtol=bound, atol=0)


def test_an_entry_of_minus_infinity_takes_its_prediction_out():
    gate, logits, others, labels = _made(5, 4, 3, 2, torch.float64)
    shut = torch.tensor([[False, True, False]]).expand_as(gate)
    _compare(gate.detach().masked_fill(shut, -torch.inf).requires_grad_(), logits, others, labels)


def test_a_label_that_is_no_class_shows_and_reads_nothing_outside():
    gate, logits, others, labels = _made(5, 4, 3, 2, torch.float32)
    labels[1], labels[3] = 4, -(2**40)
    with pgm_fast.backend("triton"):
        losses = gated_mixture_loss(logits, gate, labels, others)[2]
        gradients = torch.autograd.grad(losses.sum(), [gate, *logits])
    assert losses[1].isnan().all() and losses[3].isnan().all() and losses[::2].isfinite().all()
    assert all(x[::2].isfinite().all() for x in gradients)


def test_gradients_that_are_columns_of_a_wider_table_are_not_copied(monkeypatch):
    gate, logits, others, labels = _made(5, 4, 3, 2, torch.float32)
    with pgm_fast.backend("triton"):
        fused, weights, losses = gated_mixture_loss(logits, gate, labels, others)
        table = torch.cat([losses, weights, fused, losses], 1)
        factors = torch.arange(table.shape[1], dtype=torch.float32)
        want = torch.autograd.grad((table * factors).sum(), [gate, *logits, *others], retain_graph=True)
        monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: x if x.is_contiguous() else pytest.fail("a copy"))
        grad = factors.expand(5, -1)
        split = grad[:, 6:9], grad[:, 9:13], grad[:, :6] + grad[:, 13:]
        got = torch.autograd.grad((weights, fused, losses), [gate, *logits, *others], split)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_more_predictions_than_the_kernel_takes_are_the_references():
    gate, logits, others, labels = _made(3, 4, 9, 8, torch.float32)
    with pgm_fast.backend("triton"), pytest.raises(pgm_fast.PgmFastError, match="at most 16 predictions, not 17"):
        gated_mixture_loss(logits, gate, labels, others)
    assert gated_mixture_loss(logits, gate, labels, others[:-1])[2].shape == (3, 17)


def test_what_lies_around_the_tensors_is_neither_read_nor_written():
    whole = [torch.full((9, n), float("nan")) for n in (3, 5, 5, 5, 5)]
    for x in whole:
        x[2:7].normal_()
    gate, *logits = (x[2:7].detach().requires_grad_() for x in whole)
    results = _results("triton", gate, logits[:3], logits[3:], torch.randint(0, 5, (5,)))
    assert all(x.isfinite().all() for x in results)
    assert all(x[:2].isnan().all() and x[7:].isnan().all() for x in whole)
