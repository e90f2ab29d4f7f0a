"""The baselines are what their names say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tolerances import DIFFERENT, FP64

from pgm_fast.errors import ConfigError
from pgm_fast.methods import BaselineConfig, HeldOut, ModelConfig, build

SMALL = ModelConfig(dim=8, hidden=12, dropout=0.0)


def make(name, spec, **config):
    torch.manual_seed(0)
    return build(name, spec, SMALL, BaselineConfig(**config)).double()


@pytest.mark.parametrize("name", ["unimodal", "ensemble"])
def test_each_modality_trains_as_it_would_alone(make_batch, name):
    spec, batch = make_batch()
    method = make(name, spec)
    losses = method(batch).losses
    torch.testing.assert_close(losses["total"], sum(losses[f"uni/{m}"] for m in spec.modalities), rtol=FP64, atol=FP64)
    for m in spec.modalities:
        own = {id(p) for p in [*method.encoders[m].parameters(), *method.heads[m].parameters()]}
        parameters = list(method.parameters())
        grads = torch.autograd.grad(losses[f"uni/{m}"], parameters, retain_graph=True, allow_unused=True)
        for p, g in zip(parameters, grads, strict=True):
            assert (g is not None and bool(g.any())) == (id(p) in own)


def test_unimodal_answers_by_its_best_modality_and_remembers_it(make_batch):
    spec, batch = make_batch()
    method = make("unimodal", spec).eval()
    assert method.after_validation({"text": 0.5, "audio": 0.7, "vision": float("nan")}, HeldOut())
    out = method(batch)
    assert torch.equal(out.logits, out.unimodal["audio"])
    other = make("unimodal", spec).eval()
    assert torch.equal(other(batch).logits, other(batch).unimodal["text"])
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(batch).logits, out.logits)
    assert method.after_validation({"text": -1.0, "audio": -2.0, "vision": -0.5}, HeldOut())
    assert torch.equal(method(batch).logits, out.unimodal["vision"])
    assert not method.after_validation({"text": float("nan")}, HeldOut())
    assert torch.equal(method(batch).logits, out.unimodal["vision"])


def test_ensemble_is_the_mean_over_present_modalities(make_batch):
    spec, batch = make_batch(missing=["text", "vision"])
    method = make("ensemble", spec).eval()
    out = method(batch)
    for row in range(6):
        here = [m for m in spec.modalities if m not in batch.presence or batch.presence[m][row]]
        torch.testing.assert_close(
            out.logits[row], torch.stack([out.unimodal[m][row] for m in here]).mean(0), rtol=FP64, atol=FP64
        )


def test_joint_reads_everything_and_its_lone_answers_are_those_with_the_others_absent(make_batch):
    spec, batch = make_batch()
    method = make("joint", spec).eval()
    out = method(batch)
    nowhere = torch.zeros(6, dtype=torch.bool)
    lone = method(dataclasses.replace(batch, presence={"text": nowhere, "vision": nowhere}))
    torch.testing.assert_close(out.unimodal["audio"], lone.logits, rtol=FP64, atol=FP64)
    assert not torch.allclose(out.logits, lone.logits, rtol=0, atol=DIFFERENT)


@pytest.mark.parametrize("name", ["unimodal", "ensemble"])
def test_retrieval_is_refused_where_modalities_train_alone(make_batch, name):
    with pytest.raises(ConfigError, match=f"method {name} does .*the data's task is retrieval: use joint or pgm"):
        make(name, make_batch("retrieval")[0])
    with pytest.raises(ConfigError, match="two modalities"):
        make("joint", make_batch("retrieval", modalities=1)[0])


def test_rates_serve_encoders_and_heads(make_batch):
    groups = (
        make("joint", make_batch()[0], rates={"audio": {"encoder": 0.1}, "shared": {"head": 2.0}}).stages(0.1)[0].groups
    )
    expected = {"text.encoder": 0.1, "audio.encoder": 0.01, "vision.encoder": 0.1, "shared.head": 0.2}
    assert {g["name"]: g["lr"] for g in groups} == pytest.approx(expected, abs=FP64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("joint", {"encoders.text.net.0", "encoders.text.net.3", "head.0", "head.3"}),
        ("unimodal", {"encoders.text.net.0", "encoders.text.net.3", "heads.text.0", "heads.text.3", "best"}),
        ("ensemble", {"encoders.text.net.0", "encoders.text.net.3", "heads.text.0", "heads.text.3"}),
    ],
)
def test_state_dict_names_do_not_change(make_batch, name, expected):
    state = make(name, make_batch(modalities=1)[0]).state_dict()
    assert {key.removesuffix(".weight").removesuffix(".bias") for key in state} == expected
