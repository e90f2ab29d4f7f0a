"""The mixture is a convex combination, its losses belong to rows, and the kernel agrees with the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EPS, FINITE_DIFFERENCE, FP64, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import gated_mixture, gated_mixture_loss

_native = backends.implementations()["gated_mixture"]["native"] is None
BACKENDS = ["torch", *(["native"] if _native else [])]


def _made(rows=5, classes=4, mixed=3, others=2, dtype=torch.float64, gate_dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gate = torch.randn(rows, mixed, generator=generator).to(gate_dtype or dtype).requires_grad_()
    every = torch.randn(mixed + others, rows, classes, generator=generator).to(dtype)
    logits = [x.requires_grad_() for x in every.unbind(0)]
    return gate, logits[:mixed], logits[mixed:], torch.randint(0, classes, (rows,), generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_of_minus_infinity_takes_its_prediction_out(backend):
    gate, logits, others, labels = _made()
    shut = torch.tensor([[False, True, False]]).expand_as(gate)
    with pgm_fast.backend(backend):
        fused, weights, losses = gated_mixture_loss(logits, gate.masked_fill(shut, -torch.inf), labels, others)
        two, two_weights = gated_mixture([logits[0], logits[2]], gate[:, ::2])
    torch.testing.assert_close(fused, two, rtol=FP64, atol=FP64)
    torch.testing.assert_close(weights[:, ::2], two_weights, rtol=FP64, atol=FP64)
    assert not weights[:, 1].any()
    gradient, left_out = torch.autograd.grad(losses[:, 0].sum(), (gate, logits[1]))
    assert not gradient[:, 1].any() and not left_out.any() and gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_loss_reaches_its_own_rows_and_predictions(backend):
    gate, logits, others, labels = _made()
    with pgm_fast.backend(backend):
        losses = gated_mixture_loss(logits, gate, labels, others)[2]
        for column, one in enumerate([*logits, *others], start=1):
            gradients = torch.autograd.grad(losses[2, column], [*logits, *others, gate], retain_graph=True)
            own = torch.softmax(one[2], 0) - torch.nn.functional.one_hot(labels[2], 4)
            for leaf, gradient in zip([*logits, *others, gate], gradients, strict=True):
                want = torch.zeros_like(leaf)
                if leaf is one:
                    want[2] = own
                torch.testing.assert_close(gradient, want, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_losses_and_outputs_together_equal_finite_differences(backend):
    gate, logits, others, labels = _made(rows=3)
    leaves = [gate, *logits, *others]
    with pgm_fast.backend(backend):
        assert torch.autograd.gradcheck(
            lambda gate, a, b, c, *others: gated_mixture_loss([a, b, c], gate, labels, others),
            leaves,
            rtol=0,
            atol=FINITE_DIFFERENCE,
        )


dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@pytest.mark.skipif(not _native, reason="the compiled kernels are not there")
@settings(max_examples=100)
@given(
    rows=st.integers(0, 30),
    classes=st.integers(1, 70),
    mixed=st.integers(1, 6),
    others=st.integers(0, 3),
    dtype=dtypes,
    gate_dtype=dtypes,
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_the_kernel_equals_the_reference(rows, classes, mixed, others, dtype, gate_dtype, threads, seed):
    if (dtype == torch.float64) != (gate_dtype == torch.float64):
        gate_dtype = dtype
    gate, logits, more, labels = _made(rows, classes, mixed, others, dtype, gate_dtype, seed)
    before, results = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for backend in ("native", "torch"):
            with pgm_fast.backend(backend):
                made = gated_mixture_loss(logits, gate, labels, more)
                total = sum((x.double() * (1 + torch.arange(x.shape[1]))).sum() for x in made)
                results.append([*made, *torch.autograd.grad(total, [gate, *logits, *more])])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@pytest.mark.skipif(not _native, reason="the compiled kernels are not there")
def test_a_label_that_is_no_class_shows_and_reads_nothing_outside():
    gate, logits, others, labels = _made()
    labels[1], labels[3] = 4, -(2**40)
    with pgm_fast.backend("native"):
        losses = gated_mixture_loss(logits, gate, labels, others)[2]
        torch.autograd.grad(losses.sum(), gate)
    assert losses[1].isnan().all() and losses[3].isnan().all() and losses[::2].isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(5)}, TypeError, "labels must be an int64 tensor, got torch.float32"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, r"labels must have shape \[5\]"),
        ({"logits": []}, ValueError, "logits must be a list of at least one"),
        ({"gate": torch.zeros(5, 2).double()}, ValueError, r"gate must have shape \[any, 3\], got \[5, 2\]"),
        ({"others": [torch.zeros(5, 4)]}, TypeError, r"others\[0\] must have the dtype of logits\[0\]"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    gate, logits, others, labels = _made()
    arguments = {"logits": logits, "gate": gate, "labels": labels, "others": others, **change}
    with pytest.raises(error, match=message):
        gated_mixture_loss(**arguments)
