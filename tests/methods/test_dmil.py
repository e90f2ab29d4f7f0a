"""DMIL: every loss is the published one, stages train and freeze what they should, noise is a run's own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tolerances import FP64, ROW_WEIGHT_FP32, ROW_WEIGHT_TOTAL_FP32

from pgm_fast import presets
from pgm_fast.errors import ConfigError
from pgm_fast.methods import DMILConfig, ModelConfig, build
from pgm_fast.methods.dmil_config import loss_terms
from pgm_fast.train.configure import make_config

D = 6
SMALL = ModelConfig(dim=D, hidden=8, heads=2, dropout=0.0, normalize=False)
PUBLISHED_STAGES = {
    # kind of term: effective weights in the released code, per stage
    "task": (0, 1, 1),
    "uni": (1, 0, 0.5),
    "kl_predictive": (0.02, 0, 0.02),
    "kl_rest": (0.02, 0, 0.02),
    "reconstruction": (0.005, 0, 0.003),
    "kl_redundant": (0, 0.02, 0.008),
    "align": (0, 0.02, 0.008),
    "kl_unique": (0, 0.02, 0.008),
    "rebuild": (0, 0.005, 0.001),
    "unique": (0, 0.5, 0.8),
    "redundant": (0, 0.5, 0.8),
    "synergistic": (0, 0.5, 0.8),
}


def make(spec, encoders=None, **config):
    torch.manual_seed(0)
    return build("dmil", spec, SMALL, DMILConfig(**config), encoders).double()


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def divergence(q, p=None):
    """As printed in the paper: the mean over batch and dimensions."""
    (mu_q, l_q), (mu_p, l_p) = q, p or (np.zeros_like(q[0]), np.zeros_like(q[0]))
    return 0.5 * (-(l_q - l_p) + np.exp(l_q - l_p) + (mu_q - mu_p) ** 2 * np.exp(-l_p) - 1).mean()


def by_numpy(method, batch, names):
    """All losses of a complete batch in evaluation, from the parameters alone."""
    w = {name.replace(".linear.", "."): value.detach().numpy() for name, value in method.named_parameters()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rebuilt(a, b, name):
        return linear(np.maximum(linear(np.concatenate([a, b], 1), f"{name}.0"), 0), f"{name}.2")

    def error(x, target):
        return ((x - target) ** 2).sum() / target.size

    labels, losses, n = batch.labels.numpy(), {}, {}
    h = {m: method.encoders[m](batch.inputs[m]).detach().numpy() for m in names}
    means = {}
    for m in names:
        mu_m, n[m], logvar_m, logvar_n = np.split(linear(h[m], f"intra.layers.{m}"), 4, axis=1)
        means[m] = mu_m
        losses[f"kl_predictive/{m}"] = divergence((mu_m, logvar_m))
        losses[f"kl_rest/{m}"] = divergence((n[m], logvar_n))
        losses[f"reconstruction/{m}"] = error(rebuilt(mu_m, n[m], f"intra.rebuild.{m}"), h[m])
        losses[f"uni/{m}"] = cross_entropy(linear(mu_m, f"intra.heads.{m}"), labels)
    q = np.split(linear(np.concatenate(list(means.values()), 1), "consistency.redundant"), 2, axis=1)
    losses["kl_redundant"] = divergence(q)
    components = {}
    for m in names:
        v_mu, u_mu, v_logvar, u_logvar = np.split(linear(means[m], f"consistency.unique.{m}"), 4, axis=1)
        losses[f"align/{m}"] = divergence(q, (v_mu, v_logvar))
        losses[f"kl_unique/{m}"] = divergence((u_mu, u_logvar))
        losses[f"rebuild/{m}"] = error(rebuilt(q[0], u_mu, f"consistency.rebuild.{m}"), means[m])
        components[f"unique/{m}"] = u_mu
    components["redundant"] = q[0]
    rest = list(n.values())
    products = [rest[i] * rest[j] for i in range(len(rest)) for j in range(i + 1, len(rest))]
    components["synergistic"] = linear(np.concatenate([*rest, *products], 1), "consistency.synergistic")
    logits = {f"unique/{m}": linear(components[f"unique/{m}"], f"consistency.unique_heads.{m}") for m in names}
    for name in ("redundant", "synergistic"):
        logits[name] = linear(components[name], f"consistency.{name}_head")
    losses |= {name: cross_entropy(x, labels) for name, x in logits.items()}
    hidden = np.maximum(linear(np.concatenate(list(components.values()), 1), "consistency.gate.hidden"), 0)
    gate = softmax(linear(hidden, "consistency.gate.out"))
    fused = sum(gate[:, k : k + 1] * x for k, x in enumerate(logits.values()))
    losses["task"] = cross_entropy(fused, labels)
    return losses, fused, gate


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_loss_and_its_weight_is_the_published_one(make_batch, modalities, stage):
    spec, batch = make_batch(modalities=modalities)
    names = list(spec.modalities)
    method = make(spec, modality_weight={"text": 0.4, "audio": 2.0}).eval()
    method.begin_stage(stage)
    out = method(batch)
    want, fused, gate = by_numpy(method, batch, names)
    got = {name: loss.item() for name, loss in out.losses.items()}
    weights = {name: PUBLISHED_STAGES[name.split("/")[0]][stage] for name in want}
    if stage == 0:
        for name in weights:
            if name.startswith(("kl_", "reconstruction")):
                weights[name] *= {"text": 0.4, "audio": 2.0}.get(name.partition("/")[2], 1)
    assert set(got) == {name for name, weight in weights.items() if weight} | {"total"}
    for name in set(got) - {"total"}:
        assert got[name] == pytest.approx(want[name], rel=ROW_WEIGHT_FP32, abs=FP64), name
    total = sum(weight * want[name] for name, weight in weights.items())
    assert got["total"] == pytest.approx(total, rel=ROW_WEIGHT_TOTAL_FP32, abs=FP64)
    if stage:
        np.testing.assert_allclose(out.logits.detach().numpy(), fused, rtol=FP64, atol=FP64)
        shown = np.stack([x.detach().numpy() for x in out.gates.values()], 1)
        np.testing.assert_allclose(shown, gate, rtol=FP64, atol=FP64)
        assert list(out.gates) == [*(f"unique/{m}" for m in names), "redundant", "synergistic"] == list(out.further)
        for name, logits in out.further.items():
            alone = cross_entropy(logits.detach().numpy(), batch.labels.numpy())
            assert alone == pytest.approx(want[name], rel=ROW_WEIGHT_FP32, abs=FP64), name
    else:
        assert not out.gates and not out.further
        alone = torch.stack(list(out.unimodal.values())).mean(0)
        torch.testing.assert_close(out.logits, alone, rtol=FP64, atol=FP64)


def test_the_preset_weighs_pictures_and_sound_as_released():
    """Stage 1: KL(M) + KL(N) 0.008 and 0.04, reconstruction 0.002 and 0.01, the pictures first."""
    told = next(line for line in presets.text("dmil/crema-d").splitlines() if "modality_weight={" in line)
    config = make_config(overrides=["preset=dmil/crema-d", told[told.index("dmil.") :]]).dmil
    weights = {(term.name, term.modality): term.weight for term in loss_terms(config, ["vision", "audio"], 0)}
    for modality, divergence, reconstruction in (("vision", 0.008, 0.002), ("audio", 0.04, 0.01)):
        for kind in ("kl_predictive", "kl_rest"):
            assert weights[f"{kind}/{modality}", modality] == pytest.approx(divergence, abs=FP64)
        assert weights[f"reconstruction/{modality}", modality] == pytest.approx(reconstruction, abs=FP64)
        assert weights[f"uni/{modality}", modality] == 1.0


class Normed(torch.nn.Module):
    """An encoder with running statistics and dropout."""

    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, D)
        self.norm = torch.nn.BatchNorm1d(D)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.norm(self.linear(x)))


def train_stage(method, batch, groups, stage, steps=3):
    """As the loop does it: what is in no group is frozen."""
    trained = {id(p) for group in groups for p in group["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        parameter.grad = None
    method.begin_stage(stage)
    method.train()
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        method(batch).losses["total"].backward()
        optimizer.step()


def test_each_stage_moves_its_own_part_and_leaves_the_rest_bitwise_with_its_batch_statistics(make_batch):
    spec, batch = make_batch(rows=12, modalities=2)
    method = make(spec, {m: Normed(s.dim) for m, s in spec.modalities.items()})

    stages = method.stages(0.05)

    def moved(stage):
        before = {name: value.clone() for name, value in method.state_dict().items()}
        train_stage(method, batch, stages[stage].groups, stage)
        after = method.state_dict()
        return {name for name in after if name != "_extra_state" and not torch.equal(before[name], after[name])}

    everything = {name for name in method.state_dict() if name != "_extra_state"}
    first = {name for name in everything if name.startswith(("encoders.", "intra."))}
    assert moved(0) == first
    assert moved(1) == everything - first
    assert moved(2) == everything


def test_frozen_layers_still_sample_the_rest(make_batch):
    """In the second stage encoders and layers are in evaluation mode, but S is made of draws of N."""
    spec, batch = make_batch(modalities=2)
    method = make(spec)
    method.begin_stage(1)
    method.train()
    assert not method.intra.training and not method.encoders.training and method.consistency.training
    torch.manual_seed(0)
    first, second = (method(batch).losses["synergistic"] for _ in range(2))
    assert first != second
    assert method.eval()(batch).losses["synergistic"] == method(batch).losses["synergistic"]


def test_components_of_absent_modalities_have_no_weight(make_batch):
    spec, batch = make_batch(missing=["audio", "vision"])
    gates = make(spec).eval()(batch).gates
    total = sum(gates.values())
    torch.testing.assert_close(total, torch.ones_like(total), rtol=FP64, atol=FP64)
    for m, present in batch.presence.items():
        assert not gates[f"unique/{m}"][~present].any() and gates[f"unique/{m}"][present].all()
    alone = sum(p.int() for p in batch.presence.values()) + 1 < 2
    assert alone.any() and not gates["synergistic"][alone].any() and gates["synergistic"][~alone].all()
    assert gates["redundant"].all()


def test_noise_comes_from_the_generator_and_is_the_same_again(make_batch):
    spec, batch = make_batch(modalities=2)
    method = make(spec)

    def gradients():
        torch.manual_seed(5)
        method.zero_grad()
        method(batch).losses["total"].backward()
        return [p.grad.clone() for p in method.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


def test_saved_weights_say_which_stage_they_are_of(make_batch):
    spec, batch = make_batch(modalities=2)
    early, other = make(spec), make(spec)
    early.begin_stage(0)
    other.load_state_dict(early.state_dict())
    assert torch.equal(other.eval()(batch).logits, early.eval()(batch).logits) and not other(batch).gates


def test_plateau_and_epochs_are_per_stage(make_batch):
    spec, _ = make_batch(modalities=2)
    config = {"schedule": "plateau", "stage_rates": [1.0, 0.25, 0.0025], "stage_epochs": [10, 5, 0]}
    stages = make(spec, **config).stages(4e-3)
    assert [stage.name for stage in stages] == ["intra", "consistency", "joint"]
    assert [stage.epochs for stage in stages] == [10, 5, None]
    for stage, lr, factor, patience in zip(stages, (4e-3, 1e-3, 1e-5), (0.2, 0.1, 0.1), (2, 1, 10), strict=True):
        assert stage.schedule == "plateau" and stage.schedule_options == {
            "factor": factor,
            "patience": patience,
            "monitor": "loss",
        }
        assert [group["lr"] for group in stage.groups] == pytest.approx([lr] * len(stage.groups), abs=FP64)


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        ({"task": "retrieval"}, {}, "dmil does .*the data's task is retrieval: use joint or pgm"),
        ({"modalities": 1}, {}, "dmil needs two modalities or more, the data has text"),
        ({}, {"modality_weight": {"smell": 1.0}}, "dmil.modality_weight names 'smell'; the data has text, audio"),
        ({}, {"kl_weight": [1.0, 2.0]}, r"dmil.kl_weight is \[1.0, 2.0\], must be three"),
        ({}, {"component_weight": [0.0, -1.0, 0.0]}, "dmil.component_weight is"),
        ({}, {"schedule": "cosine"}, "dmil.schedule='cosine' is not allowed; it takes train, plateau"),
        ({}, {"rates": {"*": {"tail": 1.0}}}, "tail"),
    ],
)
def test_what_cannot_be_is_named(make_batch, data, config, message):
    spec, _ = make_batch(**data)
    with pytest.raises(ConfigError, match=message):
        make(spec, **config).stages(0.1)


def test_without_labels_the_gates_are_there(make_batch):
    spec, batch = make_batch(modalities=2)
    out = make(spec).eval()(dataclasses.replace(batch, labels=None), report=True)
    assert out.gates and not out.losses
    assert set(out.features) == {f"{m}/{side}" for m in spec.modalities for side in ("uni", "paired")}


def test_the_published_settings_are_a_preset(make_batch):
    """Learning rates, schedules and the weights of the table, as the released code has them."""
    config = make_config(overrides={"preset": "dmil/crema-d", "dmil.modality_weight": {"text": 0.4, "audio": 2.0}})
    stages = build("dmil", make_batch(modalities=2)[0], config.model, config.dmil).stages(config.train.lr)
    assert [round(stage.groups[0]["lr"], 9) for stage in stages] == [4e-3, 1e-3, 1e-5]
    assert sum(stage.epochs for stage in stages) == 70 and config.model.dim == 32
    assert (config.train.optimizer, config.train.weight_decay, config.train.batch_size) == ("sgd", 1e-4, 64)


def test_the_gates_own_loss_is_against_what_each_row_tells(make_batch):
    """Our extension, against numpy: redundant min, unique the rest, synergistic what no modality knows."""
    spec, batch = make_batch(modalities=2)
    method = make(spec, gate_weight=[0.0, 2.0, 3.0]).eval()
    out = method(batch)
    labels, rows = batch.labels.numpy(), np.arange(len(batch.labels))
    known = [
        np.maximum(0, math.log(3) + np.log(softmax(x.detach().numpy())[rows, labels])) for x in out.unimodal.values()
    ]
    least, most = np.minimum(*known), np.maximum(*known)
    target = np.stack([known[0] - least, known[1] - least, least, math.log(3) - most], 1) / math.log(3)
    gate = np.stack([x.detach().numpy() for x in out.gates.values()], 1)
    want = -(target * np.log(gate)).sum(1).mean()
    assert out.losses["gate"].item() == pytest.approx(want, rel=ROW_WEIGHT_FP32, abs=FP64)
    without = make(spec).eval()(batch).losses
    assert "gate" not in without
    extra = out.losses["total"] - without["total"]
    assert extra.item() == pytest.approx(3 * want, rel=ROW_WEIGHT_TOTAL_FP32, abs=FP64)
    gradients = torch.autograd.grad(out.losses["gate"], list(method.intra["heads"].parameters()))
    assert not any(gradient.any() for gradient in gradients)  # the target is not differentiated


def test_the_gates_own_loss_leaves_absent_components_out(make_batch):
    spec, batch = make_batch(missing=["audio", "vision"])
    method = make(spec, gate_weight=[0.0, 1.0, 1.0])
    method(batch).losses["gate"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    spec, _ = make_batch("regression")
    with pytest.raises(ConfigError, match="gate_weight .* it needs classes"):
        make(spec, gate_weight=[0.0, 1.0, 1.0])
