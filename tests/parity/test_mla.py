"""MLA against its formulas, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_model import copies, cross_entropy, descend, draw, encode, gradients, linear, make, steps
from tolerances import FP64

from pgm_fast.methods.mla import entropy_weights


@pytest.mark.parametrize("modalities", [{"a": 5, "b": 3}, {"a": 5, "b": 3, "c": 4}])
@pytest.mark.parametrize("modification", [True, False])
def test_twenty_batches_of_turns(modalities, modification):
    method = make("mla", modalities, alpha=0.2, modification=modification)
    p, projection, seen = copies(method), np.eye(6), None
    batches = [draw(modalities=modalities, seed=step) for step in range(20)]
    steps(method, 0, batches, 0.1)
    for batch in batches:
        for m in modalities:
            f = encode(p, {m: batch.inputs[m]})[m]
            g = gradients(p, cross_entropy(linear(p, "shared_head", f), batch.labels))
            if seen is not None and modification:
                inverse = np.linalg.inv(np.linalg.inv(projection) + np.outer(seen, seen) / 0.2)
                projection = inverse / np.linalg.norm(inverse)
                g["shared_head.weight"] = g["shared_head.weight"] @ torch.from_numpy(projection)
            seen = f.mean(0).detach().numpy()
            p = descend(p, g, 0.1)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def test_the_answer_is_weighed_by_entropy_row_by_row():
    method = make("mla").eval()
    batch = draw()
    batch.presence = {"a": torch.arange(9) != 2, "b": torch.arange(9) % 3 != 2}
    out = method(batch)
    for row in range(9):
        weights, answer = [], 0.0
        for m in ("a", "b"):
            z = out.unimodal[m][row].detach().numpy()
            probability = np.exp(z) / np.exp(z).sum()
            entropy = -(probability * np.log(probability)).sum()
            weights.append(np.exp(-entropy) * batch.presence[m][row].item())
            answer = answer + weights[-1] * z
        expected = answer / sum(weights) if sum(weights) else 0 * z
        np.testing.assert_allclose(out.logits[row].detach().numpy(), expected, rtol=FP64, atol=FP64)


def test_of_several_labels_the_entropy_is_their_mean():
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probability = 1 / (1 + np.exp(-z.numpy()))
    entropy = -(probability * np.log(probability) + (1 - probability) * np.log(1 - probability)).mean(-1)
    expected = np.exp(-entropy) / np.exp(-entropy).sum(0)
    found = entropy_weights(z, torch.ones(2, 4, dtype=torch.bool), "multilabel")
    np.testing.assert_allclose(found.numpy(), expected, rtol=FP64, atol=FP64)


def test_a_turn_moves_one_encoder_and_the_head():
    method = make("mla")
    for turn, m in enumerate("ab"):
        method.begin_turn(turn)
        method.zero_grad()
        out = method(draw())
        assert set(out.losses) == {f"uni/{m}", "total"}
        method.backward(out.losses["total"])
        touched = {
            name.split(".")[1] if "encoders" in name else "head"
            for name, p in method.named_parameters()
            if p.grad is not None
        }
        assert touched == {m, "head"}
