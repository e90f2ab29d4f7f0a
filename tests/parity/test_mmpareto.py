"""MMPareto against its formulas, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_model import copies, cross_entropy, descend, draw, encode, make, mlp, steps
from tolerances import FP32, FP64

from pgm_fast.methods.mmpareto import integrate


def integrated(g, u, gamma):
    """By hand, of lists of arrays."""
    flat_g, flat_u = (np.concatenate([x.ravel() for x in arrays]) for arrays in (g, u))
    a = 0.5
    if flat_g @ flat_u <= 0:
        # the point of the segment between both that is nearest to the origin
        a = np.clip(flat_u @ (flat_u - flat_g) / ((flat_g - flat_u) @ (flat_g - flat_u)), 0, 1)
    found = []
    for x, y in zip(g, u, strict=True):
        d = 2 * a * x + 2 * (1 - a) * y
        found.append(gamma * d * max(1.0, np.linalg.norm(x + y) / np.linalg.norm(d)))
    return found


@pytest.mark.parametrize("modalities", [{"a": 5, "b": 3}, {"a": 5, "b": 3, "c": 4}])
def test_twenty_steps(modalities):
    method = make("mmpareto", modalities, gamma=1.5)
    p = copies(method)
    batches = [draw(modalities=modalities, seed=step) for step in range(20)]
    steps(method, 0, batches, 0.1)
    conflicts = 0
    for batch in batches:
        h = encode(p, batch.inputs)
        joint = cross_entropy(mlp(p, "head", torch.cat(list(h.values()), -1)), batch.labels)
        own = {m: cross_entropy(mlp(p, f"uni_heads.{m}", x), batch.labels) for m, x in h.items()}
        by_loss = {m: {n: g.numpy() for n, g in _kept(p, loss).items()} for m, loss in {"": joint, **own}.items()}
        total = {n: sum(g[n] for g in by_loss.values()) for n in p}
        for m in modalities:
            names = [n for n in p if n.startswith(f"encoders.{m}.")]
            g, u = ([by_loss[key][n] for n in names] for key in ("", m))
            conflicts += sum((x * y).sum() for x, y in zip(g, u, strict=True)) <= 0
            total.update(zip(names, integrated(g, u, 1.5), strict=True))
        p = descend(p, {n: torch.from_numpy(np.asarray(g)) for n, g in total.items()}, 0.1)
    assert 0 < conflicts < 20 * len(modalities)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def _kept(p, loss):
    found = torch.autograd.grad(loss, list(p.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(p.items(), found, strict=True)}


def test_a_conflict_is_settled_without_harm_to_either_loss():
    generator = torch.Generator().manual_seed(0)
    g = [torch.randn(3, 4, dtype=torch.float64, generator=generator), torch.randn(4, dtype=torch.float64)]
    u = [-2 * x + 0.5 * torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in g]
    found = integrate([x + y for x, y in zip(g, u, strict=True)], u, 1.5)
    expected = integrated([x.numpy() for x in g], [x.numpy() for x in u], 1.5)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=FP64, atol=FP64)


def test_losses_that_agree_or_say_nothing_are_only_scaled():
    g, zero = [torch.tensor([1.0, 2.0])], [torch.zeros(2)]
    assert integrate([2 * g[0]], g, 1.5)[0].tolist() == [3.0, 6.0]
    assert integrate(zero, zero, 1.5)[0].tolist() == [0.0, 0.0]
    for total, own in ((g, zero), (g, g)):  # one of the losses has no gradient
        torch.testing.assert_close(integrate(total, own, 1.5)[0], 1.5 * g[0], rtol=FP32, atol=0)
