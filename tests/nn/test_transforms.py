"""torch.func on modules: what it gives for one model and one row at a time, it gives for all at once."""

from __future__ import annotations

import pytest
import torch
from module_cases import CASES, flat, make_module, make_tensors
from tolerances import FP64
from torch.func import functional_call, jvp, stack_module_state, vmap

ROWS = 5
# torch has neither batches nor forward derivatives of a GRU
by_module = pytest.mark.parametrize("name", [name for name in CASES if name != "GRUEncoder"])


@by_module
@pytest.mark.works("torch.func", "layers")
def test_stacked_models_give_what_each_gives(name):
    models, tensors = [make_module(name, seed) for seed in range(3)], make_tensors(name, ROWS)
    parameters, buffers = stack_module_state(models)

    def run(parameters, buffers):
        return tuple(flat(functional_call(models[0], (parameters, buffers), tensors)))

    if not parameters:
        pytest.skip("nothing to stack")
    together = vmap(run)(parameters, buffers)
    for each, model in enumerate(models):
        for got, want in zip(together, flat(model(*tensors)), strict=True):
            torch.testing.assert_close(got[each], want, rtol=FP64, atol=FP64)


def _wave(x, function):
    return function(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)


@by_module
@pytest.mark.works("torch.func", "layers")
def test_forward_mode_agrees_with_reverse_mode(name):
    """<direction, J v> = <J^T direction, v>."""
    module, tensors = make_module(name), make_tensors(name, ROWS)
    tangents = tuple(_wave(x, torch.sin) for x in tensors)

    def run(*x):
        return sum(
            (y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)).sum() for y in flat(module(*x))
        )

    leaves = [x.clone().requires_grad_() for x in tensors]
    gradients = torch.autograd.grad(run(*leaves), leaves, materialize_grads=True)
    want = sum((g * v).sum() for g, v in zip(gradients, tangents, strict=True))
    try:
        got = jvp(run, tensors, tangents)[1]
    except NotImplementedError as error:
        pytest.skip(f"torch itself: {error}")
    assert got.abs() > 0
    scale = sum((g * v).abs().sum() for g, v in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(got, want, rtol=FP64, atol=FP64 * float(scale))


# a sequence of vectors is a batch to MLPEncoder
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(("cross_modal", "MLPEncoder of seq"))])
def test_one_sample_needs_no_batch(name):
    """Losses are those of a batch of one."""
    module, tensors = make_module(name), make_tensors(name, 1)
    for got, want in zip(flat(module(*(x[0] for x in tensors))), flat(module(*tensors)), strict=True):
        torch.testing.assert_close(got, want if want.dim() == got.dim() else want[0], rtol=FP64, atol=FP64)
