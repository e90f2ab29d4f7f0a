"""DMIL from the command line to the report, and taken up again in any of its stages."""

from __future__ import annotations

import csv
import json
import os
import signal

import pytest
import torch
from tolerances import SHARE_SUM
from typer.testing import CliRunner

from pgm_fast.cli.app import app
from pgm_fast.data.synthetic import generate
from pgm_fast.train import evaluate, fit, resume
from pgm_fast.train.run import checkpoints
from pgm_fast.train.step.guard import UpdateGuard

TINY = {
    "model.dim": 8,
    "model.hidden": 8,
    "dmil.stage_epochs": [2, 1, 2],
    "dmil.schedule": "plateau",
    "train.batch_size": 32,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
}
STEPS = 3  # of an epoch


def features():
    return generate(kind="mixture", n=160, dim=8, seed=0)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("dmil") / "whole"
    fit(method="dmil", data=features(), out=str(out), **TINY)
    return out


@pytest.mark.parametrize("update", [STEPS + 2, 2 * STEPS + 1, 2 * STEPS + 2, 3 * STEPS + 2, 5 * STEPS])
def test_a_run_cut_in_any_stage_ends_bitwise_the_same(whole, tmp_path, monkeypatch, update):
    """The noise of every step too: it is drawn from the generator whose state the checkpoint holds."""
    original, count = UpdateGuard.update, [0]

    def interrupt(self, *args, **kwargs):
        count[0] += 1
        if count[0] == update:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(UpdateGuard, "update", interrupt)
        fit(method="dmil", data=features(), out=str(tmp_path / "cut"), **TINY)
    resume(tmp_path / "cut", data=features())
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoints.load(out / "checkpoints" / name) for out in (whole, tmp_path / "cut"))
        assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    strip = ("seconds", "samples_per_s")
    lines = [
        [{k: v for k, v in x.items() if k not in strip} for x in records(out)] for out in (whole, tmp_path / "cut")
    ]
    assert lines[0] == lines[1]
    assert [line["stage"] for line in lines[0]] == ["intra", "intra", "consistency", "joint", "joint"]


def test_the_report_holds_gates_and_synergy_and_evaluate_agrees(whole):
    report = json.loads((whole / "report.json").read_text())
    assert list(report["gates"]["all"]) == ["unique/a", "unique/b", "redundant", "synergistic"]
    for weights in (report["gates"]["all"], *report["gates"]["by_class"].values()):
        assert sum(weights.values()) == pytest.approx(1, abs=SHARE_SUM)
    assert list(report["test"]["further"]) == list(report["gates"]["all"])
    assert 0 <= report["test"]["synergy_score"] <= 1 and "synergy_score" in records(whole)[0]["valid"]
    scores = evaluate(whole, data=features())
    assert scores["gates"] == report["gates"] and scores["synergy_score"] == report["test"]["synergy_score"]
    assert scores["fused"] == report["test"]["fused"]


def test_from_the_command_line_on_digits(tmp_path):
    run, table = tmp_path / "run", tmp_path / "rows.csv"
    settings = ["dmil.stage_epochs=[3,2,3]", "model.dim=32", "train.lr=0.003", "train.device=cpu"]
    train = ["train", "--method", "dmil", "--data", "digits", "--out", run, *settings]
    predict = ["predict", run, "--split", "test", "--out", table]
    for command in (train, predict):
        result = CliRunner().invoke(app, [str(x) for x in command])
        assert result.exit_code == 0, result.output
    report = json.loads((run / "report.json").read_text())
    assert report["test"]["fused"]["accuracy"] > max(s["accuracy"] for s in report["test"]["unimodal"].values())
    assert report["test"]["fused"]["accuracy"] > 0.9
    assert (run / "plots" / "gates.png").stat().st_size > 0 and "plots/gates.png" in (run / "report.html").read_text()
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    gates = [name for name in rows[0] if name.startswith("gate.")]
    assert gates == ["gate.unique/left", "gate.unique/right", "gate.redundant", "gate.synergistic"]
    assert all(sum(float(row[name]) for name in gates) == pytest.approx(1, abs=SHARE_SUM) for row in rows)
