"""Batches that make one update together, and bounds on updates and validations that are counted in updates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tolerances import ACCUMULATED, FP32, FP64

from pgm_fast.data import FeatureSet, Loader
from pgm_fast.errors import ConfigError
from pgm_fast.train import fit
from pgm_fast.train.loop import Training
from pgm_fast.train.step.guard import UpdateGuard

SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "model.dropout": 0.0,
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.optimizer": "sgd",
    "train.lr": 0.05,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
}


def features(missing: bool = False) -> FeatureSet:
    rng = np.random.default_rng(0)
    label = np.arange(135) % 3
    modalities = {m: (rng.normal(size=(135, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    split = np.array(["train", "train", "valid"])[np.arange(135) // 3 % 3]  # 90 rows: the last updates are smaller
    presence = None
    if missing:
        presence = rng.random((135, 2)) > 0.3
        presence[~presence.any(1)] = True
    return FeatureSet("tiny", modalities, "classification", label, split, presence=presence)


def run(out, data=None, **settings):
    fit(data=data or features(), out=str(out), **{**SETTINGS, **settings})
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return records, *(torch.load(out / "checkpoints" / name, weights_only=True) for name in ("last.pt", "best.pt"))


@pytest.mark.parametrize(
    ("method", "missing", "more"),
    [
        ("joint", True, {}),
        ("ogm", False, {}),
        ("mla", False, {}),
        ("mmpareto", True, {}),
        ("dimml", True, {"dimml.fusion_epochs": 1, "train.epochs": 1}),
    ],
)
def test_two_batches_of_16_are_one_of_32(tmp_path, method, missing, more):
    data, settings = features(missing), {"method": method, **more}
    whole, last, _ = run(tmp_path / "whole", data, **settings)
    parts, added, _ = run(tmp_path / "parts", data, **settings, **{"train.batch_size": 16, "train.accumulate": 2})
    assert last["position"]["rows"] == added["position"]["rows"] == 90 * len(whole)
    for a, b in zip(whole, parts, strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=ACCUMULATED, abs=0)
    for key, value in last["model"].items():
        torch.testing.assert_close(added["model"][key], value, rtol=ACCUMULATED, atol=ACCUMULATED, msg=key)


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_of_the_batches_of_an_update_are_those_of_the_joined_batch(rank):
    place = {"rank": rank, "world": 2, "seed": 3, "shuffle": True}
    joined = list(Loader(features(True), "train", batch_size=32, **place).batches(0))
    parts = list(Loader(features(True), "train", batch_size=16, accumulate=2, **place).batches(0))
    assert (len(joined), len(parts)) == (3, 6)
    for number, batch in enumerate(joined):
        pair = parts[2 * number : 2 * number + 2]
        for weight in ("weight", "a", "b"):
            of = [b.weight if weight == "weight" else b.weight_of(weight) for b in (batch, *pair)]
            assert float(of[1].sum() + of[2].sum()) == pytest.approx(float(of[0].sum()), rel=FP32, abs=0)
            assert set(of[1].unique().tolist()) <= set(of[0].unique().tolist())


def test_max_steps_ends_a_stage_inside_an_epoch(tmp_path, monkeypatch):
    updates = []
    original = UpdateGuard.update
    monkeypatch.setattr(UpdateGuard, "update", lambda *a, **k: updates.append(1) or original(*a, **k))
    records, last, _ = run(tmp_path / "run", **{"train.max_steps": 4, "train.epochs": 50, "method": "joint"})
    assert len(updates) == 4 and len(records) == 2
    # the cosine ends there
    assert all(lr == pytest.approx(SETTINGS["train.lr"] * 0.01, rel=FP64, abs=0) for lr in records[1]["lr"].values())
    assert last["position"]["rows"] == 90 + 32
    records, _, _ = run(tmp_path / "more", **{"train.max_steps": 400, "train.epochs": 2, "method": "joint"})
    assert len(records) == 2


def test_validations_inside_an_epoch_are_noted_and_their_best_model_is_kept(tmp_path):
    settings = {"method": "joint", "train.validate_every": 2, "train.keep": "best", "train.lr": 1e-9}
    records, _, best = run(tmp_path / "run", **settings)
    assert [[v["step"] for v in line["validations"]] for line in records] == [[2], [1]]
    assert (best["best"]["epoch"], best["best"]["step"]) == (2, 0)  # all alike: the latest is kept


def test_the_best_model_may_come_from_inside_an_epoch_and_patience_ends_there(tmp_path, monkeypatch):
    scores, original = iter([0.1, 0.9, 0.3, 0.2, 0.1]), Training._validate
    monkeypatch.setattr(Training, "_validate", lambda self: {**original(self), "score": next(scores)})
    settings = {"method": "joint", "train.validate_every": 1, "train.patience": 2, "train.epochs": 50}
    records, last, best = run(tmp_path / "run", **settings)
    # of three steps an epoch: 0.1 and 0.9 inside the first, 0.3 at its end, 0.2 after one step of the second, its end
    assert (best["best"]["epoch"], best["best"]["step"], best["best"]["score"]) == (1, 2, 0.9)
    assert best["position"]["step"] == 2 and best["position"]["epoch"] == 0
    assert len(records) == 2 and next(scores, None) is None
    assert last["position"]["rows"] == 90 + 32


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train.accumulate", 0, "at least 1"),
        ("train.max_steps", -1, "at least 0"),
        ("train.validate_every", -2, "at least 0"),
        ("train.ema", 1.0, "below 1"),
        ("train.precision", "fp8", "fp32, bf16, fp16"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(tmp_path, key, value, allowed):
    with pytest.raises(ConfigError, match=rf"{key}=.*{allowed}"):
        run(tmp_path / "run", **{key: value})
