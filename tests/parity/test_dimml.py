"""DI-MML against its formulas, written a second time: both stages, twenty steps of the published optimizer each."""

from __future__ import annotations

import numpy as np
import torch
from plain_model import (
    CLASSES,
    Momentum,
    copies,
    cross_entropy,
    draw,
    gradients,
    linear,
    make,
    mlp,
    steps_with_momentum,
)
from tolerances import FP64

from pgm_fast.methods import ModelConfig

PLAIN = ModelConfig(dim=6, hidden=7, heads=1, dropout=0.0, normalize=False)
RATE, DECAY = 0.1, 1e-4
TEMPERATURE = 3.0


def features(p, batch):
    return {m: mlp(p, f"encoders.{m}.net", x) for m, x in batch.inputs.items()}


def effective(p, batches):
    """modality -> dimensions that, each alone by its nearest class mean, are right more often than the mean one."""
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    found = {}
    for m in batches[0].inputs:
        f = np.concatenate([features(p, batch)[m].detach().numpy() for batch in batches])
        means = np.stack([f[labels == y].mean(0) for y in range(CLASSES)])
        nearest = np.abs(f[:, None] - means).argmin(1)
        accuracy = (nearest == labels[:, None]).mean(0)
        found[m] = set(np.flatnonzero(accuracy > accuracy.mean()).tolist())
    return found


def detached(p, batch, dims):
    """Private and shared cross-entropies; and, where dimensions are known, what each modality teaches the other."""
    f = features(p, batch)
    loss = sum(cross_entropy(linear(p, f"heads.{m}", x), batch.labels) for m, x in f.items())
    loss = loss + sum(cross_entropy(linear(p, "shared_head", x), batch.labels) for x in f.values())
    for student, teacher in (("a", "b"), ("b", "a")):
        chosen = sorted(dims[teacher] - dims[student]) if dims else []
        if chosen:
            products = f[student][:, chosen] @ f[teacher][:, chosen].detach().T / TEMPERATURE
            loss = loss - (products.diagonal() - products.exp().sum(1).log()).mean()
    return loss


def test_twenty_steps_of_each_stage_and_the_answer():
    method = make("dimml", model=PLAIN, warmup=1, temperature=TEMPERATURE, certainty_temperature=2.0)
    p = copies(method)
    batches = [draw(rows=12, seed=10 + step) for step in range(10)]
    for number, batch in enumerate(batches):
        batch.index += 12 * number  # rows of one split
    train, own = steps_with_momentum(method, 0, RATE, DECAY), Momentum(RATE, DECAY)
    dims = None
    for epoch in range(2):
        if epoch == 1:
            dims = effective(p, batches)
            assert dims["a"] - dims["b"] and dims["b"] - dims["a"]  # each has something to teach
        train(epoch, batches)
        for batch in batches:
            p = own.step(p, gradients(p, detached(p, batch, dims)), ("encoders", "heads", "shared_head"))
        torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)
    train, own = steps_with_momentum(method, 1, RATE, DECAY), Momentum(RATE, DECAY)
    for epoch in range(2):
        train(epoch, batches)
        for batch in batches:
            fused = linear(p, "fusion_head", torch.cat(list(features(p, batch).values()), -1))
            p = own.step(p, gradients(p, cross_entropy(fused, batch.labels)), ("fusion_head",))
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)

    batch, f = batches[0], features(p, batches[0])
    heads = [
        linear(p, "heads.a", f["a"]),
        linear(p, "heads.b", f["b"]),
        linear(p, "fusion_head", torch.cat([*f.values()], -1)),
    ]
    certainty = torch.stack([z.softmax(-1).max(-1).values for z in heads], -1)
    weight = (certainty / 2.0).softmax(-1)
    wanted = sum(weight[:, k, None] * z for k, z in enumerate(heads))
    torch.testing.assert_close(method.eval()(batch).logits, wanted, rtol=FP64, atol=FP64)
