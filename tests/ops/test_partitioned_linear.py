from __future__ import annotations

import pytest
import torch
from tolerances import FINITE_DIFFERENCE, FP64

import pgm_fast
from pgm_fast import backends
from pgm_fast.backends import selection
from pgm_fast.ops import partition, partitioned_linear
from pgm_fast.ops.partitioned_linear import by_parts, by_parts_backward, reference, reference_backward


def _arguments(rows, d, n_u, n_p):
    shapes = [(rows, d), (rows, d), (n_u, d), (n_u,), (n_p, d), (n_p,)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_equals_partition_followed_by_two_linear_layers():
    h, z, w_uni, b_uni, w_paired, b_paired = _arguments(6, 10, 3, 4)
    u, p = partitioned_linear(h, z, w_uni, b_uni, w_paired, b_paired, "silu", 0.7)
    uni, paired = partition(h, z, 0.7)
    silu = torch.nn.functional.silu
    torch.testing.assert_close(u, silu(uni @ w_uni.t() + b_uni), rtol=FP64, atol=FP64)
    torch.testing.assert_close(p, silu(paired @ w_paired.t() + b_paired), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_biases_are_optional_and_leading_dimensions_are_kept(activation):
    h, z, w_uni, b_uni, w_paired, b_paired = _arguments(6, 10, 3, 4)
    h, z = h.view(2, 3, 10).requires_grad_(), z.view(2, 3, 10)
    with_zero = partitioned_linear(h, z, w_uni, b_uni * 0, w_paired, b_paired * 0, activation)
    without = partitioned_linear(h, z, w_uni, None, w_paired, None, activation)
    assert without[0].shape == (2, 3, 3) and without[1].shape == (2, 3, 4)
    torch.testing.assert_close(with_zero, without, rtol=FP64, atol=FP64)
    (gradient,) = torch.autograd.grad(without[0].sum() + without[1].sum(), h)
    assert gradient.shape == h.shape and gradient.abs().sum() > 0


def test_chunked_gate_logits():
    h, _, *weights = _arguments(3, 12, 2, 5)
    z = torch.randn(3, 4, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (h, z, *weights)]
    assert torch.autograd.gradcheck(lambda *x: partitioned_linear(*x, "gelu"), leaves, rtol=0, atol=FINITE_DIFFERENCE)


def test_gate_logits_may_be_of_another_dtype():
    h, z, *weights = [x.float() for x in _arguments(3, 8, 2, 5)]
    low = [x.bfloat16().requires_grad_() for x in (h, *weights)]
    z.requires_grad_()
    u, p = partitioned_linear(low[0], z, *low[1:])
    (u.sum() + p.sum()).backward()
    assert u.dtype == torch.bfloat16 and z.grad.dtype == torch.float32 and low[0].grad.dtype == torch.bfloat16


def test_mixed_weights_are_refused():
    h, z, *weights = _arguments(3, 8, 2, 5)
    with pytest.raises(TypeError, match=r"w_uni must have the dtype of h \(torch.float64\), got torch.float32"):
        partitioned_linear(h, z, weights[0].float(), *weights[1:])


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation must be one of None, 'relu', 'gelu', 'silu', got 'tanh'"):
        partitioned_linear(*_arguments(3, 8, 2, 5), activation="tanh")


@pytest.mark.skipif(
    backends.implementations()["partitioned_linear"]["native"] is not None, reason="no compiled kernel here"
)
def test_the_compiled_form_never_holds_the_masked_operands():
    """Beside its results, forward takes two blocks of rows and backward nothing."""
    rows, d, n = 8192, 32, 16
    h, z = torch.randn(rows, d), torch.randn(rows, d)
    w_uni, b_uni, w_paired, b_paired = torch.randn(n, d), torch.randn(n), torch.randn(n, d), torch.randn(n)
    bare = torch.ops.pgm_fast
    with pgm_fast.backend("native"):
        forward = _allocated(lambda: bare.partitioned_linear(h, z, w_uni, b_uni, w_paired, b_paired, None, 1.0))
        u, p, *saved = bare.partitioned_linear(h, z, w_uni, b_uni, w_paired, b_paired, None, 1.0)
        backward = _allocated(lambda: bare.partitioned_linear_backward(u, p, *saved, h, z, w_uni, w_paired, None, 1.0))
    operand = h.numel() * h.element_size()
    assert forward < 2 * u.numel() * u.element_size() + operand // 8
    assert backward < 2 * operand + operand // 8


def _allocated(run) -> int:
    """Bytes that a call takes from the allocator, what it gives back on the way included."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sum(max(event.nbytes(), 0) for event in changes)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_products_of_stored_parts_are_the_formula(activation):
    """What large problems take on CUDA devices."""
    h, z, w_uni, b_uni, w_paired, b_paired = _arguments(6, 12, 3, 4)
    z = z[:, :4].contiguous()
    for bias in (b_uni, None):
        arguments = h, z, w_uni, bias, w_paired, b_paired, activation, 0.7
        got, want = by_parts(*arguments), reference(*arguments)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
    u, p, x_uni, x_paired = want
    saved = (x_uni, x_paired) if len(x_uni) else (u, p)
    arguments = torch.randn_like(u), torch.randn_like(p), *saved, h, z, w_uni, w_paired, activation, 0.7
    for a, b in zip(by_parts_backward(*arguments), reference_backward(*arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


def test_on_cuda_the_stored_parts_are_taken_where_both_widths_are_large():
    def taken(rows, n):
        shapes = [(rows, 64), (rows, 64), (n, 64), (n,), (n, 64), (n,)]
        made = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
        by = selection._implementations["partitioned_linear"]["native"][frozenset({"cuda"})]
        return not by.outdone(*made, None, 1.0)

    assert taken(4096, 512) and not taken(4096, 128) and not taken(64, 512)
