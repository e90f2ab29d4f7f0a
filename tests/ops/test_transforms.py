"""Forward mode, torch.func and batches of gradients: the derivative of the plain formula, for every op."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, outputs
from tolerances import FP64
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

# one case per op and variant: what a transform sees does not depend on the backend
TRANSFORMED = [case for case in CASES if case.backend == "torch" and case.device == "cpu"]
by_op = pytest.mark.parametrize("case", TRANSFORMED, ids=lambda case: case.name)
ROWS, WIDTH = 3, 4


def _scalar(function):
    return lambda *tensors: sum(x.square().sum() for x in outputs(function(*tensors)))


def _leaves(tensors):
    return [x.clone().requires_grad_() for x in tensors]


def _every(tensors):
    return tuple(range(len(tensors)))


def _stacked(tensors, tangents):
    return [torch.stack([x, x + v]) for x, v in zip(tensors, tangents, strict=True)]


def jvp(function, tensors, tangents):
    return torch.func.jvp(lambda *x: outputs(function(*x)), tuple(tensors), tuple(tangents))


def dual_numbers(function, tensors, tangents):
    with forward_ad.dual_level():
        result = outputs(function(*map(forward_ad.make_dual, tensors, tangents)))
        return [forward_ad.unpack_dual(x).tangent for x in result]


def forward_over_reverse(function, tensors, tangents):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(_leaves(tensors), tangents, strict=True)]
        return [forward_ad.unpack_dual(x).tangent for x in torch.autograd.grad(_scalar(function)(*duals), duals)]


def dual_gradients(function, tensors, tangents):
    """Only what comes into backward has a tangent."""
    leaves = _leaves(tensors)
    result = outputs(function(*leaves))
    with forward_ad.dual_level():
        incoming = [forward_ad.make_dual(torch.ones_like(x), x.detach()) for x in result]
        return [forward_ad.unpack_dual(x).tangent for x in torch.autograd.grad(result, leaves, incoming)]


def grad(function, tensors, tangents):
    return torch.func.grad(_scalar(function), _every(tensors))(*tensors)


def grad_of_grad(function, tensors, tangents):
    def penalty(*x):
        return sum(g.square().sum() for g in torch.func.grad(_scalar(function), _every(tensors))(*x))

    return torch.func.grad(penalty, _every(tensors))(*tensors)


def backward_of_grad(function, tensors, tangents):
    """What the refusal of a second derivative advises."""
    leaves = _leaves(tensors)
    first = torch.func.grad(_scalar(function), _every(tensors))(*leaves)
    return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


def hessian(function, tensors, tangents):
    return torch.func.hessian(_scalar(function))(*tensors)


def jacobian_of_reverse_mode(function, tensors, tangents):
    return torch.func.jacrev(lambda *x: outputs(function(*x)), _every(tensors))(*tensors)


def jacobian_of_forward_mode(function, tensors, tangents):
    return torch.func.jacfwd(lambda *x: outputs(function(*x)), _every(tensors))(*tensors)


def vmap(function, tensors, tangents):
    return torch.vmap(lambda *x: outputs(function(*x)))(*_stacked(tensors, tangents))


def vmap_of_grad(function, tensors, tangents):
    return torch.vmap(torch.func.grad(_scalar(function), _every(tensors)))(*_stacked(tensors, tangents))


def batch_of_gradients(function, tensors, tangents):
    leaves = _leaves(tensors)
    result = outputs(function(*leaves))
    incoming = [torch.stack([torch.ones_like(x), x.detach()]) for x in result]
    return torch.autograd.grad(result, leaves, incoming, is_grads_batched=True)


TRANSFORMS = [
    jvp,
    dual_numbers,
    forward_over_reverse,
    dual_gradients,
    grad,
    grad_of_grad,
    backward_of_grad,
    hessian,
    jacobian_of_reverse_mode,
    jacobian_of_forward_mode,
    vmap,
    vmap_of_grad,
    batch_of_gradients,
]


@by_op
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
def test_equals_that_of_the_plain_formula(transform, case):
    tensors = case.tensors(ROWS, WIDTH, torch.float64)
    tangents = case.tensors(ROWS, WIDTH, torch.float64, seed=1)
    try:
        want = tree_leaves(transform(case.plain, tensors, tangents))
    except NotImplementedError as error:
        pytest.skip(f"torch itself: {error}")
    # second derivatives are sums of terms as large as the largest of them, and most cancel
    largest = max(1.0, *(float(x.abs().max()) for x in want))
    for a, b in zip(tree_leaves(transform(case.run, tensors, tangents)), want, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64 * largest)


@by_op
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_code_drops_no_tangent(case, backend):
    """It gives the derivative or, where torch cannot record one, raises."""
    torch._dynamo.reset()
    tensors = case.tensors(ROWS, WIDTH, torch.float64)
    tangents = case.tensors(ROWS, WIDTH, torch.float64, seed=1)
    want = jvp(case.plain, tensors, tangents)[1]
    for transform in (jvp, dual_numbers):
        try:
            got = torch.compile(
                lambda *x, t=transform: t(case.run, x[: len(x) // 2], x[len(x) // 2 :]), backend=backend
            )(*tensors, *tangents)
        except (RuntimeError, NotImplementedError):
            continue
        for a, b in zip(got[1] if transform is jvp else got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
