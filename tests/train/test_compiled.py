"""Steps as one program: the same training, eager where it cannot be or a batch is of another size, and a word of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from same_run import assert_same_run, lines, timeless
from tolerances import same_run

from pgm_fast.data import FeatureSet
from pgm_fast.train import fit, loop, resume
from pgm_fast.train.run import checkpoints

ROWS = 48  # in training: three batches of 14 and a last one of 6
SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "model.dropout": 0.0,
    "train.epochs": 2,
    "train.batch_size": 14,
    "train.device": "cpu",
    "train.threads": 1,
    "train.plots": False,
    "train.logger": [],
}


@pytest.fixture
def source(tmp_path) -> str:
    rng = np.random.default_rng(0)
    label = np.arange(80) % 3
    arrays = {m: (rng.normal(size=(80, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    split = np.array(["train"] * ROWS + ["valid"] * 16 + ["test"] * 16)
    np.savez(tmp_path / "tiny.npz", **arrays, label=label, split=split)
    return str(tmp_path / "tiny.npz")


@pytest.fixture
def uncompiled(monkeypatch) -> list[int]:
    """The program as Python runs it: what is tested is what the loop makes of it. Rows of every call."""
    rows = []

    def program(step, **settings):
        assert settings == {"fullgraph": True, "dynamic": False, "options": {"cpp_wrapper": True}}

        def call(batch):
            rows.append(len(batch.weight))
            return step(batch)

        return call

    monkeypatch.setattr(torch, "compile", program)
    return rows


@pytest.mark.parametrize("method", ["pgm", "dimml", "dmil", "ogm"])
def test_a_run_is_the_same_with_and_without(method, source, tmp_path, uncompiled):
    """The same operations in the same order: to the bit."""
    settings = {**SETTINGS, "dimml.warmup": 1, "dimml.fusion_epochs": 1, "dmil.stage_epochs": [1, 1, 1]}
    for name, compiled in (("without", False), ("with", True)):
        fit(method=method, data=source, out=str(tmp_path / name), **{**settings, "train.compile": compiled})
    assert set(uncompiled) == {14}  # the last batch of an epoch, of 6, goes by eager
    one, other = (timeless(lines((tmp_path / name / "metrics.jsonl").read_text())) for name in ("without", "with"))
    assert one == other
    one, other = (checkpoints.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("without", "with"))
    assert all(torch.equal(one["model"][key], value) for key, value in other["model"].items() if torch.is_tensor(value))


def test_a_compiled_run_is_taken_up_again_to_the_bit(source, tmp_path, uncompiled, monkeypatch):
    settings = {**SETTINGS, "model.dropout": 0.3, "train.compile": True}
    fit(data=source, out=str(tmp_path / "whole"), **settings)
    save = loop.Training._save_last

    class Killed(Exception):
        pass

    def killed_inside_the_second_epoch(training):
        save(training)
        if training.position.epoch == 1 and training.position.step == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Training, "_save_last", killed_inside_the_second_epoch)
        fit(data=source, out=str(tmp_path / "cut"), **{**settings, "train.checkpoint_every_steps": 2})
    resume(tmp_path / "cut")
    fit(data=source, out=str(tmp_path / "again"), **{**settings, "train.checkpoint_every_steps": 2})
    assert_same_run(tmp_path / "again", tmp_path / "cut")


def test_what_does_not_compile_is_trained_without(source, tmp_path, monkeypatch, caplog):
    def program(step, **settings):
        def call(batch):
            raise RuntimeError("no C++ compiler was found\nand a page of advice")

        return call

    fit(data=source, out=str(tmp_path / "without"), **SETTINGS)
    monkeypatch.setattr(torch, "compile", program)
    with caplog.at_level(logging.WARNING, logger="pgm_fast"):
        fit(data=source, out=str(tmp_path / "with"), **{**SETTINGS, "train.compile": True})
    told = [record.message for record in caplog.records if "train.compile" in record.message]
    assert told == [
        "train.compile: steps are not compiled, training goes on without (RuntimeError: no C++ compiler was found)"
    ]
    one, other = (timeless(lines((tmp_path / name / "metrics.jsonl").read_text())) for name in ("without", "with"))
    assert one == other


def test_sequences_and_methods_with_gradients_of_their_own_are_refused_with_the_reason(tmp_path, caplog):
    rng, label = np.random.default_rng(0), np.arange(30) % 3
    vectors = {m: rng.normal(size=(30, 4)).astype(np.float32) for m in ("a", "b")}
    sequences = {m: rng.normal(size=(30, 3, 4)).astype(np.float32) for m in ("a", "b")}
    split = np.array(["train"] * 18 + ["valid"] * 6 + ["test"] * 6)
    cases = {"pgm": (sequences, "sequences"), "mmpareto": (vectors, "gradients"), "mla": (vectors, "gradients")}
    for method, (modalities, word) in cases.items():
        features = FeatureSet("tiny", modalities, "classification", label, split)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="pgm_fast"):
            settings = {**SETTINGS, "train.epochs": 1, "train.compile": True, "model.heads": 2}
            fit(method=method, data=features, out=str(tmp_path / method), **settings)
        told = [record.message for record in caplog.records if "train.compile" in record.message]
        assert len(told) == 1 and word in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pgm", "dimml", "dmil", "ogm"])
def test_steps_of_every_method_compile(method, source, tmp_path, caplog):
    """Nothing that a method draws or calls is unknown to the compiler, which would train without and only say so."""
    stage = {"dimml.warmup": 0, "dimml.fusion_epochs": 1, "dmil.stage_epochs": [0, 0, 1]}
    with caplog.at_level(logging.WARNING, logger="pgm_fast"):
        settings = {**SETTINGS, "model.dropout": 0.1, "train.epochs": 1, "train.compile": True, **stage}
        fit(method=method, data=source, out=str(tmp_path / method), **settings)
    assert not [record.message for record in caplog.records if "train.compile" in record.message]


@pytest.mark.slow
def test_the_compiled_series_is_the_eager_one(source, tmp_path):
    """Sums in another order: after n updates of Adam, whose size is at most lr each, weights differ by less than the
    2 n lr that two unrelated runs could; here by a thousandth of that."""
    settings = {**SETTINGS, "train.batch_size": 16, "train.lr": 1e-3, "pgm.paired_learner": False}
    reports = [
        fit(data=source, out=str(tmp_path / name), **{**settings, "train.compile": compiled})
        for name, compiled in (("without", False), ("with", True))
    ]
    assert reports[0]["epochs"] == reports[1]["epochs"]
    paths = [tmp_path / name / "checkpoints" / "last.pt" for name in ("without", "with")]
    one, other = (checkpoints.load(path)["model"] for path in paths)
    updates = 2 * (ROWS // 16)
    for key, value in one.items():
        if torch.is_tensor(value) and value.is_floating_point():
            torch.testing.assert_close(other[key], value, rtol=0, atol=same_run(updates, settings["train.lr"]))
