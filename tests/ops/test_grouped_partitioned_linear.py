from __future__ import annotations

import pytest
import torch

import pgm_fast
from pgm_fast.ops import grouped_partitioned_linear, partitioned_linear


def _lists(*sizes):
    """Arguments of problems of rows, d, gates, n_u, n_p."""
    problems = [
        [torch.randn(shape) for shape in [(rows, d), (rows, gates), (n_u, d), (n_u,), (n_p, d), (n_p,)]]
        for rows, d, gates, n_u, n_p in sizes
    ]
    return [list(values) for values in zip(*problems, strict=True)]


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_every_entry_is_what_the_single_op_gives_bit_by_bit(backend, activation):
    lists = _lists((5, 8, 8, 3, 4), (2, 12, 4, 6, 1), (0, 6, 2, 2, 2))
    lists[3][1] = lists[5][0] = None
    lists[0][0], lists[1][0] = lists[0][0].view(5, 1, 8), lists[1][0].view(5, 1, 8)
    leaves = [x.requires_grad_() for values in lists for x in values if x is not None]
    with pgm_fast.backend(backend):
        made = grouped_partitioned_linear(*lists, activation, 0.7)
        assert isinstance(made, tuple)
        u, p = made
        alone = [partitioned_linear(*problem, activation, 0.7) for problem in zip(*lists, strict=True)]
        assert all(
            torch.equal(a, b) for a, b in zip([*u, *p], [*(x for x, _ in alone), *(x for _, x in alone)], strict=True)
        )
        got = torch.autograd.grad(sum(x.square().sum() for x in (*u, *p)), leaves)
        want = torch.autograd.grad(sum(x.square().sum() for pair in alone for x in pair), leaves)
    assert u[0].shape == (5, 1, 3) and u[2].shape == (0, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_an_output_left_out_of_the_loss_moves_nothing():
    lists = _lists((5, 8, 8, 3, 4), (2, 12, 4, 6, 1))
    for values in lists:
        for x in values:
            x.requires_grad_()
    u, _ = grouped_partitioned_linear(*lists)
    u[0].sum().backward()
    assert lists[2][0].grad.abs().sum() > 0
    assert all(values[1].grad is None or values[1].grad.count_nonzero() == 0 for values in lists)


def test_a_wrong_entry_is_named():
    lists = _lists((5, 8, 8, 3, 4), (2, 12, 4, 6, 1))
    for position, wrong, error, match in (
        (2, torch.randn(6, 11), ValueError, "entry 1: w_uni must have shape"),
        (2, lists[2][1].double(), TypeError, "entry 1: w_uni must have the dtype of h"),
        (1, 3.0, TypeError, "entry 1: z must be a floating-point tensor, got float"),
    ):
        changed = [list(values) for values in lists]
        changed[position][1] = wrong
        with pytest.raises(error, match=match):
            grouped_partitioned_linear(*changed)


def test_lists_that_do_not_fit_together_are_named():
    lists = _lists((5, 8, 8, 3, 4), (2, 12, 4, 6, 1))
    with pytest.raises(ValueError, match=r"z must have as many entries as h \(2\), at least 1, got 1"):
        grouped_partitioned_linear(lists[0], lists[1][:1], *lists[2:])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        grouped_partitioned_linear(*[[]] * 6)
    with pytest.raises(TypeError, match="h must be a list of tensors, got Tensor"):
        grouped_partitioned_linear(lists[0][0], *lists[1:])
    double = [[a, b.double()] for a, b in zip(*[[x[i] for x in lists] for i in range(2)], strict=True)]
    with pytest.raises(
        TypeError, match=r"entry 1: h must have the dtype of entry 0 \(torch.float32\), got torch.float64"
    ):
        grouped_partitioned_linear(*double)
