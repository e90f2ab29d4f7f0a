"""DI-MML: losses and answers equal the formulas, encoders are isolated, stages freeze and cache, runs resume."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal

import numpy as np
import pytest
import torch
from tolerances import FP64, ROW_WEIGHT_FP32, mean_of_draws
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from pgm_fast.data import FeatureSet
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.errors import ConfigError
from pgm_fast.methods import DIMMLConfig, ModelConfig, build
from pgm_fast.train import evaluate, fit, resume
from pgm_fast.train.configure import make_config, to_dict
from pgm_fast.train.run import checkpoints
from pgm_fast.train.run.json_files import read_jsonl
from pgm_fast.train.step.guard import UpdateGuard

SMALL = ModelConfig(dim=8, hidden=12, heads=2, dropout=0.0, normalize=False)


def make(spec, *, model=SMALL, encoders=None, **config):
    torch.manual_seed(0)
    return build("dimml", spec, model, DIMMLConfig(**config), encoders).double()


def distilling(spec, batch, **config):
    """A method after its warm-up, measured on the batch."""
    method = make(spec, warmup=0, **config)
    with torch.no_grad():
        method.eval().begin_epoch(0, 0, lambda: iter([batch]))
    return method.train()


def numbers(x):
    return x.detach().double().numpy()


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def linear(head, x):
    return x @ numbers(head.weight).T + numbers(head.bias)


def represent(method, batch):
    """modality -> float64 ``[n, dim]``, zeros where absent."""
    f = {m: numbers(encoder(batch.inputs[m])) for m, encoder in method.encoders.items()}
    return {m: x * numbers(batch.presence[m])[:, None] if m in batch.presence else x for m, x in f.items()}


def cross_entropy(z, labels, weight):
    return -(weight * np.log(softmax(z)[np.arange(len(z)), labels])).sum()


def effective(f, labels, present):
    """Every value against every centroid."""
    x, y = f[present], labels[present]
    centroids = np.stack([x[y == c].mean(0) if (y == c).any() else np.full(x.shape[1], np.inf) for c in range(3)])
    accuracy = (np.abs(x[:, None] - centroids).argmin(1) == y[:, None]).mean(0)
    return accuracy > accuracy.mean()


@pytest.mark.parametrize("missing", [(), ("audio", "vision")])
def test_first_stage_equals_the_formula(make_batch, missing):
    spec, batch = make_batch(rows=24, missing=missing)
    method = distilling(spec, batch, temperature=5.0, shared_weight=0.7, duc_weight=0.3)
    losses = method(batch).losses
    f, labels, rows = represent(method, batch), batch.labels.numpy(), np.arange(24)
    here = {m: numbers(batch.presence[m]) > 0 if m in missing else rows >= 0 for m in f}
    expected = {f"uni/{m}": cross_entropy(linear(method.heads[m], f[m]), labels, here[m] / here[m].sum()) for m in f}
    for m in f:
        z = linear(method.shared_head, f[m])
        expected[f"shared/{m}"] = cross_entropy(z, labels, here[m] / here[m].sum())
    chosen = {m: effective(f[m], labels, here[m]) for m in f}
    expected["duc"], pairs = 0.0, 0
    for student in f:
        for teacher in f:
            dims = chosen[teacher] & ~chosen[student]
            if student != teacher and dims.any():
                both = here[student] & here[teacher]
                z = f[student][both][:, dims] @ f[teacher][both][:, dims].T / 5.0
                expected["duc"] += cross_entropy(z, np.arange(both.sum()), np.full(both.sum(), 1 / both.sum()))
                pairs += 1
    assert pairs >= 4
    expected["total"] = sum(expected[f"uni/{m}"] + 0.7 * expected[f"shared/{m}"] for m in f) + 0.3 * expected["duc"]
    assert set(losses) == set(expected)
    for name, want in expected.items():
        assert losses[name].item() == pytest.approx(want, rel=ROW_WEIGHT_FP32, abs=ROW_WEIGHT_FP32), name


@pytest.mark.parametrize("missing", [(), ("audio", "vision")])
@pytest.mark.parametrize("stage", [0, 1])
def test_the_answer_is_weighted_by_certainty(make_batch, missing, stage):
    spec, batch = make_batch(missing=missing)
    method = make(spec, certainty_temperature=0.2)
    method.begin_stage(stage)
    out = method.eval()(batch)
    f = represent(method, batch)
    heads = [linear(method.heads[m], f[m]) for m in f]
    present = [numbers(batch.presence[m]) if m in missing else np.ones(6) for m in f]
    if stage == 1:
        heads.append(linear(method.fusion_head, np.concatenate(list(f.values()), 1)))
        present.append(np.ones(6))
        torch.testing.assert_close(out.further["fusion"], torch.as_tensor(heads[-1]), rtol=FP64, atol=FP64)
    certainty = np.exp(np.stack([softmax(z).max(1) for z in heads], 1) / 0.2) * np.stack(present, 1)
    weights = certainty / certainty.sum(1, keepdims=True)
    fused = (np.stack(heads, 1) * weights[..., None]).sum(1)
    torch.testing.assert_close(out.logits, torch.as_tensor(fused), rtol=FP64, atol=FP64)
    assert set(out.further) == {f"shared/{m}" for m in f} | ({"fusion"} if stage else set())


def test_before_the_interaction_no_modality_reaches_anothers_encoder(make_batch):
    spec, batch = make_batch()
    method = make(spec)
    other = dataclasses.replace(batch, inputs={**batch.inputs, "text": batch.inputs["text"] * 3 + 1})
    gradients = [
        torch.autograd.grad(method(b).losses["total"], list(method.encoders["audio"].parameters()))
        for b in (batch, other)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_interaction_teaches_the_student_alone(make_batch):
    spec, batch = make_batch(rows=24, modalities=2)
    method = distilling(spec, batch, temperature=5.0)
    method.effective[:] = torch.tensor([[True] * 4 + [False] * 4, [False] * 8])
    method._look()
    duc = method(batch).losses["duc"]
    by_text, by_audio = (
        torch.autograd.grad(duc, list(method.encoders[m].parameters()), retain_graph=True, allow_unused=True)
        for m in ("text", "audio")
    )
    assert all(g is not None and g.any() for g in by_audio)
    assert all(g is None or not g.any() for g in by_text)


def test_dimensions_are_measured_once_at_the_end_of_the_warmup_and_kept_in_checkpoints(make_batch):
    spec, batch = make_batch(rows=24)
    method = make(spec, warmup=3)
    assert "duc" not in method(batch).losses and method.findings() == {}
    method.begin_epoch(0, 2, lambda: iter([batch]))
    assert not method.measured
    method.begin_epoch(0, 3, lambda: iter([batch]))
    before = method.findings()
    assert set(before["effective_dimensions"]) == set(spec.modalities) and "duc" in method(batch).losses
    with torch.no_grad():
        for parameter in method.encoders.parameters():
            parameter.mul_(-2)
    method.begin_epoch(0, 4, lambda: iter([batch]))
    assert method.findings() == before
    again = make(spec, warmup=3)
    again.load_state_dict(method.state_dict())
    again.begin_epoch(0, 4, lambda: iter([]))
    assert again.findings() == before
    assert torch.equal(again(batch).losses["total"], method(batch).losses["total"])


class Counting(nn.Module):
    """Batch normalisation and dropout, both of which show in what mode they run; counts its calls."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x)


@pytest.mark.parametrize("cache", [True, False])
def test_second_stage_trains_the_fusion_head_on_frozen_features(make_batch, cache):
    spec, batch = make_batch(rows=12, modalities=2, missing=["audio"])
    batch.index = batch.index * 2 + 5  # numbers of rows, of which the split has some
    method = make(spec, cache=cache, encoders={"text": Counting(5)})
    method(batch)
    method.begin_stage(1)
    encoder = method.encoders["text"]
    method.eval()
    frozen = {key: value.clone() for key, value in method.encoders.state_dict().items()}
    with torch.no_grad():
        expected = method(batch).losses["fusion"]
        method.begin_epoch(1, 0, lambda: iter([batch]))
    method.train()
    calls = encoder.calls
    losses = method(batch).losses
    assert encoder.calls == calls + (0 if cache else 1)
    assert set(losses) == {"fusion", "total"} and torch.equal(losses["total"], expected)
    losses["total"].backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {"fusion_head.weight", "fusion_head.bias"}
    state = method.encoders.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in frozen.items())
    hidden = torch.zeros(12, dtype=torch.bool)
    other = dataclasses.replace(
        batch,
        inputs={**batch.inputs, "text": torch.zeros_like(batch.inputs["text"])},
        presence={**batch.presence, "text": hidden},
    )
    by_audio = method(other).losses["total"]
    assert torch.equal(method.eval()(other).losses["total"], by_audio)


@pytest.mark.parametrize("stage", ["interaction", "fusion"])
def test_no_step_of_either_stage_needs_a_value_on_the_host(make_batch, stage):
    """Fake tensors have no values: .item(), bool(), nonzero() and boolean indexing raise."""
    spec, batch = make_batch(rows=24, missing=["audio"])
    method = distilling(spec, batch, temperature=5.0)
    if stage == "fusion":
        method.begin_stage(1)
        method.eval().begin_epoch(1, 0, lambda: iter([batch]))
        method.train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        losses = method(Batch(**tree_map_only(torch.Tensor, mode.from_tensor, fields))).losses
        losses["total"].backward()
    assert ("duc" in losses) == (stage == "interaction") and ("fusion" in losses) == (stage == "fusion")


def test_stages_have_their_settings(make_batch):
    settings = {
        "detached_epochs": 150,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "schedule": "step",
        "schedule_options": {"every": 70},
    }
    method = make(make_batch()[0], rates={"text": {"encoder": 0.5}}, **settings)
    first, second = method.stages(0.1)
    assert (first.name, first.epochs, second.name, second.epochs) == ("detached", 150, "fusion", 20)
    for stage in (first, second):
        assert (stage.optimizer, stage.weight_decay, stage.schedule, stage.patience) == ("sgd", 1e-4, "step", 0)
        assert stage.schedule_options == {"every": 70}
    assert {g["name"]: g["lr"] for g in first.groups}["text.encoder"] == 0.05
    assert [g["name"] for g in second.groups] == ["shared.head"] and len(second.groups[0]["params"]) == 2
    default = make(make_batch()[0]).stages(0.1)[0]
    assert (default.optimizer, default.weight_decay, default.schedule, default.epochs) == (None, None, None, None)


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        ("multilabel", {}, "dimml does classification, the data's task is multilabel"),
        ("regression", {}, "dimml does classification, the data's task is regression"),
        ("retrieval", {}, "dimml does classification, the data's task is retrieval.*use joint or pgm"),
        ("classification", {"temperature": 0.0}, r"dimml\.temperature=0\.0 is not allowed; it takes a number above 0"),
        ("classification", {"duc_weight": -1.0}, r"dimml\.duc_weight=-1\.0"),
        ("classification", {"weight_decay": float("nan")}, r"dimml\.weight_decay=nan"),
        (
            "classification",
            {"fusion_epochs": 0},
            r"dimml\.fusion_epochs=0 is .* of at least 1",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(make_batch, task, config, message):
    with pytest.raises(ConfigError, match=message):
        make(make_batch(task)[0], **config)


SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
    "dimml.warmup": 1,
    "dimml.fusion_epochs": 2,
}


def features(rows=120):
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 3
    modalities = {m: (rng.normal(size=(rows, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    split = np.array(["train", "train", "train", "valid", "test"])[np.arange(rows) // 3 % 5]
    presence = rng.random((rows, 2)) < 0.8
    presence[np.arange(rows), rng.integers(0, 2, rows)] = True
    for m, x in enumerate(modalities.values()):
        x[~presence[:, m]] = 0
    return FeatureSet("tiny", modalities, "classification", label, split, presence=presence)


def run(out, name="run", **more):
    return fit(method="dimml", data=features(), out=str(out / name), **{**SETTINGS, **more})


def test_a_run_leaves_its_scores_per_head_and_the_dimensions_and_evaluates_to_the_same(tmp_path):
    report = run(tmp_path)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["stage"] for r in records] == ["detached"] * 3 + ["fusion"] * 2
    heads = {"shared/a", "shared/b"}
    assert [set(r["valid"]["further"]) for r in records] == [heads] * 3 + [heads | {"fusion"}] * 2
    assert all(set(r["valid"]["unimodal"]) == {"a", "b"} and r["valid"]["fused"] for r in records)
    assert ["duc" in r["train"] for r in records] == [False, True, True, False, False]
    assert set(report["test"]["further"]) == heads | {"fusion"}
    again = evaluate(tmp_path / "run", data=features())
    assert all(again[key] == report["test"][key] for key in ("fused", "unimodal", "further", "losses"))


@pytest.mark.parametrize("update", [2, 5 + 2, 3 * 5, 3 * 5 + 2], ids=["warmup", "interaction", "between", "fusion"])
@pytest.mark.parametrize("cache", [True, False])
def test_resumes_exactly_in_every_stage(tmp_path, monkeypatch, update, cache):
    more = {"dimml.cache": cache, "data.modality_dropout": 0.3}
    run(tmp_path, "whole", **more)
    original, count = UpdateGuard.update, [0]

    def interrupt(self, *args, **kwargs):
        count[0] += 1
        if count[0] == update:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(UpdateGuard, "update", interrupt)
        run(tmp_path, "cut", **more)
    resume(tmp_path / "cut", data=features())
    for name in ("last.pt", "best.pt"):
        whole, cut = (checkpoints.load(tmp_path / which / "checkpoints" / name) for which in ("whole", "cut"))
        assert set(whole["model"]) == set(cut["model"])
        assert all(torch.equal(value, cut["model"][key]) for key, value in whole["model"].items())
    lines = [
        [{k: v for k, v in r.items() if k not in ("seconds", "samples_per_s")} for r in read_jsonl(path)]
        for path in (tmp_path / which / "metrics.jsonl" for which in ("whole", "cut"))
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("name", "settings"), [("crema-d", (50, 1)), ("ave", (10, 3)), ("ucf101", (10, 1)), ("modelnet40", (50, 3))]
)
def test_published_settings_come_as_presets(tmp_path, name, settings):
    config = make_config(overrides={"preset": f"dimml/{name}"})
    assert (config.dimml.temperature, config.dimml.certainty_temperature) == settings
    assert (config.train.epochs, config.train.batch_size, config.train.lr, config.dimml.warmup) == (150, 16, 1e-3, 20)
    quick = {key: value for key, value in SETTINGS.items() if key.startswith(("model", "train"))}
    quick |= {"dimml.detached_epochs": 3, "dimml.fusion_epochs": 1}
    fit({**to_dict(config)}, data=features(), out=str(tmp_path / "run"), **quick)
    rates = [next(iter(r["lr"].values())) for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert rates == [1e-3] * 4


def test_competition_starves_the_weak_modality_in_joint_training_and_not_here(repository, tmp_path, monkeypatch):
    """The benchmark's set and settings at one seed: b alone reaches about 0.87, chance is 0.5."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    competition = importlib.import_module("competition")
    scores = {name: competition.run(name, 3, tmp_path / name)["test"] for name in ("alone b", "joint", "dimml")}
    assert scores["joint"]["b"] < 0.6
    assert scores["dimml"]["b"] >= scores["alone b"]["b"] - 0.01
    assert scores["dimml"]["fused"] > scores["joint"]["fused"]


def test_the_released_initialisation_touches_the_fusion_head_and_the_gains_of_built_in_encoders():
    pytest.importorskip("transformers")
    spec = DataSpec({"s": ModalitySpec(16, True, kind="spectrogram"), "v": ModalitySpec(4)}, "classification", 3)
    model = ModelConfig(dim=512, projection="none", normalize=False)
    torch.manual_seed(0)
    method = build("dimml", spec, model, DIMMLConfig(initialisation="released"))
    gains = torch.cat([m.weight for m in method.encoders["s"].modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert gains.mean().item() == pytest.approx(1, abs=mean_of_draws(0.02, gains.numel()))
    assert gains.std().item() == pytest.approx(0.02, abs=mean_of_draws(0.02 * 2**-0.5, gains.numel()))
    weight = method.fusion_head.weight
    assert not method.fusion_head.bias.any()
    spread = (2 / (1024 + 3)) ** 0.5
    assert weight.std().item() == pytest.approx(spread, abs=mean_of_draws(spread * 2**-0.5, weight.numel()))
