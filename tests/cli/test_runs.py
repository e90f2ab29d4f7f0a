"""Runs from a shell: what is printed and written, how they end, are repeated and taken up again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from cli_calls import ENVIRONMENT, FAST, invoke, refusal, succeed, write_features
from tolerances import FP64

from pgm_fast.train.configure import from_yaml


def test_a_run_is_not_compared_with_itself(trained, tmp_path):
    run, out = trained[0], tmp_path / "out"
    assert refusal("compare", run, run, "--out", out) == f"RUN {run} is given twice; give every run once"
    (tmp_path / "link").symlink_to(run)
    assert f"as {run} and {tmp_path / 'link'}" in refusal("compare", run, tmp_path / "link", "--out", out)
    assert not out.exists()


def test_train_prints_scores_and_where_everything_is(trained):
    out, printed = trained
    report = json.loads((out / "report.json").read_text())
    for output in ("fused", "audio", "vision"):
        assert re.search(rf"^{output} ", printed, re.MULTILINE)
    assert f"{report['test']['fused']['accuracy']:.4f}" in printed
    for name in ("report.html", "report.json", "plots"):
        assert f" {out / name}\n" in printed and (out / name).exists()


def test_quiet_prints_nothing(source, tmp_path):
    result = invoke("train", "--data", source, "--out", tmp_path / "run", "--quiet", *FAST)
    assert result.exit_code == 0 and result.output == ""


def test_a_run_is_repeated_from_its_own_configuration(trained, tmp_path):
    out, _ = trained
    succeed("train", "--config", out / "config.yaml", "--out", tmp_path / "again")
    first, second = (from_yaml((folder / "config.yaml").read_text()) for folder in (out, tmp_path / "again"))
    assert replace(first, out="") == replace(second, out="")
    first, second = (json.loads((folder / "report.json").read_text())["test"] for folder in (out, tmp_path / "again"))
    assert first == second


def test_seeds_end_in_a_summary_of_their_reports(source, tmp_path):
    printed = succeed("train", "--data", source, "--out", tmp_path / "runs", "--seeds", "3", "5", *FAST)
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/report.json"))]
    assert sorted(report["seed"] for report in reports) == summary["seeds"] == [3, 5]
    scores = [report["test"]["fused"]["accuracy"] for report in reports]
    assert summary["test"]["fused"]["accuracy"]["mean"] == pytest.approx(np.mean(scores), abs=FP64)
    assert summary["test"]["fused"]["accuracy"]["std"] == pytest.approx(np.std(scores, ddof=1), abs=FP64)
    assert "±" in printed and str(tmp_path / "runs" / "summary.json") in printed


def test_epochs_of_retrieval_are_chosen_by_classes_where_there_are_some(tmp_path):
    source = write_features(tmp_path / "f.npz")
    settings = ["data.task=retrieval", "train.monitor=map", "train.lr=1e-3", *FAST]
    succeed("train", "--data", source, "--out", tmp_path / "run", "--quiet", *settings)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for split in ("valid", "test"):
        assert report[split]["fused"]["map"] == np.mean([pair["map"] for pair in report[split]["pairs"].values()])
    assert "map" in succeed("evaluate", tmp_path / "run")
    assert "labels say which are relevant" in succeed("check-data", source, "data.task=retrieval")


def test_resume_of_a_finished_run_says_so_and_shows_it_again(trained):
    out, printed = trained
    said, _, rest = succeed("resume", out).partition("\n")
    assert f"{out} is finished, there was nothing to do" in said and rest == printed
    assert not succeed("resume", out, "--quiet")


def test_a_run_is_trained_longer_by_the_command_that_resume_gives(trained, tmp_path):
    command = succeed("resume", trained[0]).splitlines()[0].partition("pgm-fast ")[2]
    longer = tmp_path / "longer"
    succeed(*command.replace("FOLDER", str(longer)).replace("=N", "=3").split())
    assert json.loads((longer / "report.json").read_text())["epochs"] == 3
    assert "train a new run" in " ".join(succeed("resume", "--help").split())


def test_sigterm_ends_with_status_0_and_the_command_that_goes_on(source, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "pgm_fast",
        "train",
        "--data",
        source,
        "--out",
        out,
        "--quiet",
        *FAST,
        "train.epochs=100000",
    ]
    process = subprocess.Popen(
        [*map(str, command), "train.patience=0"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 600
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert f"pgm-fast resume {out}" in printed
    assert (out / "checkpoints" / "last.pt").exists() and not (out / "report.json").exists()


def test_several_processes_speak_with_one_voice(source, tmp_path):
    out = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "pgm_fast",
    ]
    command = [*launcher, "train", "--data", source, "--out", out, *FAST]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(out / "report.html")) == 1
    assert len(re.findall(r"^fused ", done.stdout, re.MULTILINE)) == 2  # once per split
    assert json.loads((out / "report.json").read_text())["processes"] == 2


def test_an_error_of_another_process_says_whose_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = invoke("evaluate", tmp_path / "nothing")
    assert result.exit_code == 2 and result.stderr.startswith("error (rank 1): ") and result.stdout == ""
