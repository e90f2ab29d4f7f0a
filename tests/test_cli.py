"""What may be relied on from a shell: help that cannot drift, what is printed and written, and exit status."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import numpy as np
import pytest
from tolerances import FP32, FP64, METRIC_FP32, OTHER_BATCH_FP32, SHARE_SUM
from typer.testing import CliRunner

import pgm_fast.train
from pgm_fast.cli.app import app
from pgm_fast.cli.reference import commented_yaml, describe
from pgm_fast.settings import choices_of
from pgm_fast.train.config import Config
from pgm_fast.train.configure import from_yaml, make_config

COMMANDS = [
    "train",
    "resume",
    "evaluate",
    "predict",
    "check-data",
    "interactions",
    "compare",
    "presets",
    "study",
    "sweep",
    "doctor",
    "bench",
]
FAST = [
    "train.epochs=2",
    "train.batch_size=16",
    "train.plots=false",
    "train.logger=[]",
    "train.device=cpu",
    "model.dim=8",
    "model.hidden=8",
]
KEYS = [
    f"{section}.{field.name}" if is_dataclass(owner) else section
    for section, owner in get_type_hints(Config).items()
    for field in (fields(owner) if is_dataclass(owner) else [None])
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_features(path, **changes):
    rng = np.random.default_rng(0)
    label = np.arange(48) % 3
    values = {
        "audio": rng.normal(size=(48, 5)).astype(np.float32) + label[:, None],
        "vision": rng.normal(size=(48, 4)).astype(np.float32),
        "label": label,
        "split": np.array(["train", "train", "valid", "test"] * 12),
        "id": np.array([f"clip {number}" for number in range(48)]),
    }
    values.update(changes)
    np.savez(path, **{key: value for key, value in values.items() if value is not None})
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("data") / "features.npz")


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """(run folder, what train printed)."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, succeed("train", "--data", source, "--out", out, *FAST, "train.plots=true")


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_help_says_what_is_read_and_written_with_examples():
    assert all(name in succeed("--help") for name in COMMANDS)
    for name in COMMANDS:
        text = succeed(name, "--help")
        assert "Reads" in text and "rites" in text and f"Examples:\n  pgm-fast {name}" in text


def test_every_key_is_documented_where_it_is_defined():
    found = [key for section in describe() for key in section.keys]
    assert [key.name for key in found] != []
    assert sorted(key.name for key in found) == sorted(KEYS)
    assert [key.name for key in found if not key.meaning] == []
    assert all(section.meaning for section in describe())


def test_the_meaning_of_a_choice_names_all_that_there_is():
    meanings = {key.name: key.meaning for section in describe() for key in section.keys}
    for section, owner in get_type_hints(Config).items():
        for name, choices in choices_of(owner).items() if is_dataclass(owner) else ():
            missing = [each for each in choices if each not in meanings[f"{section}.{name}"]]
            assert not missing, f"{section}.{name}: {missing}"


def test_train_help_lists_every_key_with_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = succeed("train", "--help")
    for section in describe():
        for key in section.keys:
            assert re.search(rf"^  {re.escape(key.name)}=", text, re.MULTILINE), key.name
    assert re.search(r"^  train.epochs=50\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    "overrides", [[], ["train.epochs=3", "data.modalities=[a,b]", "pgm.rates.a.uni=2", "data.options.n=5"]]
)
def test_show_config_prints_commented_yaml_of_the_same_configuration(overrides):
    text = succeed("train", "--show-config", *overrides)
    assert from_yaml(text) == make_config(None, overrides)
    assert text == commented_yaml(make_config(None, overrides))
    assert "# " in text


@pytest.fixture
def calls(monkeypatch):
    """Configurations and seeds that train would run with."""
    seen = []
    result = {
        "method": "pgm",
        "data": "x",
        "task": "classification",
        "valid": {},
        "test": {},
        "best_epoch": 1,
        "epochs": 1,
        "seeds": [0],
    }
    monkeypatch.setattr(
        pgm_fast.train, "fit", lambda config, **more: seen.append((config, None, more)) or result, raising=False
    )
    fit_seeds = lambda config, seeds, **more: seen.append((config, seeds, more)) or result  # noqa: E731
    monkeypatch.setattr(pgm_fast.train, "fit_seeds", fit_seeds, raising=False)
    return seen


def test_options_are_shortcuts_of_keys_and_win(calls):
    succeed(
        "train",
        "--method",
        "joint",
        "--data",
        "a=b.npz",
        "--out",
        "o",
        "--epochs",
        "3",
        "--seed",
        "4",
        "--device",
        "cpu",
        "train.seed=9",
    )
    keys = ["method=joint", "data.source=a=b.npz", "out=o", "train.epochs=3", "train.seed=4", "train.device=cpu"]
    config, seeds, more = calls[0]
    assert config == make_config(None, keys) and seeds is None
    assert more == {"progress": True, "overwrite": False}
    succeed("train", "--quiet", "--overwrite")
    assert calls[1][2] == {"progress": False, "overwrite": True}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0", "1", "2", "train.epochs=3"],
        ["train.epochs=3", "--seeds", "0", "1", "2"],
        ["--seeds", "0,1,2", "train.epochs=3"],
        ["--seeds=0,1,2", "train.epochs=3"],
        ["--seeds", "0", "1,2", "--epochs", "3"],
        ["--seeds", "0", "1", "2", "--epochs", "3", "--quiet"],
    ],
)
def test_seeds_in_every_way_of_writing(calls, arguments):
    succeed("train", *arguments)
    config, seeds, _ = calls[0]
    assert seeds == [0, 1, 2] and config.train.epochs == 3


def test_seed_and_seeds_exclude_each_other(calls):
    assert invoke("train", "--seed", "1", "--seeds", "1", "2").exit_code == 2
    assert not calls


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "Errno" not in result.stderr, result.output
    return result.stderr.removeprefix("error: ").rstrip()


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_path_in_place_of_a_setting_is_told_the_option_that_takes_it(command, calls, source, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("train: {epochs: 1}")
    assert refusal(command, source).endswith(f"what to train on is given as --data {source}")
    found = refusal(command, config)
    assert found.endswith(f"a file of settings is given as --config {config}" if command == "train" else "SOURCE")
    assert "'nowhere' is not of the form key=value, such as" in refusal(command, "nowhere")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--train.epochs=3"], "train.epochs=3"),
        (["--train.epochs", "3"], "train.epochs=3"),
        (["--pgm.rates.a.uni", "--quiet"], "pgm.rates.a.uni=VALUE"),
    ],
)
def test_a_setting_written_as_an_option_is_told_how_it_is_written(given, meant, calls):
    assert (
        refusal("train", *given) == f"{given[0]} is no option; a configuration value is given without dashes: {meant}"
    )
    assert not calls


def test_a_place_that_cannot_be_written_to_is_named_as_what_it_is(trained, source, tmp_path):
    run, file = trained[0], tmp_path / "taken"
    file.write_text("mine")
    assert f"--out {tmp_path} is a folder; it takes a file, such as" in refusal("predict", run, "--out", tmp_path)
    assert f"has no ending; it takes .npz or .csv, such as {run}" in refusal("predict", run, "--out", f"{run}x")
    assert f"{file} is a file; name a folder" in refusal("predict", run, "--out", file / "p.csv")
    for command in (
        ["compare", run, run, "--out"],
        ["interactions", source, "--out"],
        ["train", "--data", source, "--out"],
        ["sweep", "--data", source, "--search", "train.lr=0.1,0.2", "--out"],
    ):
        assert f"{file} is a file; name a folder" in refusal(*command, file)
        assert f"{file / 'x'} cannot be made: {file} is a file; name a folder" in refusal(*command, file / "x")
    assert file.read_text() == "mine"


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


def test_evaluate_scores_as_the_report_does(trained):
    out, _ = trained
    report = json.loads((out / "report.json").read_text())
    for split in ("valid", "test"):
        scores = json.loads(succeed("evaluate", out, "--split", split, "--json"))
        assert scores["fused"] == report[split]["fused"] and scores["rows"] == 12
    assert f"{report['test']['fused']['accuracy']:.4f}" in succeed("evaluate", out)
    assert json.loads(succeed("evaluate", out, "--checkpoint", "last", "--json"))["checkpoint"] == "last.pt"


def test_predictions_hold_every_row_and_give_the_reported_accuracy(trained, source, tmp_path):
    out, _ = trained
    succeed("predict", out, "--out", tmp_path / "p.csv")
    succeed("predict", out, "--out", tmp_path / "p.npz")
    rows, arrays = read_csv(tmp_path / "p.csv"), np.load(tmp_path / "p.npz")
    original = np.load(source)
    assert [row["id"] for row in rows] == original["id"].tolist() == arrays["id"].tolist()
    assert [row["split"] for row in rows] == original["split"].tolist() == arrays["split"].tolist()
    assert [int(row["index"]) for row in rows] == list(range(48)) == arrays["index"].tolist()
    assert [int(row["label"]) for row in rows] == original["label"].tolist()
    for column in range(3):
        assert np.array_equal(np.float32([row[f"logits.{column}"] for row in rows]), arrays["logits"][:, column])
    assert np.array_equal(arrays["prediction"], arrays["logits"].argmax(axis=1))
    assert arrays["logits.audio"].shape == arrays["logits.vision"].shape == (48, 3)
    for modality in ("audio", "vision"):
        assert np.allclose(arrays[f"share.{modality}"].sum(axis=1), 1, rtol=0, atol=SHARE_SUM)
        assert f"share.{modality}.paired_only" in rows[0]
    test = arrays["split"] == "test"
    accuracy = (arrays["prediction"] == arrays["label"])[test].mean()
    report = json.loads((out / "report.json").read_text())
    assert accuracy == pytest.approx(report["test"]["fused"]["accuracy"], abs=METRIC_FP32)


def test_predict_one_split_and_other_data_without_labels(trained, tmp_path):
    out, _ = trained
    other = write_features(tmp_path / "other.npz", label=None, split=None, id=None)
    succeed("predict", out, "--data", other, "--out", tmp_path / "other.npz.npz")
    own = succeed("predict", out, "--split", "valid", "--out", tmp_path / "valid.npz")
    assert own.startswith("12 rows")
    every, valid = np.load(tmp_path / "other.npz.npz"), np.load(tmp_path / "valid.npz")
    assert "label" not in every and set(valid["split"]) == {"valid"}
    assert np.allclose(every["logits"][valid["index"]], valid["logits"], rtol=0, atol=OTHER_BATCH_FP32)


def test_predictions_per_step_name_sequence_and_step(tmp_path):
    video = np.repeat(["a", "b", "c", "d", "e", "f"], 8)
    split = np.repeat(["train", "train", "train", "valid", "test", "test"], 8)
    source = write_features(tmp_path / "f.npz", video=video, split=split, id=None)
    out = tmp_path / "run"
    succeed("train", "--data", source, "--out", out, "--quiet", "data.group_by=video", *FAST)
    succeed("predict", out, "--out", tmp_path / "p.csv")
    rows = read_csv(tmp_path / "p.csv")
    assert [row["id"] for row in rows] == video.tolist()
    assert [row["split"] for row in rows] == split.tolist()
    assert [int(row["step"]) for row in rows] == list(range(8)) * 6


def test_predictions_of_retrieval_are_embeddings(tmp_path):
    source = write_features(tmp_path / "f.npz", label=None)
    out = tmp_path / "run"
    succeed("train", "--data", source, "--out", out, "--quiet", "data.task=retrieval", "train.lr=1e-3", *FAST)
    succeed("predict", out, "--out", tmp_path / "p.npz")
    arrays = np.load(tmp_path / "p.npz")
    assert "logits" not in arrays
    assert np.allclose(np.linalg.norm(arrays["embedding.audio"], axis=1), 1, rtol=0, atol=FP32)
    assert "recall_at_1" in succeed("evaluate", out)
    assert "map" not in json.loads((out / "report.json").read_text())["test"]["fused"]


def test_epochs_of_retrieval_are_chosen_by_classes_where_there_are_some(tmp_path):
    source = write_features(tmp_path / "f.npz")
    settings = ["data.task=retrieval", "train.monitor=map", "train.lr=1e-3", *FAST]
    succeed("train", "--data", source, "--out", tmp_path / "run", "--quiet", *settings)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for split in ("valid", "test"):
        assert report[split]["fused"]["map"] == np.mean([pair["map"] for pair in report[split]["pairs"].values()])
    assert "map" in succeed("evaluate", tmp_path / "run")
    assert "labels say which are relevant" in succeed("check-data", source, "data.task=retrieval")


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


def test_what_is_said_of_an_absent_modality_is_left_empty(trained, tmp_path):
    out, _ = trained
    other = write_features(tmp_path / "other.npz", label=None, split=None, id=None)
    arrays = dict(np.load(other))
    arrays["vision"][5] = np.nan
    np.savez(other, **arrays)
    succeed("predict", out, "--data", other, "--out", tmp_path / "p.npz")
    found = np.load(tmp_path / "p.npz")
    absent = found["presence.vision"] == 0
    assert absent[5] and np.array_equal(absent, np.isnan(arrays["vision"]).all(axis=1))
    for kind in ("logits", "share"):
        assert np.array_equal(np.isnan(found[f"{kind}.vision"]).all(axis=1), absent)
        assert np.isfinite(found[f"{kind}.audio"]).all()
    assert np.isfinite(found["logits"]).all()


def test_scores_of_training_rows_are_said_to_be_such(trained, source, tmp_path, caplog):
    out, _ = trained
    arrays = dict(np.load(source))
    del arrays["split"]
    np.savez(tmp_path / "moved.npz", **arrays)
    succeed("evaluate", out, "--data", tmp_path / "moved.npz")
    assert "holds the rows that this run was trained on" in caplog.text
    caplog.clear()
    succeed("evaluate", out, "--data", source)
    assert "trained on" not in caplog.text


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
