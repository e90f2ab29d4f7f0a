"""OGM-GE against its formulas, written a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plain_model import alone, copies, cross_entropy, descend, draw, encode, gradients, make, mlp, steps
from tolerances import FP64, mean_of_draws

from pgm_fast.methods.ogm import coefficients


def modulated(p, batch, alpha):
    """Gradients of a step: those of the joint loss, each encoder's times its k."""
    h = encode(p, batch.inputs)
    found = gradients(p, cross_entropy(mlp(p, "head", torch.cat(list(h.values()), -1)), batch.labels))
    score = {}
    for m in h:
        z = mlp(p, "head", alone(h, m)).detach().numpy()
        probability = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        score[m] = probability[np.arange(len(z)), batch.labels.numpy()].sum()
    for m in h:
        others = np.mean([s for n, s in score.items() if n != m])
        k = 1 - math.tanh(alpha * score[m] / others) if score[m] > others else 1.0
        found.update({name: k * g for name, g in found.items() if name.startswith(f"encoders.{m}.")})
    return found


@pytest.mark.parametrize("modalities", [{"a": 5, "b": 3}, {"a": 5, "b": 3, "c": 4}])
def test_twenty_steps(modalities):
    method = make("ogm", modalities, alpha=0.4, enhance=False)
    p = copies(method)
    batches = [draw(modalities=modalities, seed=step) for step in range(20)]
    steps(method, 0, batches, 0.1)
    for batch in batches:
        p = descend(p, modulated(p, batch, 0.4), 0.1)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def test_coefficients_of_the_paper():
    """k = 1 - tanh(alpha s_m / s_n) for the modality that is ahead, 1 for the other, and 1 for a modality alone."""
    found = coefficients(torch.tensor([0.6, 0.2], dtype=torch.float64), 0.3)
    assert found.tolist() == pytest.approx([1 - math.tanh(0.3 * 3), 1.0], abs=FP64)
    assert coefficients(torch.tensor([0.5]), 0.3).tolist() == [1.0]
    assert coefficients(torch.tensor([0.5, 0.0]), 0.3).tolist() == [1.0, 1.0]


def test_noise_has_the_deviation_of_the_gradient_and_comes_from_the_seed_alone():
    wide = {"a": 2000, "b": 3}
    gradients = {}
    for enhance, seed in ((False, 1), (True, 1), (True, 1), (True, 2)):
        method = make("ogm", wide, alpha=0.0, enhance=enhance)
        method.backward(method(draw(modalities=wide)).losses["total"])
        torch.manual_seed(len(gradients))  # no other generator takes part
        method.after_backward(seed)
        gradients.setdefault((enhance, seed), []).append({n: p.grad for n, p in method.named_parameters()})
    plain, (first, again), other = gradients[False, 1][0], gradients[True, 1], gradients[True, 2][0]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first["head.0.weight"], plain["head.0.weight"], rtol=0, atol=0)
    name = "encoders.a.net.0.weight"
    noise = first[name] - plain[name]
    assert not torch.equal(first[name], other[name])
    # the variance of n normal numbers varies by sqrt(2 / n)
    ratio = (noise.square().mean() / plain[name].var()).item()
    assert ratio == pytest.approx(1, abs=mean_of_draws(math.sqrt(2), noise.numel()))


def test_only_the_epochs_that_are_named_are_modulated():
    method = make("ogm", alpha=0.4, first_epoch=1, last_epoch=2)
    for epoch in range(4):
        method.begin_epoch(0, epoch, lambda: iter([]))
        method.zero_grad()
        method.backward(method(draw()).losses["total"])
        before = {n: p.grad.clone() for n, p in method.named_parameters()}
        method.after_backward(epoch)
        changed = any(not torch.equal(before[n], p.grad) for n, p in method.named_parameters())
        assert changed == (1 <= epoch <= 2)
