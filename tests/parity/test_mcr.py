"""MCR against its formulas, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_model import copies, cross_entropy, descend, draw, encode, gradients, make, mlp, steps
from tolerances import FP64

from pgm_fast.methods.mcr import GAMES, contrast, divergence, exchange

RATE = 0.1


def softmax(z):
    return z.exp() / z.exp().sum(-1, keepdim=True)


def jsd(p, q):
    mean = (p + q) / 2
    return ((p * (p / mean).log() + q * (q / mean).log()).sum(-1) / 2).mean()


def importance(p, h, m, shifts):
    """-JSD of the joint prediction and the one with m's features shifted, gradients to the encoders only."""
    head = {n: x.detach() for n, x in p.items()}
    before = softmax(mlp(head, "head", torch.cat(list(h.values()), -1))).detach()
    total = 0.0
    for shift in shifts:
        exchanged = {n: torch.roll(x, -shift, 0) if n == m else x for n, x in h.items()}
        total = total - jsd(before, softmax(mlp(head, "head", torch.cat(list(exchanged.values()), -1))))
    return total / len(shifts)


def contrasted(h, labels, temperature):
    unit = {m: x / x.square().sum(-1, keepdim=True).sqrt() for m, x in h.items()}
    terms = []
    for m in h:
        for n in h:
            if m != n:
                e = (unit[m] @ unit[n].T / temperature).exp()
                for i, y in enumerate(labels):
                    negative = e[i][labels != y].sum()
                    positive = e[i][labels == y]
                    terms.append(-(positive / (positive + negative)).log().mean())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("game", GAMES)
def test_a_stage_of_each_game(game):
    method = make("mcr", game=game, game_weight=0.3, exchanges=2, contrastive_weight=0.2, pretrain=False)
    p, batches = copies(method), [draw(seed=step) for step in range(8)]
    torch.manual_seed(5)
    steps(method, 0, batches, RATE)
    torch.manual_seed(5)
    for batch in batches:
        shifts = [1 + int(u * 8) for u in torch.rand(2).tolist()]  # of 9 rows
        h = encode(p, batch.inputs)
        plain = cross_entropy(mlp(p, "head", torch.cat(list(h.values()), -1)), batch.labels)
        plain = plain + sum(cross_entropy(mlp(p, f"uni_heads.{m}", x), batch.labels) for m, x in h.items())
        plain = plain + 0.2 * contrasted(h, batch.labels, 0.5)
        g = gradients(p, plain)
        for m in h:
            pull = gradients(p, importance(p, encode(p, batch.inputs), m, shifts))
            for n in h:
                times = 1.0 if n == m else GAMES[game]
                g.update({k: x + 0.3 * times * pull[k] for k, x in g.items() if k.startswith(f"encoders.{n}.")})
        p = descend(p, g, RATE)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def test_the_bottleneck_is_the_distance_from_what_the_detached_logits_tell():
    method = make("mcr", game_weight=0.0, contrastive_weight=0.0, bottleneck_weight=0.4, pretrain=False)
    p, batch = copies(method), draw()
    method(batch).losses["total"].backward()
    h = encode(p, batch.inputs)
    z = mlp(p, "head", torch.cat(list(h.values()), -1))
    told = torch.relu(z.detach() @ p["reconstruction.0.weight"].T) @ p["reconstruction.2.weight"].T
    loss = cross_entropy(z, batch.labels) + 0.4 * (torch.cat(list(h.values()), -1) - told).square().mean()
    loss = loss + sum(cross_entropy(mlp(p, f"uni_heads.{m}", x), batch.labels) for m, x in h.items())
    found = {n: q.grad for n, q in method.named_parameters()}
    torch.testing.assert_close(found, gradients(p, loss), rtol=FP64, atol=FP64)


def test_rows_meet_every_other_row_and_never_themselves():
    counted = torch.tensor([True, False, True, True, True, False])
    draws = torch.linspace(0, 0.999, 30)
    rows = exchange(counted, draws).view(30, 6)
    assert all(row[~counted].tolist() == [1, 5] for row in rows)
    for i in (0, 2, 3, 4):
        met = rows[:, i].tolist()
        assert set(met) == {0, 2, 3, 4} - {i}
        assert {met.count(j) for j in set(met)} == {10}
    assert exchange(torch.tensor([True]), draws).tolist() == [0] * 30
    assert exchange(torch.zeros(0, dtype=torch.bool), draws).tolist() == []


def test_divergences():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (a, b))
    mean = (p + q) / 2
    expected = (p * np.log(p / mean) + q * np.log(q / mean)).sum(-1) / 2
    np.testing.assert_allclose(divergence("classification", ta, tb).numpy(), expected, rtol=FP64, atol=FP64)
    p, q = (1 / (1 + np.exp(-z)) for z in (a, b))
    expected = 0.0
    for x, y in ((p, q), (1 - p, 1 - q)):
        expected = expected + (x * np.log(x / ((x + y) / 2)) + y * np.log(y / ((x + y) / 2))) / 2
    np.testing.assert_allclose(divergence("multilabel", ta, tb).numpy(), expected.mean(-1), rtol=FP64, atol=FP64)
    x = np.linspace(-40, 40, 200001)
    density = [np.exp(-((x - z) ** 2) / 2) / np.sqrt(2 * np.pi) for z in (a[0, 0], b[0, 0])]
    hellinger = 1 - np.sqrt(density[0] * density[1]).sum() * 80 / 200000
    found = divergence("regression", ta[:1, :1], tb[:1, :1]).item()
    assert found == pytest.approx(hellinger, abs=FP64)


def test_the_contrast_of_three_modalities_with_some_of_them_missing():
    batch = draw(modalities={"a": 4, "b": 4, "c": 4})
    whole = contrast(batch.inputs, batch, 0.5)
    torch.testing.assert_close(whole, contrasted(batch.inputs, batch.labels, 0.5), rtol=FP64, atol=FP64)
    here = torch.arange(9) < 6
    batch.presence = {"c": here}
    some = contrast(batch.inputs, batch, 0.5)
    pairs = []
    for m, n in (("a", "b"), ("a", "c"), ("b", "c")):
        rows = here if n == "c" else torch.ones(9, dtype=torch.bool)
        pairs.append(contrasted({k: batch.inputs[k][rows] for k in (m, n)}, batch.labels[rows], 0.5))
    torch.testing.assert_close(some, sum(pairs) / 3, rtol=FP64, atol=FP64)
