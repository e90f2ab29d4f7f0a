"""What a training run does to the model and leaves behind, epoch by epoch and stage by stage."""

from __future__ import annotations

import errno
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from tolerances import SHARE_SUM
from torch import nn

from pgm_fast.data import FeatureSet
from pgm_fast.errors import CheckpointError, ConfigError, TrainingStopped
from pgm_fast.methods import METHODS, Stage
from pgm_fast.methods.baselines import Joint
from pgm_fast.train import fit, resume
from pgm_fast.train.loop import Training
from pgm_fast.train.run import checkpoints
from pgm_fast.train.run.position import Best
from pgm_fast.train.step.guard import UpdateGuard

SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
}


def features(rows: int = 120, task: str = "classification", poison: slice | None = None) -> FeatureSet:
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 3
    modalities = {m: (rng.normal(size=(rows, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    if poison is not None:
        modalities["a"][poison] = 1e38  # finite, its square is not
    split = np.array(["train", "train", "train", "valid", "test"])[np.arange(rows) // 3 % 5]
    labels = {"classification": label, "regression": label.astype(np.float32), "retrieval": None}[task]
    return FeatureSet("tiny", modalities, task, labels, split)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def last(out):
    return checkpoints.load(out / "checkpoints" / "last.pt")


@pytest.mark.parametrize(
    ("method", "task"),
    [("pgm", "classification"), ("joint", "regression"), ("pgm", "retrieval"), ("ensemble", "classification")],
)
def test_a_run_leaves_its_folder(tmp_path, method, task):
    out = tmp_path / "run"
    report = fit(method=method, data=features(task=task), out=str(out), **{**SETTINGS, "train.logger": ["tensorboard"]})
    assert {p.name for p in out.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "report.json",
        "report.html",
        "checkpoints",
        "tensorboard",
    }
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    lines = records(out)
    assert [line["epoch"] for line in lines] == [1, 2] == list(range(1, report["epochs"] + 1))
    for line in lines:
        assert set(line) == {
            "stage",
            "epoch",
            "train",
            "valid",
            "shares",
            "lr",
            "samples_per_s",
            "skipped_steps",
            "seconds",
        }
        assert math.isfinite(line["train"]["total"]) and math.isfinite(line["valid"]["losses"]["total"])
        assert line["valid"]["fused"] and line["skipped_steps"] == 0 and line["samples_per_s"] > 0
        assert all("." in name and lr > 0 for name, lr in line["lr"].items())
        if method == "pgm":
            assert (
                all(sum(share.values()) == pytest.approx(1, abs=SHARE_SUM) for share in line["shares"].values())
                and line["shares"]
            )
    assert report == json.loads((out / "report.json").read_text())
    best = lines[report["best_epoch"] - 1]["valid"]["fused"]
    assert report["valid"]["fused"] == best
    assert report["test"]["fused"] and set(report["timing"]) == {
        "seconds",
        "seconds_per_epoch",
        "samples_per_s",
        "device",
    }


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    losses = {}
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        fit(data=features(), out=str(tmp_path / name), **SETTINGS, **{"train.seed": seed})
        losses[name] = [line["train"] for line in records(tmp_path / name)]
    assert losses["one"] == losses["two"] != losses["three"]


def test_the_callers_torch_is_as_it_was(tmp_path, monkeypatch):
    def state():
        fill = torch.utils.deterministic.fill_uninitialized_memory
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fill

    during = []
    monkeypatch.setattr(
        Training, "_end_epoch", lambda self: during.append(state()) or (_ for _ in ()).throw(StopIteration)
    )
    torch.set_num_threads(2)
    try:
        before = state()
        with pytest.raises((StopIteration, RuntimeError)):
            fit(data=features(), out=str(tmp_path / "run"), **SETTINGS, **{"train.threads": 1})
        assert state() == before and during == [(1, True, False)] and before[0] == 2
    finally:
        torch.set_num_threads(1)


class TwoStages(Joint):
    """Encoders first, then the head from the best of that, as a method with stages does it."""

    begun: list[int] = []

    def stages(self, lr):
        groups = super().stages(lr)[0].groups
        return [
            Stage("first", [g for g in groups if g["name"].endswith("encoder")], epochs=3, optimizer="sgd"),
            Stage("second", [g for g in groups if not g["name"].endswith("encoder")]),
        ]

    def begin_stage(self, index):
        self.begun.append(index)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setitem(METHODS, "joint", TwoStages)
    monkeypatch.setattr(TwoStages, "begun", [])


def test_each_stage_trains_its_own_groups_from_the_best_of_the_stage_before(tmp_path, two, monkeypatch):
    starts, bests, ends = [], [], []
    begin, restore = Training._begin_stage, Training._stage_is_over

    def copy(module):
        return {key: value.clone() for key, value in module.state_dict().items()}

    def watch_begin(self):
        begin(self)
        starts.append(copy(self.method))

    def watch_end(self):
        if over := restore(self):
            ends.append(copy(self.method))
            bests.append(checkpoints.load(self.folder.best)["model"])
        return over

    real_score = Training._score

    def first_is_best(self, predictions):
        return {**real_score(self, predictions), "score": -float(self.position.stage_epoch)}

    monkeypatch.setattr(Training, "_score", first_is_best)
    monkeypatch.setattr(Training, "_begin_stage", watch_begin)
    monkeypatch.setattr(Training, "_stage_is_over", watch_end)
    out = tmp_path / "run"
    fit(method="joint", data=features(), out=str(out), **SETTINGS, **{"train.lr": 0.3, "train.schedule": "constant"})
    assert TwoStages.begun == [0, 1]
    assert [(line["stage"], line["epoch"]) for line in records(out)] == [
        ("first", 1),
        ("first", 2),
        ("first", 3),
        ("second", 4),
        ("second", 5),
    ]
    assert all(name.endswith("encoder") == (line["stage"] == "first") for line in records(out) for name in line["lr"])

    def moved(before, after):
        return {key for key in before if not torch.equal(before[key], after[key])}

    assert moved(starts[0], ends[0]) and all(key.startswith("encoders") for key in moved(starts[0], ends[0]))
    assert moved(bests[0], ends[0]) and not moved(bests[0], starts[1])
    assert moved(starts[1], ends[1]) and not any(key.startswith("encoders") for key in moved(starts[1], ends[1]))
    assert last(out)["best"]["epoch"] == 4


@pytest.mark.parametrize("update", [2, 5 * 3, 5 * 3 + 2])
def test_stages_resume_exactly(tmp_path, two, monkeypatch, update):
    def run(name):
        return fit(
            method="joint", data=features(), out=str(tmp_path / name), **SETTINGS, **{"train.schedule": "plateau"}
        )

    run("whole")
    original, count = UpdateGuard.update, [0]

    def interrupt(self, *args, **kwargs):
        count[0] += 1
        if count[0] == update:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(UpdateGuard, "update", interrupt)
        run("cut")
    resume(tmp_path / "cut", data=features())
    for name in ("last.pt", "best.pt"):
        whole, cut = (checkpoints.load(tmp_path / run / "checkpoints" / name) for run in ("whole", "cut"))
        assert all(torch.equal(value, cut["model"][key]) for key, value in whole["model"].items())
    strip = ("seconds", "samples_per_s")
    lines = [
        [{k: v for k, v in line.items() if k not in strip} for line in records(tmp_path / run)]
        for run in ("whole", "cut")
    ]
    assert lines[0] == lines[1]


class Measuring(TwoStages):
    """Looks at the training split before each epoch; its second stage has a schedule and a patience of its own."""

    seen: list[tuple] = []

    def stages(self, lr):
        first, second = super().stages(lr)
        second.schedule, second.schedule_options, second.patience = "step", {"every": 1, "factor": 0.5}, 1
        second.epochs = 9
        return [first, second]

    def begin_epoch(self, stage, epoch, batches):
        rows = torch.cat([batch.index for batch in batches()])
        self.seen.append((stage, epoch, rows.tolist(), self.training, torch.is_grad_enabled()))


def test_a_method_sees_its_training_split_in_order_before_every_epoch(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "joint", Measuring)
    monkeypatch.setattr(Measuring, "seen", [])
    data = features()
    # a rate of nothing in the second stage: its first epoch stays the best
    rates = {"train.lr": 1e-12, "train.patience": 0, "data.modality_dropout": 0.5}
    fit(method="joint", data=data, out=str(tmp_path / "run"), **{**SETTINGS, **rates})
    rows = data.rows("train").tolist()
    epochs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert Measuring.seen == [(stage, epoch, rows, False, False) for stage, epoch in epochs]
    lr = [next(iter(line["lr"].values())) for line in records(tmp_path / "run")]
    assert lr[-2:] == [1e-12, 0.5e-12]


def test_training_stops_early_and_ends_with_the_best_epoch(tmp_path):
    out = tmp_path / "run"
    # A rate of nothing: no epoch is better than the first, and the last is as good.
    report = fit(
        data=features(), out=str(out), **{**SETTINGS, "train.epochs": 50, "train.patience": 3, "train.lr": 1e-12}
    )
    assert report["epochs"] == 4 and report["best_epoch"] == 4


def test_a_method_that_draws_in_every_update_takes_seeds_of_any_size(tmp_path):
    for seed in (20261126, 2**40):
        report = fit(method="ogm", data=features(), out=str(tmp_path / f"{seed}"), **SETTINGS, **{"train.seed": seed})
        assert report["seed"] == seed and report["skipped_steps"] == 0


def test_the_best_is_by_score_then_by_loss_and_a_score_beats_none():
    best = Best()
    offers = {
        (-math.inf, math.nan): True,
        (0.5, 1.0): True,
        (0.5, 0.9): True,
        (0.5, 0.9004): True,  # as good, and trained longer
        (0.5, 0.9008): True,
        (0.5, 0.9012): False,  # small steps do not add up
        (0.4, 0.1): False,
        (math.nan, 0.0): False,
    }
    assert [best.offer(epoch, *offer) for epoch, offer in enumerate(offers, start=1)] == list(offers.values())
    assert (best.epoch, best.score, best.loss, best.since) == (5, 0.5, 0.9, 5), "what is only as good is no progress"
    assert best.offer(9, 0.6, 9.0)
    assert (best.epoch, best.score, best.loss, best.since) == (9, 0.6, 9.0, 0)


def test_the_model_that_answers_is_the_model_that_is_chosen(tmp_path):
    """The method `unimodal` takes the best modality after each validation: scores and best.pt are of that choice."""
    out = tmp_path / "run"
    data = features()
    data.modalities["a"] = np.random.default_rng(1).normal(size=data.modalities["a"].shape).astype(np.float32)
    report = fit(method="unimodal", data=data, out=str(out), **SETTINGS, **{"train.lr": 0.01})
    for line in records(out):
        scores = line["valid"]["unimodal"]
        assert line["valid"]["fused"]["accuracy"] == max(score["accuracy"] for score in scores.values())
    assert report["valid"]["fused"] == records(out)[report["best_epoch"] - 1]["valid"]["fused"]


class Fragile(nn.Module):
    """Not finite for rows with a huge first value; otherwise a linear encoder."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 8)

    def forward(self, x):
        return self.linear(x) + (x[:, :1] * 3.0).exp() * 0.0


def poisoned(count: int) -> FeatureSet:
    data = features()
    rows = data.rows("train")[:count]
    data.modalities["a"][rows, 0] = 1e4
    return data


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    out = tmp_path / "run"
    settings = {**SETTINGS, "data.standardize": False}
    report = fit(data=poisoned(1), encoders={"a": Fragile()}, out=str(out), **settings)
    assert [line["skipped_steps"] for line in records(out)] == [1, 1] and report["skipped_steps"] == 2
    assert all(torch.isfinite(value).all() for value in last(out)["model"].values())
    assert math.isfinite(records(out)[0]["train"]["total"])


def test_too_many_in_a_row_stop_the_run_with_last_written(tmp_path):
    out = tmp_path / "run"
    settings = {**SETTINGS, "data.standardize": False, "train.nonfinite_limit": 7}
    with pytest.raises(
        TrainingStopped, match=r"8 updates in a row.*epoch 2, step 3.*nonfinite_limit=7.*train\.lr"
    ) as caught:
        fit(data=poisoned(72), encoders={"a": Fragile()}, out=str(out), **settings)
    assert "\n" not in str(caught.value)
    state = last(out)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 3)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_bf16_trains_with_float32_weights(tmp_path):
    out = tmp_path / "run"
    fit(data=features(), out=str(out), **SETTINGS, **{"train.precision": "bf16"})
    assert {value.dtype for value in last(out)["model"].values()} == {torch.float32}
    assert math.isfinite(records(out)[-1]["train"]["total"])


def test_a_refusing_disk_ends_the_run_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    out, real, count = tmp_path / "run", os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left on device"):
        patch.setattr(os, "fsync", full)
        fit(data=features(), out=str(out), **{**SETTINGS, "train.checkpoint_every_steps": 1})
    last(out)
    report = resume(out, data=features())
    fit(data=features(), out=str(tmp_path / "whole"), **{**SETTINGS, "train.checkpoint_every_steps": 1})
    assert report["test"] == json.loads((tmp_path / "whole" / "report.json").read_text())["test"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"train.monitor": "acuracy"}, "acuracy.*did you mean accuracy"),
        ({"train.optimizer": "adam"}, "'adam'.*adamw, sgd"),
        ({"train.device": "cuda:7"}, "cuda"),
        ({"pgm.rates": {"c": {"encoder": 1.0}}}, "'c'.*allowed: .*a, b"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(tmp_path, override, message):
    if "train.device" in override and torch.cuda.device_count() > 7:
        pytest.skip("there is a cuda:7 here")
    with pytest.raises(ConfigError, match=message):
        fit(data=features(), out=str(tmp_path / "run"), **{**SETTINGS, **override})
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda_waits_for_nothing(tmp_path, monkeypatch):
    train = Training._train_epoch

    def strict(self):
        if self.position.epoch == 0:  # the first epoch copies the split to the device
            return train(self)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Training, "_train_epoch", strict)
    fit(data=features(), out=str(tmp_path / "run"), **{**SETTINGS, "train.device": "cuda", "train.batch_size": 4})
    assert len(records(tmp_path / "run")) == 2
