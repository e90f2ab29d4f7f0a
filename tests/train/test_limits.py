"""Memory that runs out, a BatchNorm with one row, labels of one class: one line that says what to change, and doing so
helps."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from same_run import assert_same_run
from torch import nn

from pgm_fast.errors import DataError, TrainingStopped
from pgm_fast.train import evaluate, fit, resume
from pgm_fast.train.step.guard import UpdateGuard

SETTINGS = {
    "train.epochs": 2,
    "train.batch_size": 8,
    "model.dim": 8,
    "model.hidden": 8,
    "train.plots": False,
    "train.logger": [],
}


def write(path, train=24, classes=3) -> str:
    rng = np.random.default_rng(0)
    split = np.array(["train"] * train + ["valid"] * 10 + ["test"] * 10)
    values = {m: rng.normal(size=(len(split), 4)).astype(np.float32) for m in "ab"}
    np.savez(path, **values, label=np.arange(len(split)) % classes, other=np.arange(len(split)) % 3, split=split)
    return str(path)


ASKING_TOO_MUCH = {
    "torch": lambda: torch.empty(1 << 58),
    "numpy": lambda: np.empty(1 << 58),
    "cuda": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
}


@pytest.mark.parametrize("ask", ASKING_TOO_MUCH.values(), ids=ASKING_TOO_MUCH)
def test_memory_that_runs_out_in_a_step_names_the_settings_and_loses_nothing(tmp_path, monkeypatch, ask):
    source, out = write(tmp_path / "d.npz"), tmp_path / "run"
    fit(data=source, out=str(tmp_path / "whole"), **SETTINGS)
    original, calls = UpdateGuard.update, []

    def update(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            ask()
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(UpdateGuard, "update", update)
        with pytest.raises(TrainingStopped, match=r"memory ran out.*smaller train\.batch_size \(now 8\)") as caught:
            fit(data=source, out=str(out), **SETTINGS)
    assert "\n" not in str(caught.value) and f"pgm-fast resume {out}" in str(caught.value)
    resume(out)
    assert_same_run(out, tmp_path / "whole")
    fit(data=source, out=str(tmp_path / "smaller"), **SETTINGS | {"train.batch_size": 4, "data.resident": "never"})


def test_memory_that_runs_out_in_an_evaluation_is_one_line(tmp_path, monkeypatch):
    fit(data=write(tmp_path / "d.npz"), out=str(tmp_path / "run"), **SETTINGS)
    monkeypatch.setattr("pgm_fast.train.trained.collect", lambda *_, **__: torch.empty(1 << 58))
    with pytest.raises(TrainingStopped, match="memory ran out while the model was applied; free some, or give fewer"):
        evaluate(tmp_path / "run")


def test_other_failures_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(UpdateGuard, "update", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size") as caught:
        fit(data=write(tmp_path / "d.npz"), out=str(tmp_path / "run"), **SETTINGS)
    assert not isinstance(caught.value, TrainingStopped)


def test_a_batch_norm_that_is_left_with_one_row_names_the_batch_size(tmp_path):
    source = write(tmp_path / "d.npz", train=17)
    encoders = {"a": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))}
    with pytest.raises(TrainingStopped, match=r"left with one row \(train\.batch_size=8\)"):
        fit(data=source, out=str(tmp_path / "run"), encoders=encoders, **SETTINGS)
    fit(data=source, out=str(tmp_path / "other"), encoders=encoders, **SETTINGS | {"train.batch_size": 6})


def test_labels_of_one_class_are_refused_with_what_helps(tmp_path):
    source = write(tmp_path / "d.npz", classes=1)
    with pytest.raises(DataError, match="one class only") as caught:
        fit(data=source, out=str(tmp_path / "run"), **SETTINGS)
    assert not (tmp_path / "run").exists()
    keys = re.findall(r"data\.\w+(?:=\w+)?", str(caught.value))
    assert keys == ["data.label", "data.task=retrieval"]
    fit(data=source, out=str(tmp_path / "label"), **SETTINGS | {"data.label": "other"})
    fit(data=source, out=str(tmp_path / "task"), **SETTINGS | {"data.task": "retrieval"})
