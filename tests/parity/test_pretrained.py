"""Both stages of the uni-pretrained baseline and of UMT against their formulas, written a second time."""

from __future__ import annotations

import pytest
import torch
from plain_model import copies, cross_entropy, descend, draw, encode, gradients, make, mlp, steps
from tolerances import FP64

RATE = 0.1
BATCHES = [draw(seed=step) for step in range(10)]


def learn_alone(p, encoders):
    for batch in BATCHES:
        h = encode(p, batch.inputs, encoders)
        loss = sum(cross_entropy(mlp(p, f"uni_heads.{m}", x), batch.labels) for m, x in h.items())
        p = descend(p, gradients(p, loss), RATE, [encoders, "uni_heads"])
    return p


@pytest.mark.parametrize("frozen", [False, True])
def test_two_stages_of_uni_pretraining(frozen):
    method = make("pretrained", frozen=frozen)
    p = learn_alone(copies(method), "encoders")
    for batch in BATCHES:
        loss = cross_entropy(mlp(p, "head", torch.cat(list(encode(p, batch.inputs).values()), -1)), batch.labels)
        p = descend(p, gradients(p, loss), RATE, ["head"] if frozen else ["encoders", "head"])
    for stage in range(2):
        steps(method, stage, BATCHES, RATE)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def test_teachers_and_students_of_umt():
    method = make("umt", distillation_weight=0.7)
    p = learn_alone(copies(method), "teachers")
    for batch in BATCHES:
        h, taught = encode(p, batch.inputs), encode(p, batch.inputs, "teachers")
        loss = cross_entropy(mlp(p, "head", torch.cat(list(h.values()), -1)), batch.labels)
        loss = loss + 0.7 * sum((h[m] - taught[m].detach()).square().mean() for m in h)
        p = descend(p, gradients(p, loss), RATE, ["encoders", "head"])
    for stage in range(2):
        steps(method, stage, BATCHES, RATE)
    torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)


def test_the_stage_is_part_of_the_state():
    method = make("umt")
    method.begin_stage(1)
    other = make("umt")
    other.load_state_dict(method.state_dict())
    batch = draw()
    torch.testing.assert_close(other.eval()(batch).logits, method.eval()(batch).logits, rtol=0, atol=0)
    assert set(other(batch).losses) == {"task", "total"}


def test_what_is_frozen_drops_nothing_and_teachers_neither():
    for name, part, own in (("pretrained", "encoders", {"frozen": True}), ("umt", "teachers", {})):
        method = make(name, **own).train()
        assert all(m.training for m in getattr(method, part).modules())
        method.begin_stage(1)
        method.train()
        assert not any(m.training for m in getattr(method, part).modules()) and method.head.training
