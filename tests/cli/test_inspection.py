"""check-data, interactions and doctor: what is there, before anything is trained."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from cli_calls import invoke, read_csv, succeed, write_features


def test_check_data_says_what_there_is(tmp_path):
    presence = np.ones((48, 2), bool)
    presence[:7, 1] = False
    source = write_features(
        tmp_path / "f.npz",
        presence=presence,
        audio=np.ones((48, 6, 5), np.float32),
        audio_lengths=np.arange(48) % 6 + 1,
    )
    text = succeed("check-data", source)
    assert "classification" in text and "train 24, valid 12, test 12" in text and "0 16, 1 16, 2 16" in text
    assert re.search(r"^audio +5 +1 to 6 +float32 +none", text, re.MULTILINE)
    assert re.search(r"^vision +4 +- +float32 +7 of 48", text, re.MULTILINE)
    assert "no errors" in text


def test_check_data_reads_as_train_would(tmp_path):
    source = write_features(
        tmp_path / "f.npz", label=None, answer=np.arange(48) % 2, audio=np.full((48, 5), np.nan, np.float32)
    )
    assert invoke("check-data", source).exit_code == 1
    text = succeed("check-data", source, "data.label=answer", "data.nonfinite=zero", "data.modalities=[vision]")
    assert "0 24, 1 24" in text and "audio" not in text
    wrong = invoke("check-data", source, "train.lr=3")
    assert wrong.exit_code == 2 and "data.label" in wrong.stderr


def test_check_data_refuses_what_train_refuses(tmp_path):
    source = write_features(tmp_path / "f.npz", label=np.zeros(48, np.int64))
    checked, trained = invoke("check-data", source), invoke("train", "--data", source, "--out", tmp_path / "run")
    assert checked.exit_code == 1 and trained.exit_code == 2
    [error] = [line for line in checked.output.splitlines() if line.startswith("error: ")]
    assert "one class only" in error and error in trained.stderr


def test_interactions_of_a_source_and_of_a_run(trained, source, tmp_path):
    out, _ = trained
    printed = succeed("interactions", source, "data.modalities=[vision,audio]", "--out", tmp_path / "found")
    assert "uniqueness of vision" in printed and str(tmp_path / "found" / "interactions.json") in printed
    assert len(read_csv(tmp_path / "found" / "interactions.csv")) == 48
    printed = succeed("interactions", "--run", out, "--on", "inputs", "--rule", "information")
    assert str(out / "interactions" / "interactions.md") in printed
    assert {row["split"] for row in read_csv(out / "interactions" / "interactions.csv")} == {"test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SOURCE or --run RUN"),
        (["digits"], "--out is missing"),
        (["digits", "--out", "x", "--on", "inputs"], "it needs --run RUN"),
        (["digits", "--out", "x", "train.lr=1"], "data.label"),
        (["digits", "--out", "x", "--folds", "1"], "folds is 1"),
    ],
)
def test_interactions_refuses_what_does_not_go_together(arguments, message):
    result = invoke("interactions", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_doctor_names_everything_that_it_knows():
    facts = json.loads(succeed("doctor", "--json"))
    text = succeed("doctor")
    for fact in facts["facts"]:
        assert fact["name"] in text and fact["detail"] in text
    assert "partition" in text and facts["versions"]["torch"] in text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_doctor_says_which_backend_a_call_takes(device):
    question = ["doctor", "--op", "partitioned_linear", "--device", device, "--dtype", "bfloat16"]
    for name, shape in {"h": "64x32", "z": "64x32", "w_uni": "8x32", "w_paired": "8x32"}.items():
        question += ["--shape", f"{name}={shape}"]
    answer = json.loads(succeed(*question, "--json"))
    assert answer["reasons"][answer["backend"]] == "serves the call"
    text = succeed(*question)
    assert f"partitioned_linear on {device}, bfloat16" in text and answer["backend"] in text
    assert json.loads(succeed("doctor", "--op", "mlp", "--json"))["backend"]
