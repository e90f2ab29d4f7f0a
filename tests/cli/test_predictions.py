"""What predict and evaluate say of a run's rows and of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_calls import FAST, read_csv, succeed, write_features
from tolerances import FP32, METRIC_FP32, OTHER_BATCH_FP32, SHARE_SUM


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
