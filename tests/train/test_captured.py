"""Steps whose batches, rates and counts stay in one place: the same training, padding that weighs nothing, and graphs,
on a CPU played by a stand-in that keeps a call and makes it again. No GPU has captured one yet."""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from same_run import assert_equal, assert_same_run, lines, timeless
from tolerances import PADDED
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pgm_fast.data import FeatureSet, Loader
from pgm_fast.methods import METHODS, build
from pgm_fast.train import fit, loop, resume
from pgm_fast.train.configure import make_config
from pgm_fast.train.distributed import Ranks
from pgm_fast.train.run import checkpoints
from pgm_fast.train.step import captured
from pgm_fast.train.step.losses import LossTable

BATCH, WHOLE, RAGGED = 12, 48, 44  # rows of four full batches; the last one with 8
SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "train.epochs": 3,
    "train.batch_size": BATCH,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
    "dimml.warmup": 1,
    "dimml.fusion_epochs": 1,
    "dmil.stage_epochs": [2, 1, 2],
}


def made(rows=WHOLE, task="classification", missing=False) -> FeatureSet:
    draw, count = np.random.default_rng(0), rows + 32
    classes = np.arange(count) % 3
    vectors = {m: (draw.normal(size=(count, 6)) + classes[:, None]).astype(np.float32) for m in "abc"}
    labels = {"classification": classes, "regression": draw.normal(size=(count, 1)).astype(np.float32)}.get(task)
    presence = draw.random((count, 3)) > 0.3 if missing else None
    if missing:
        presence[:, 0] |= ~presence.any(axis=1)
    split = np.array(["train"] * rows + ["valid"] * 16 + ["test"] * 16)
    known = 3 if task == "classification" else None
    return FeatureSet("made", vectors, task, labels, split, num_classes=known, presence=presence)


class StandIn:
    """A graph whose replay makes the captured call again."""

    made: ClassVar[int] = 0

    def __init__(self):
        StandIn.made += 1

    @staticmethod
    def beside(call):
        return call()

    def capture(self, call):
        self.call, self.losses = call, {}
        return self.losses

    def replay(self):
        self.losses.update(self.call())


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(captured, "graphs", lambda device: StandIn)
    return StandIn


def state(run):
    return checkpoints.load(run / "checkpoints" / "last.pt")


def assert_same_training(one, other):
    first, second = (timeless(lines((run / "metrics.jsonl").read_text())) for run in (one, other))
    assert first == second
    for part in ("model", "optimizer"):
        assert_equal(state(one)[part], state(other)[part])


@pytest.mark.parametrize("method", ["pgm", "dmil"])
def test_without_padding_a_run_is_the_same_to_the_bit(method, tmp_path):
    for capture in ("never", "auto"):
        settings = {**SETTINGS, "train.capture": capture, "data.modality_dropout": 0.2}
        fit(method=method, data=made(), out=str(tmp_path / capture), **settings)
    assert_same_training(tmp_path / "never", tmp_path / "auto")


@pytest.mark.parametrize("method", ["pgm", "dimml"])
def test_graphs_train_as_steps_do(method, tmp_path, graphs, monkeypatch):
    """Rates of a schedule, phases within a stage, an average of the weights, a last batch that is padded."""
    for name, device in (("steps", None), ("graphs", graphs)):
        monkeypatch.setattr(captured, "graphs", lambda _, device=device: device)
        settings = {**SETTINGS, "train.capture": "auto", "train.ema": 0.9, "train.schedule": "cosine"}
        fit(method=method, data=made(RAGGED), out=str(tmp_path / name), **settings)
    assert_same_training(tmp_path / "steps", tmp_path / "graphs")
    # PgM's one stage is captured once; DI-MML changes within a stage and is captured in every epoch
    assert graphs.made == {"pgm": 1, "dimml": state(tmp_path / "graphs")["position"]["epoch"]}[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", [False, True])
def test_padding_weighs_nothing(method, missing):
    kind = METHODS[method]
    for task in {"classification", "retrieval"} & set(kind.tasks):
        features = made(RAGGED, task, missing)
        config = make_config(None, {"method": method, "model.dim": 8, "model.hidden": 8, "model.dropout": 0.0})
        section = next(value for value in vars(config).values() if isinstance(value, kind.config_class))
        model = build(method, features.spec, config.model, section).train()
        for number, stage in enumerate(model.stages(1e-3)):
            trained = {id(p) for group in stage.groups for p in group["params"]}
            for p in model.parameters():
                p.requires_grad_(id(p) in trained)
            model.begin_stage(number)
            model.begin_turn(0)
            found = []
            for fixed in (False, True):
                for batch in Loader(features, "train", batch_size=BATCH, fixed=fixed).batches(0):
                    last = batch
                assert (len(last.weight), last.rows) == (BATCH if fixed else RAGGED % BATCH, RAGGED % BATCH)
                model.zero_grad()
                torch.manual_seed(1)
                losses = model(last).losses
                losses["total"].backward()
                found.append((losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
            (plain, gradients), (padded, others) = found
            for name, value in plain.items():
                torch.testing.assert_close(padded[name], value, rtol=PADDED, atol=PADDED, msg=name)
            largest = max(gradient.abs().max().item() for gradient in gradients.values())
            for name, gradient in gradients.items():
                torch.testing.assert_close(others[name], gradient, rtol=PADDED, atol=PADDED * largest, msg=name)


def test_a_run_is_taken_up_again_to_the_bit(tmp_path, graphs, monkeypatch):
    settings = {**SETTINGS, "train.capture": "auto", "train.checkpoint_every_steps": 2}
    save = loop.Training._save_last

    class Killed(Exception):
        pass

    def killed_inside_the_second_epoch(training):
        save(training)
        if training.position.epoch == 1 and training.position.step == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Training, "_save_last", killed_inside_the_second_epoch)
        fit(data=made(RAGGED), out=str(tmp_path / "cut"), **settings)
    resume(tmp_path / "cut", data=made(RAGGED))
    fit(data=made(RAGGED), out=str(tmp_path / "whole"), **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("resident", ["always", "never"])
def test_batches_stay_where_they_are_and_take_no_memory(resident):
    loader = Loader(made(RAGGED, missing=True), "train", batch_size=BATCH, shuffle=True, resident=resident, fixed=True)
    places, sampled = set(), []
    for epoch in range(2):
        for batch in loader.batches(epoch):
            tensors = [batch.weight, batch.index, batch.labels]
            tensors += [x for of in (batch.inputs, batch.presence, batch.modality_weight) for x in of.values()]
            places.add(tuple(x.data_ptr() for x in tensors))
            sampled.append(batch.index.clone())
    assert len(places) == 1
    assert sorted(torch.cat(sampled[:4]).tolist()) == [*[-1] * (BATCH - RAGGED % BATCH), *range(RAGGED)]
    if resident == "always":  # else a thread reads, whose arrays are new
        table, terms = LossTable(4, torch.device("cpu")), {"total": torch.ones(())}
        table.add(0, terms, BATCH)
        batches = loader.batches(2)
        next(batches)
        assert allocated(lambda: next(batches)) == allocated(lambda: table.add(1, terms, BATCH)) == 0
        assert allocated(lambda: torch.ones(3)) == 1


def allocated(call) -> int:
    """How often torch takes memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        call()
    events = told.profiler.kineto_results.events()
    return sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)


def test_a_capture_that_fails_is_said_and_training_goes_on(tmp_path, graphs, monkeypatch, caplog):
    def refused(self, call):
        raise RuntimeError("operation not permitted when stream is capturing\nand a page of advice")

    settings = {**SETTINGS, "train.capture": "auto"}
    fit(data=made(), out=str(tmp_path / "without"), **{**settings, "train.capture": "never"})
    monkeypatch.setattr(StandIn, "capture", refused)
    with caplog.at_level(logging.WARNING, logger="pgm_fast"):
        fit(data=made(), out=str(tmp_path / "with"), **settings)
    told = [record.message for record in caplog.records if "train.capture" in record.message]
    assert told == [
        "train.capture: steps are not captured, training goes on without "
        "(RuntimeError: operation not permitted when stream is capturing)"
    ]
    assert_same_training(tmp_path / "without", tmp_path / "with")


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        return self.net(x)


def test_what_cannot_be_captured_says_why(tmp_path, caplog):
    def reason(rows=RAGGED, encoders=None, ranks=None, method="pgm", **settings):
        config = make_config(None, {"method": method, "model.dim": 8, "train.batch_size": BATCH, **settings})
        section = next(v for v in vars(config).values() if isinstance(v, METHODS[method].config_class))
        model = build(method, made().spec, config.model, section, encoders)
        return captured.why_not_captured(model, ranks or Ranks(), config.train, rows)

    assert reason() is None
    assert "2" in reason(ranks=Ranks(0, 2))
    assert "train.accumulate" in reason(**{"train.accumulate": 2})
    assert "fp16" in reason(**{"train.precision": "fp16"})
    assert "train.compile" in reason(**{"train.compile": True})
    assert "a way of its own" in reason(method="mla")
    assert "the host draws" in reason(method="ogm")
    assert "BatchNorm" in reason(encoders={"a": Normed()})
    assert reason(rows=WHOLE, encoders={"a": Normed()}) is None
    with caplog.at_level(logging.WARNING, logger="pgm_fast"):
        settings = {**SETTINGS, "train.capture": "auto", "train.accumulate": 2, "train.epochs": 1}
        fit(data=made(), out=str(tmp_path), **settings)
    told = [record.message for record in caplog.records if "train.capture" in record.message]
    assert told == ["train.capture: steps are not captured, an update is made of several batches (train.accumulate)"]
