"""Answers of several heads: each is its formula, heads without input take no part, calibration is a maximum."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.methods import METHODS, HeldOut, ModelConfig, build
from pgm_fast.methods.answers import ANSWERS, Answer
from pgm_fast.nn.calibration import PSEUDO_COUNTS, fit_temperature, label_log_likelihood, mixture_weights, pool_weights
from pgm_fast.ops import certainty_weighted_logits
from pgm_fast.train import evaluate, fit
from pgm_fast.train.configure import from_yaml, make_config, to_yaml

HEADS = ("task", "uni/text", "uni/audio")
KINDS = ("mean", "certainty", "experts", "stack", "pool")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels_of(task, n=40):
    if task == "classification":
        return torch.arange(n) % 3
    return (normal(n, 3, seed=9) > 0).double() if task == "multilabel" else normal(n, 3, seed=9)


def heads(n=40):
    return {name: 2 * normal(n, 3, seed=k) for k, name in enumerate(HEADS)}


def probabilities(task, logits):
    return {"classification": lambda z: z.softmax(-1), "multilabel": torch.sigmoid, "regression": lambda z: z}[task](
        logits
    )


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("kind", ["mean", "stack"])
def test_mixtures_average_the_probabilities_of_heads_that_have_input(task, kind):
    logits, usable = heads(), {"uni/text": torch.arange(40) % 2 == 0}
    answer = Answer(kind, HEADS, task).double()
    weight = torch.stack([torch.ones(40), usable["uni/text"].double(), torch.ones(40)])
    temperature = torch.ones(3)
    if kind == "stack":
        assert answer.fit(logits, labels_of(task), usable)
        weight = weight * answer.weight[:, None]
        temperature = answer.temperature if task != "regression" else temperature
    weight = weight / weight.sum(0)
    p = [probabilities(task, z / t) * w[:, None] for z, t, w in zip(logits.values(), temperature, weight, strict=True)]
    torch.testing.assert_close(probabilities(task, answer(logits, usable)), sum(p), rtol=FP64, atol=FP64)


def test_experts_are_a_sum_and_certainty_is_the_op():
    logits = heads()
    together = Answer("experts", HEADS, "classification")(logits, {})
    torch.testing.assert_close(together, sum(logits.values()), rtol=FP64, atol=FP64)
    expected = certainty_weighted_logits(list(logits.values()), 1.0)[0]
    assert torch.equal(Answer("certainty", HEADS, "classification")(logits, {}), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_without_input_changes_nothing(kind):
    answer, logits = Answer(kind, HEADS, "classification").double(), heads()
    absent = {"uni/audio": torch.zeros(40, dtype=torch.bool)}
    answer.fit(logits, labels_of("classification"), absent)
    other = {**logits, "uni/audio": 1e3 * normal(40, 3, seed=7)}
    assert torch.equal(answer(logits, absent), answer(other, absent))
    nothing = {name: torch.zeros(40, dtype=torch.bool) for name in HEADS}
    assert not answer(logits, nothing).any()


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_temperature_is_the_likeliest(task):
    labels = labels_of(task, 200)
    truth = torch.nn.functional.one_hot(labels).double() if task == "classification" else labels
    logits = 4 * truth + 4 * normal(200, 3)
    best = fit_temperature(task, logits, labels)

    def likelihood(temperature):
        return float(label_log_likelihood(task, logits, labels, temperature).sum())

    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert likelihood(best) > likelihood(best * factor)
    assert fit_temperature(task, logits[:0], labels[:0]) == 1.0


def test_a_label_likelihood_is_a_distribution():
    z = normal(1, 3)
    total = sum(label_log_likelihood("classification", z, torch.tensor([c]), 2.0).exp() for c in range(3))
    assert total.item() == pytest.approx(1.0, abs=FP64)
    every = torch.cartesian_prod(*[torch.arange(2)] * 3).double()
    total = label_log_likelihood("multilabel", z.expand(8, 3), every, 2.0).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=FP64)
    y = normal(5, 2)
    expected = torch.distributions.Normal(normal(5, 2, seed=3), 0.7).log_prob(y).sum(-1)
    got = label_log_likelihood("regression", normal(5, 2, seed=3), y, 0.7)
    torch.testing.assert_close(got, expected, rtol=FP64, atol=FP64)


def test_weights_of_a_mixture_go_to_who_explains_the_labels():
    knows, guesses = torch.full((400,), math.log(0.9)), torch.full((400,), math.log(1 / 3))
    weight = mixture_weights(torch.stack((guesses, knows, guesses), 1), torch.ones(400, 3, dtype=torch.bool))
    assert weight.sum().item() == pytest.approx(1.0, abs=FP64)
    assert weight[1] > 0.9 and weight[0] == weight[2]
    half = torch.arange(400) < 200
    both = torch.stack((torch.where(half, knows, guesses), torch.where(half, guesses, knows)), 1)
    weight = mixture_weights(both, torch.ones(400, 2, dtype=torch.bool))
    assert weight[0].item() == pytest.approx(0.5, abs=FP64)
    none = mixture_weights(both, torch.zeros(400, 2, dtype=torch.bool))
    assert none.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_weights_of_a_pool_are_the_likeliest_of_all_that_are_not_negative(task):
    labels = labels_of(task, 300)
    truth = torch.nn.functional.one_hot(labels).double() if task == "classification" else 2 * labels - 1
    z = torch.stack([k * truth + normal(300, 3, seed=k) for k in (0, 1, 2)] + [-truth], 1)
    usable = torch.arange(1200).view(300, 4) % 7 > 0
    weight = pool_weights(task, z, labels, usable)

    def loss(weight):
        pooled = torch.einsum("nkc,k->nc", z.masked_fill(~usable.unsqueeze(-1), 0.0), weight)
        prior = 0.5 * PSEUDO_COUNTS * (weight - 0.25).square().sum()
        return prior - label_log_likelihood(task, pooled, labels).sum()

    assert weight[3] == 0 and weight[2] > weight[1] > weight[0]
    for direction in (*torch.eye(4, dtype=torch.float64), *-torch.eye(4, dtype=torch.float64)):
        tried = (weight + 1e-3 * direction).clamp(min=0)
        assert loss(tried) > loss(weight) or torch.equal(tried, weight)
    none = pool_weights(task, z, labels, torch.zeros_like(usable))
    torch.testing.assert_close(none, torch.full_like(none, 0.25), rtol=FP64, atol=FP64)


def test_a_pool_is_the_weighted_sum_of_calibrated_heads():
    logits, usable = heads(), {"uni/text": torch.arange(40) % 2 == 0}
    answer = Answer("pool", HEADS, "classification").double()
    assert answer.fit(logits, labels_of("classification"), usable)
    seen = {"task": 1.0, "uni/text": usable["uni/text"].double()[:, None], "uni/audio": 1.0}
    scales = dict(zip(HEADS, answer.weight / answer.temperature, strict=True))
    expected = sum(scales[name] * seen[name] * z for name, z in logits.items())
    torch.testing.assert_close(answer(logits, usable), expected, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("name", ["pgm", "dimml", "dmil", "ensemble", "mla", "mmpareto", "mcr"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_with_several_heads_has_every_answer(make_batch, name, kind):
    spec, batch = make_batch(missing=["audio"], rows=12)
    torch.manual_seed(0)
    model = ModelConfig(dim=8, hidden=12, heads=2, dropout=0.0, answer=kind)
    method = build(name, spec, model, METHODS[name].config_class()).double()
    stages = method.stages(1e-3)
    method.begin_stage(len(stages) - 1)
    method.eval()
    out = method(batch)
    logits = {**out.further, **{f"uni/{m}": z for m, z in out.unimodal.items()}}
    changed = method.after_validation({}, HeldOut(logits, batch.labels, batch.presence))
    assert changed == (kind in ("stack", "pool"))
    usable = {"uni/audio": batch.presence["audio"]}
    own = {k: logits[k] for k in method.answer.heads}
    torch.testing.assert_close(method(batch).logits, method.answer(own, usable), rtol=FP64, atol=FP64)
    assert not method.after_validation({}, HeldOut(logits, batch.labels, batch.presence)), "the same rows, fitted anew"


@pytest.mark.parametrize(
    ("name", "task", "answer", "message"),
    [
        ("pgm", "regression", "certainty", "model.answer=certainty weighs classes, the data's task is regression"),
        ("pgm", "regression", "pool", "model.answer=pool multiplies probabilities, the data's task is regression"),
        ("joint", "classification", "stack", "method joint has one head here: use auto"),
        ("pgm", "retrieval", "mean", "retrieval has no heads that predict labels: use auto"),
        ("pgm", "classification", "means", "did you mean mean?"),
    ],
)
def test_an_answer_that_cannot_be_given_is_refused(make_batch, name, task, answer, message):
    spec, _ = make_batch(task)
    with pytest.raises(ConfigError) as error:
        build(name, spec, ModelConfig(answer=answer), METHODS[name].config_class())
    assert message in str(error.value)
    assert make_config(overrides={"model.answer": "auto"}).model.answer in ANSWERS


@pytest.mark.parametrize(
    ("task", "kind"), [("classification", "pool"), ("multilabel", None), ("regression", None), ("retrieval", None)]
)
def test_the_own_answer_of_pgm(make_batch, task, kind):
    spec, _ = make_batch(task)
    answer = build("pgm", spec, ModelConfig(), METHODS["pgm"].config_class()).answer
    assert (answer and answer.kind) == kind


def test_a_stacked_answer_is_saved_with_the_run(tmp_path):
    settings = {"train.epochs": 3, "train.plots": False, "train.logger": [], "model.answer": "stack"}
    out = str(tmp_path / "run")
    report = fit(method="pgm", data="synthetic", out=out, **settings, **{"data.options": {"n": 300}})
    assert evaluate(out, split="test")["fused"] == report["test"]["fused"]


def test_a_run_from_before_a_setting_existed_does_what_it_did():
    now = to_yaml(make_config())
    assert from_yaml(now).model.normalize is None
    before = "\n".join(line for line in now.splitlines() if "normalize:" not in line)
    assert from_yaml(before).model.normalize is False
