"""PgM: its losses are its formula, nothing leaks into the uni-modal side, every switch trains."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from module_cases import awaken
from tolerances import FP64, ROW_WEIGHT_FP32, TRAINED_SHARE
from torch.nn.functional import gelu

from pgm_fast.data.batch import Batch
from pgm_fast.errors import ConfigError
from pgm_fast.methods import ModelConfig, PgMConfig, build
from pgm_fast.methods.pgm import PARTITIONER_RATE
from pgm_fast.methods.tasks import task_loss
from pgm_fast.nn import cross_modal_info_nce
from pgm_fast.nn.partitioner import GATES

SMALL = ModelConfig(dim=8, hidden=12, heads=2, dropout=0.0, normalize=False)


BEFORE = {"gate": "single", "identity_start": False, "interaction": "attention"}  # the form with a single gate


def make(spec, model=SMALL, **config):
    torch.manual_seed(0)
    return awaken(build("pgm", spec, model, PgMConfig(**config)).double())


def requiring_gradients(batch):
    inputs = {m: x.clone().requires_grad_() for m, x in batch.inputs.items()}
    return dataclasses.replace(batch, inputs=inputs)


def test_total_is_the_weighted_sum_of_means_over_modalities(make_batch):
    spec, batch = make_batch(missing=["audio"])
    config = {
        "uni_weight": 0.7,
        "paired_weight": 0.6,
        "align_weight": 0.5,
        "reconstruction_weight": 0.4,
        "share_weight": 0.3,
        "share_target": {"text": 0.2, "vision": 0.9},
    }
    losses = make(spec, **config)(batch).losses

    def mean(kind):
        terms = [loss for name, loss in losses.items() if name.startswith(f"{kind}/")]
        return sum(terms) / len(terms)

    expected = losses["task"] + 0.7 * mean("uni") + 0.6 * losses["paired"] + 0.5 * losses["align"]
    expected = expected + 0.4 * mean("reconstruction") + 0.3 * mean("share") + mean("information")
    torch.testing.assert_close(losses["total"], expected, rtol=FP64, atol=FP64)
    assert [name for name in losses if name.startswith("share/")] == ["share/text", "share/vision"]
    assert [name for name in losses if name.startswith("uni/")] == ["uni/text", "uni/audio", "uni/vision"]


def test_losses_are_those_of_the_formula(make_batch):
    spec, batch = make_batch(missing=["audio"])
    method = make(spec, **BEFORE)
    out = method(batch, report=True)
    h = {m: method.encoders[m](batch.inputs[m]) for m in spec.modalities}
    here = batch.presence["audio"]
    h["audio"] = h["audio"] * here.unsqueeze(-1)
    decoded = {}
    for m, x in h.items():
        z = method.block.partitioners[m].projection(x)
        gate = torch.softmax(z, -1).cumsum(-1)
        learners = method.block.learners[m]
        f_uni = learners.uni_norm(learners.uni(gelu(learners.split.uni((1 - gate) * x))))
        f_paired = learners.paired_norm(learners.paired(gelu(learners.split.paired(gate * x))))
        decoder = method.block.decoders[m]
        decoded[m] = decoder.uni(f_uni) + decoder.paired(f_paired)
        rows = (decoded[m] - x).square().mean(-1)
        torch.testing.assert_close(
            out.losses[f"reconstruction/{m}"], (rows * batch.weight_of(m)).sum(), rtol=FP64, atol=FP64
        )
        expected = task_loss("classification", method.uni_heads[m](f_uni), batch.labels, batch.weight_of(m))
        torch.testing.assert_close(out.losses[f"uni/{m}"], expected, rtol=FP64, atol=FP64)
        seen = here if m == "audio" else torch.ones_like(here)
        torch.testing.assert_close(out.features[f"{m}/uni"][seen], f_uni[seen], rtol=FP64, atol=FP64)
        torch.testing.assert_close(out.features[f"{m}/paired"][seen], f_paired[seen], rtol=FP64, atol=FP64)
        torch.testing.assert_close(
            out.shares[m], torch.stack((1 - gate.mean(-1), gate.mean(-1)), -1), rtol=FP64, atol=FP64
        )
    decoded["audio"] = decoded["audio"] * here.unsqueeze(-1)
    logits = method.head(torch.cat([decoded[m] for m in spec.modalities], -1))
    torch.testing.assert_close(out.logits, logits, rtol=FP64, atol=FP64)
    torch.testing.assert_close(
        out.losses["task"], task_loss("classification", logits, batch.labels, batch.weight), rtol=FP64, atol=FP64
    )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("condition", [False, True])
def test_a_uni_modal_loss_has_exactly_no_gradient_in_other_modalities(make_batch, gate, condition):
    spec, batch = make_batch()
    batch = requiring_gradients(batch)
    out = make(spec, gate=gate, condition_on_others=condition)(batch)
    for m in spec.modalities:
        grads = torch.autograd.grad(
            out.losses[f"uni/{m}"], list(batch.inputs.values()), retain_graph=True, allow_unused=True
        )
        for other, grad in zip(batch.inputs, grads, strict=True):
            assert (grad is not None and grad.any()) == (other == m), (m, other)


@pytest.mark.parametrize("config", [{}, {"condition_on_others": True}, {"uni_learner": False}, {"uni_weight": 0.0}])
@pytest.mark.parametrize("condition", [False, True])
def test_a_unimodal_prediction_reads_one_modality_only(make_batch, config, condition):
    spec, batch = make_batch()
    batch = requiring_gradients(batch)
    out = make(spec, **{"condition_on_others": condition, **config}).eval()(batch)
    for m, logits in out.unimodal.items():
        grads = torch.autograd.grad(
            logits.square().sum(), list(batch.inputs.values()), retain_graph=True, allow_unused=True
        )
        for other, grad in zip(batch.inputs, grads, strict=True):
            assert (grad is not None and grad.any()) == (other == m), (m, other)


@pytest.mark.parametrize("condition", [False, True])
def test_without_uni_learner_the_unimodal_prediction_is_the_fused_one_with_the_others_absent(make_batch, condition):
    spec, batch = make_batch()
    method = make(spec, uni_learner=False, condition_on_others=condition).eval()
    nowhere = torch.zeros(6, dtype=torch.bool)
    lone = dataclasses.replace(
        batch,
        presence={"audio": nowhere, "vision": nowhere},
        modality_weight={m: torch.zeros(6) for m in ("audio", "vision")},
    )
    torch.testing.assert_close(method(batch).unimodal["text"], method(lone).further["task"], rtol=FP64, atol=FP64)


def test_embeddings_read_one_modality_only(make_batch):
    spec, batch = make_batch("retrieval")
    batch = requiring_gradients(batch)
    out = make(spec)(batch)
    for m, embedding in out.embeddings.items():
        grads = torch.autograd.grad(
            embedding[:, 0].sum(), list(batch.inputs.values()), retain_graph=True, allow_unused=True
        )
        for other, grad in zip(batch.inputs, grads, strict=True):
            assert (grad is not None and grad.any()) == (other == m)


def test_retrieval_trains_by_matching_and_alignment(make_batch):
    spec, batch = make_batch("retrieval")
    out = make(spec, align_weight=0.5, reconstruction_weight=0.0)(batch, report=True)
    paired = {m: out.features[f"{m}/paired"] for m in spec.modalities}
    task, align = cross_modal_info_nce(out.embeddings, 0.1), cross_modal_info_nce(paired, 0.1)
    torch.testing.assert_close(out.losses["total"], task + 0.5 * align, rtol=ROW_WEIGHT_FP32, atol=0)
    assert not any(name.startswith("uni/") or name == "paired" for name in out.losses)


SWITCHES = [
    {"gate": gate, "uni_learner": uni, "paired_learner": paired, "decoder": decoder, "identity_start": identity}
    for gate, identity in itertools.product(GATES, (True, False))
    for uni, paired in ((True, True), (True, False), (False, True))
    for decoder in (True, False)
]
OTHERS = [
    {"interaction": "attention"},
    {"information_weight": 0.0},
    {"condition_on_others": True},
    {"condition_on_others": True, "gate": "dual", "decoder": False},
    {"chunk": 4, "gate": "dual"},
    {"learner_dim": 6},
    {"temperature": 0.3},
    {"reconstruct_through": True},
    {"uni_weight": 0.0},
    {"paired_weight": 0.0},
    {"align_weight": 0.0},
    {"reconstruction_weight": 0.0},
    {"uni_weight": 0.0, "paired_weight": 0.0, "align_weight": 0.0, "reconstruction_weight": 0.0},
    {"share_weight": 1.0, "share_target": {"*": 0.7}},
    {"share_weight": 1.0, "share_target": {"text": 0.7}, "gate": "dual"},
    {"share_weight": 1.0, "share_target": {"text": 0.7}, "gate": "single"},
    {"share_weight": 1.0, "share_target": {"text": 0.7}, "gate": "sigmoid", "chunk": 2},
]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        pytest.param(config, task, id=f"{task}:" + ",".join(f"{k}={v}" for k, v in config.items()))
        for config in SWITCHES + OTHERS
        for task in ("classification", "retrieval")
        if not (task == "retrieval" and "condition_on_others" in config)
    ],
)
def test_every_switch_trains_every_parameter_that_it_leaves(make_batch, config, task):
    spec, batch = make_batch(task, missing=["audio"])
    method = make(spec, **config)
    out = method(batch, report=True)
    out.losses["total"].backward()
    assert torch.isfinite(out.losses["total"])
    expected_kinds = [k for k in ("uni", "paired") if config.get(f"{k}_learner", True)]
    assert set(out.features) == {f"{m}/{k}" for m in spec.modalities for k in expected_kinds}
    assert set(out.shares) == set(spec.modalities)
    grouped = {id(p) for group in method.stages(0.1)[0].groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        assert id(parameter) in grouped and parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_reports_only_when_asked(make_batch):
    spec, batch = make_batch()
    out = make(spec)(batch)
    assert out.shares == {} and out.features == {}


@pytest.mark.parametrize(
    "gate", ["boundary", "dual", *(pytest.param(other, marks=pytest.mark.slow) for other in ("single", "sigmoid"))]
)
@pytest.mark.parametrize("target", [0.2, 0.8])
def test_the_share_follows_its_target(make_batch, gate, target):
    spec, batch = make_batch()
    settings = {"share_weight": 10.0, "share_target": {"text": target}, "information_weight": 0.0}
    torch.manual_seed(0)
    config = PgMConfig(gate=gate, rates={"*": {"partitioner": 0.02 if gate == "boundary" else 1.0}}, **settings)
    method = build("pgm", spec, dataclasses.replace(SMALL, dim=32), config).double()
    optimizer = torch.optim.Adam(method.stages(0.03)[0].groups)
    for _ in range(240):
        optimizer.zero_grad()
        method(batch).losses["total"].backward()
        optimizer.step()
    share = method(batch, report=True).shares["text"]
    assert abs(share[:, 1:3].sum(-1).mean().item() - target) < TRAINED_SHARE


def test_parts_move_at_their_rates(make_batch):
    spec, batch = make_batch()
    rates = {"*": {"encoder": 0.5}, "text": {"uni": 0.0, "encoder": 2.0}, "shared": {"head": 0.25}}
    method = make(spec, rates=rates, interaction="attention")
    groups = {g["name"]: g for g in method.stages(0.1)[0].groups}
    assert groups["text.encoder"]["lr"] == 0.2 and groups["audio.encoder"]["lr"] == 0.05
    assert (
        groups["shared.head"]["lr"] == 0.025
        and groups["text.head"]["lr"] == 0.1
        and groups["shared.paired"]["lr"] == 0.1
        and groups["text.partitioner"]["lr"] == 0.1 * PARTITIONER_RATE
    )
    slower = make(spec, rates={"*": {"partitioner": 2.0}}).stages(0.1)[0].groups
    assert {g["lr"] for g in slower if g["name"].endswith(".partitioner")} == {0.2}
    before = {name: [p.detach().clone() for p in g["params"]] for name, g in groups.items()}
    method(batch).losses["total"].backward()
    torch.optim.SGD(list(groups.values()), lr=1.0).step()
    for name, group in groups.items():
        for old, p in zip(before[name], group["params"], strict=True):
            torch.testing.assert_close(old - p, group["lr"] * p.grad, rtol=FP64, atol=FP64)


def test_state_dict_names_do_not_change(make_batch):
    spec, _ = make_batch(modalities=2)
    names = list(make(spec, dataclasses.replace(SMALL, answer="task"), **BEFORE).state_dict())
    per_modality = [
        "encoders.{m}.net.0",
        "encoders.{m}.net.3",
        "block.partitioners.{m}.projection",
        "block.learners.{m}.split.uni",
        "block.learners.{m}.split.paired",
        "block.learners.{m}.uni",
        "block.learners.{m}.paired",
        "block.learners.{m}.uni_norm",
        "block.learners.{m}.paired_norm",
        "uni_heads.{m}.0",
        "uni_heads.{m}.3",
    ]
    shared = [
        "head.0",
        "head.3",
        "interaction.norm",
        "interaction.qkv",
        "interaction.out",
        "paired_head.0",
        "paired_head.3",
    ]
    layers = [layer.format(m=m) for m in spec.modalities for layer in per_modality] + shared
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    decoder = ("uni.weight", "paired.weight", "paired.bias")
    expected |= {f"block.decoders.{m}.{p}" for m in spec.modalities for p in decoder}
    assert set(names) == expected and len(names) == len(expected)


def test_rows_with_one_modality_do_not_count_in_the_paired_loss(make_batch):
    spec, batch = make_batch(modalities=2, missing=["audio"])
    method = make(spec)
    labels = torch.where(batch.presence["audio"], batch.labels, (batch.labels + 1) % 3)
    changed = method(dataclasses.replace(batch, labels=labels)).losses
    losses = method(batch).losses
    assert changed["paired"] == losses["paired"] and changed["task"] != losses["task"]


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ({"gate": "soft"}, "classification", "pgm.gate='soft' is not allowed; it takes boundary, single"),
        ({"chunk": 3, "gate": "single"}, "classification", "chunk is 3.*8"),
        ({"temperature": -1.0}, "classification", "pgm.temperature=-1.0"),
        ({"interaction": "sum"}, "classification", "pgm.interaction='sum' is not allowed; it takes attention, concat"),
        ({"learner_dim": -1}, "classification", "pgm.learner_dim=-1"),
        ({**BEFORE, "learner_dim": 5}, "classification", "model.heads is 2.*5"),
        ({"uni_learner": False, "paired_learner": False}, "classification", "keep at least one"),
        ({"uni_weight": -0.1}, "classification", "pgm.uni_weight=-0.1"),
        ({"align_weight": float("nan")}, "classification", "pgm.align_weight=nan"),
        ({"share_weight": 1.0}, "classification", "pgm.share_target is empty"),
        ({"share_weight": 1.0, "share_target": {"*": 1.5}}, "classification", "'\\*' is 1.5"),
        ({"share_target": {"txt": 0.5}}, "classification", "'txt'.*text, audio"),
        ({"share_weight": 1.0, "share_target": {"*": 0.5}, "gate": "none"}, "classification", "gate none has no share"),
        ({"condition_on_others": True}, "retrieval", "cannot be used for retrieval"),
    ],
)
def test_wrong_values_are_named(make_batch, config, task, message):
    with pytest.raises(ConfigError, match=message):
        make(make_batch(task)[0], **config)


@pytest.mark.parametrize("rates", [{"txt": {"uni": 1.0}}, {"*": {"unni": 1.0}}, {"text": {"decoder": 1.0}}])
def test_wrong_rates_are_named_when_the_stage_is_made(make_batch, rates):
    method = make(make_batch()[0], rates=rates, decoder=False)
    with pytest.raises(ConfigError, match="txt|unni|text.decoder"):
        method.stages(0.1)


def test_retrieval_needs_two_modalities(make_batch):
    with pytest.raises(ConfigError, match="two modalities"):
        make(make_batch("retrieval", modalities=1)[0])


def test_the_paired_loss_is_a_mean_over_the_rows_that_have_a_pair(make_batch):
    """However few they are: rows that cannot be paired do not shrink it."""
    spec, batch = make_batch(rows=12, modalities=2, missing=("audio",))
    method = build("pgm", spec, ModelConfig(dim=8, hidden=8, heads=2), PgMConfig()).double().eval()
    here = batch.presence["audio"]
    rows = here.nonzero().squeeze(-1)
    whole = Batch(
        inputs={m: x[rows] for m, x in batch.inputs.items()},
        weight=torch.full((len(rows),), 1 / len(rows)),
        index=torch.arange(len(rows)),
        labels=batch.labels[rows],
    )
    few, all_paired = method(batch).losses, method(whole).losses
    for name in ("paired", "align"):
        torch.testing.assert_close(few[name], all_paired[name], rtol=ROW_WEIGHT_FP32, atol=0)
