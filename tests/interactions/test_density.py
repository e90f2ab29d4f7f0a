"""The mixture's log-density against its definition, and what its training may be relied on for."""

from __future__ import annotations

import numpy as np
import torch
from tolerances import FINITE_DIFFERENCE, FP64_MIXTURE

from pgm_fast.interactions.density import NEGLIGIBLE, Knife, knife_log_density


def parameters(members=2, components=3, dim=4, spread=1.0):
    rng = np.random.default_rng(0)
    shapes = [(members, components, dim)] * 2 + [(members, components, dim, dim), (members, components)]
    return [torch.from_numpy(spread * rng.normal(size=shape)) for shape in shapes]


def expected(x, means, scale, coupling, logits):
    """Densities of full Gaussians with the covariances that the parameters stand for, in numpy."""
    x, means, scale, coupling, logits = (value.numpy() for value in (x, means, scale, coupling, logits))
    found = np.empty(x.shape[:2])
    for member in range(x.shape[0]):
        weight = np.exp(logits[member]) / np.exp(logits[member]).sum()
        density = 0.0
        for k in range(means.shape[1]):
            whiten = (np.eye(x.shape[2]) + np.tril(coupling[member, k], -1)) @ np.diag(
                np.exp(np.tanh(scale[member, k]))
            )
            covariance = np.linalg.inv(whiten.T @ whiten)
            off = x[member] - means[member, k]
            squares = np.einsum("nd,de,ne->n", off, np.linalg.inv(covariance), off)
            density = density + weight[k] * np.exp(-squares / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
        found[member] = np.log(density)
    return found


def test_log_density_is_that_of_the_gaussians():
    given = parameters()
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 7, 4)))
    assert np.allclose(knife_log_density(x, *given).numpy(), expected(x, *given), rtol=0, atol=FP64_MIXTURE)


def test_gradients_in_fp64():
    given = [value.requires_grad_() for value in parameters(dim=3, spread=0.5)]
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 5, 3)))
    assert torch.autograd.gradcheck(knife_log_density, (x, *given), rtol=0, atol=FINITE_DIFFERENCE)


def test_far_components_leave_value_and_gradients_as_they_are():
    """A component beyond the cut weighs nothing in fp64 and gets no gradient, rather than denormal ones."""
    means, scale, coupling, logits = (value[:1, :2].clone() for value in parameters())
    means[0, 1] += 10 * NEGLIGIBLE
    x = means[:, :1] + 0.1
    given = [value.requires_grad_() for value in (means, scale, coupling, logits)]
    together = knife_log_density(x, *given)
    alone = knife_log_density(x, *(value[:, :1] for value in given[:3]), torch.zeros(1, 1, dtype=torch.float64))
    weight = torch.log_softmax(given[3], -1)[0, 0]
    assert torch.equal(together, alone + weight) or torch.allclose(together, alone + weight, rtol=0, atol=FP64_MIXTURE)
    together.sum().backward()
    assert all((value.grad[0, 1] == 0).all() for value in given[:3])
    assert all(value.grad.isfinite().all() for value in given)


def test_the_upper_triangle_of_the_coupling_says_nothing():
    means, scale, coupling, logits = parameters()
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 7, 4)))
    other = torch.tril(coupling, -1) + torch.triu(torch.full_like(coupling, 3.0))
    assert torch.equal(
        knife_log_density(x, means, scale, coupling, logits), knife_log_density(x, means, scale, other, logits)
    )


def test_members_do_not_touch_each_other():
    x = torch.randn(2, 6, 4)
    both = Knife(x[:, :5])
    both(x)[0].sum().backward()
    assert all((value.grad[1] == 0).all() and (value.grad[0] != 0).any() for value in both.parameters())
