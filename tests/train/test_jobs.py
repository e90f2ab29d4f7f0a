"""Training and using a model from Python: what goes in, what comes out, and what is said when they do not fit."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerances import FP64, OTHER_BATCH_FP32
from torch import nn

from pgm_fast.data import FeatureSet
from pgm_fast.errors import BackendError, CheckpointError, ConfigError, DataError
from pgm_fast.train import Config, Predictions, evaluate, extract_features, fit, fit_seeds, predict, resume
from pgm_fast.train.configure import make_config

SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.lr": 0.01,
    "train.device": "cpu",
    "train.plots": False,
    "train.logger": [],
}


def features(**changes) -> FeatureSet:
    rng = np.random.default_rng(0)
    label = np.arange(120) % 3
    modalities = {m: (rng.normal(size=(120, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    split = np.array(["train", "train", "train", "valid", "test"])[np.arange(120) // 3 % 5]
    return dataclasses.replace(FeatureSet("tiny", modalities, "classification", label, split), **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    report = fit(data=features(), out=str(out), **SETTINGS)
    return out, report


def test_a_configuration_may_be_a_file_a_mapping_or_an_object(tmp_path, run):
    _, expected = run
    config = make_config(None, {**SETTINGS, "method": "pgm"})
    (tmp_path / "config.yaml").write_text(
        "train: {epochs: 2, batch_size: 16, lr: 0.01, device: cpu, plots: false, logger: []}\n"
        "model: {dim: 8, hidden: 8}"
    )
    for number, given in enumerate((config, SETTINGS, tmp_path / "config.yaml")):
        report = fit(given, data=features(), out=str(tmp_path / str(number)))
        assert report["test"] == expected["test"]
    assert config == make_config(None, {**SETTINGS, "method": "pgm"})


def test_plots_events_and_page_are_written_where_asked(tmp_path):
    out = tmp_path / "run"
    fit(
        data=features(),
        out=str(out),
        **{**SETTINGS, "train.plots": True, "train.logger": ["tensorboard"], "train.epochs": 1},
    )
    page = (out / "report.html").read_text()
    plots = sorted(p.name for p in (out / "plots").iterdir())
    assert "learning_curves.png" in plots and all(name in page for name in plots)
    assert list((out / "tensorboard").glob("events.*"))


def test_evaluate_gives_the_scores_of_the_report(run):
    out, report = run
    for split in ("valid", "test"):
        scores = evaluate(out, data=features(), split=split)
        assert {key: scores[key] for key in report[split]} == report[split]
    assert scores["shares"] == report["shares"] and scores["rows"] == 24 and scores["epoch"] == report["best_epoch"]
    assert evaluate(out, data=features(), checkpoint="last")["epoch"] == 2
    assert (
        evaluate(out, data=features(), checkpoint=str(out / "checkpoints" / "best.pt"))["fused"]
        == report["test"]["fused"]
    )


def test_predictions_are_of_every_row_in_order_whatever_is_known_of_labels(run):
    out, _ = run
    whole = predict(out, data=features())
    assert isinstance(whole, Predictions)
    assert np.array_equal(whole.index, np.arange(120)) and np.array_equal(whole.labels, features().labels)
    bare = predict(out, data=features(labels=None, task="retrieval", split=np.full(120, "train")))
    assert bare.labels is None and bare.losses == {}
    np.testing.assert_array_equal(bare.logits, whole.logits)
    part = predict(out, data=features(), split="test")
    assert np.array_equal(part.index, features().rows("test"))
    np.testing.assert_allclose(part.logits, whole.logits[part.index], rtol=0, atol=OTHER_BATCH_FP32)
    assert {*whole.unimodal} == {*whole.shares} == {"a", "b"}


def test_features_are_those_of_the_partitions(run):
    out, _ = run
    found = extract_features(out, data=features())
    assert set(found) == {"a/uni", "a/paired", "b/uni", "b/paired"}
    assert all(values.shape == (120, 8) and np.isfinite(values).all() for values in found.values())


def test_modalities_are_matched_by_name(run):
    out, report = run
    data = features()
    turned = dataclasses.replace(
        data, modalities={"b": data.modalities["b"], "c": data.modalities["a"], "a": data.modalities["a"]}
    )
    assert evaluate(out, data=turned)["fused"] == report["test"]["fused"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": {"a": np.zeros((120, 5), np.float32)}}, "tiny lacks b"),
        (
            {"modalities": {"a": np.zeros((120, 6), np.float32), "b": np.zeros((120, 7), np.float32)}},
            r"a: shape \[120, 6\].*\[N, 5\]",
        ),
        (
            {"modalities": {"a": np.zeros((120, 4, 5), np.float32), "b": np.zeros((120, 7), np.float32)}},
            r"a: shape \[120, 4, 5\]",
        ),
        (
            {"task": "regression", "labels": np.zeros(120, np.float32)},
            "is a regression set.*trained for classification",
        ),
        ({"labels": np.arange(120) % 4}, "has 4 classes.*trained with 3"),
        ({"split": np.full(120, "train")}, "no rows in the test split; it has train"),
        ({"labels": None}, "no labels to score"),
    ],
)
def test_data_that_does_not_fit_is_named(run, changes, message):
    with pytest.raises(DataError, match=message):
        evaluate(run[0], data=features(**changes))


def test_wrong_names_are_refused(run, tmp_path):
    out, _ = run
    with pytest.raises(ConfigError, match="'dev'.*train, valid, test"):
        evaluate(out, data=features(), split="dev")
    with pytest.raises(ConfigError, match="'all'.*train, valid, test or None"):
        predict(out, data=features(), split="all")
    with pytest.raises(CheckpointError, match="nothing.pt does not exist"):
        evaluate(out, data=features(), checkpoint="nothing.pt")
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        evaluate(tmp_path, data=features())
    with pytest.raises(DataError, match="'tiny' that a program made.*data="):
        evaluate(out)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"split": np.array(["train", "test"] * 60)}, {}, "no rows in the valid split"),
        ({"split": np.array(["valid", "test"] * 60)}, {}, "no train rows"),
        ({"labels": None}, {}, "classification needs labels"),
        (
            {"labels": None, "task": "retrieval"},
            {"data.task": "classification"},
            "no labels, but data.task is classification",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_named_and_nothing_written(tmp_path, changes, settings, message):
    with pytest.raises(DataError, match=message):
        fit(data=features(**changes), out=str(tmp_path / "run"), **SETTINGS, **settings)
    assert not (tmp_path / "run").exists()


def test_without_test_rows_the_report_says_so(tmp_path):
    report = fit(data=features(split=np.array(["train", "valid"] * 60)), out=str(tmp_path / "run"), **SETTINGS)
    assert report["test"] == {"fused": {}, "unimodal": {}} and report["valid"]["fused"] and report["shares"]


def test_settings_of_another_method_are_said_to_have_no_effect(tmp_path, caplog):
    fit(method="joint", data=features(), out=str(tmp_path / "run"), **SETTINGS, **{"pgm.chunk": 2})
    assert "set without effect, since method joint does not read it: pgm.chunk" in caplog.text


def test_a_run_is_not_overwritten_unless_asked(tmp_path):
    out = tmp_path / "run"
    fit(data=features(), out=str(out), **SETTINGS)
    (out / "notes.txt").write_text("mine")
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"holds a finished run already.*--overwrite"):
        fit(data=features(), out=str(out), **SETTINGS)
    with pytest.raises(DataError):
        fit(data=features(labels=None), out=str(out), overwrite=True, **SETTINGS)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    fit(data=features(), out=str(out), overwrite=True, **SETTINGS, **{"train.seed": 1})
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2 and (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "report.json").read_text())["seed"] == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        fit(data=features(), out=str(tmp_path / "file"), **SETTINGS)


def test_a_backend_that_cannot_serve_is_named_with_the_setting_that_asked_for_it(tmp_path):
    out = str(tmp_path / "run")
    said = r"train\.backend=triton cannot train this: .*; set train\.backend=auto, .* or with --overwrite"
    with pytest.raises(BackendError, match=said) as found:
        fit(data=features(), out=out, **SETTINGS, **{"train.backend": "triton"})
    assert "\n" not in str(found.value)
    fit(data=features(), out=out, overwrite=True, **SETTINGS, **{"train.backend": "auto"})


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 8)

    def forward(self, x):
        return self.linear(x).tanh()


def test_encoders_of_ones_own_are_trained_as_copies_and_asked_for_again(tmp_path):
    torch.manual_seed(0)
    encoder, out = Own(), tmp_path / "run"
    before = encoder.linear.weight.clone()
    report = fit(data=features(), encoders={"a": encoder}, out=str(out), **SETTINGS)
    assert torch.equal(encoder.linear.weight, before)
    state = torch.load(out / "checkpoints" / "best.pt", weights_only=True)["model"]
    trained = [value for key, value in state.items() if value.shape == before.shape and "encoders" in key]
    assert len(trained) == 1 and not torch.equal(trained[0], before)
    assert evaluate(out, data=features(), encoders={"a": Own()})["fused"] == report["test"]["fused"]
    with pytest.raises(CheckpointError, match="handed in for: a; given now: none"):
        evaluate(out, data=features())
    with pytest.raises(CheckpointError, match="weights do not fit"):
        evaluate(out, data=features(), encoders={"a": nn.Linear(5, 8)})
    with pytest.raises(ConfigError, match="given for c; the data has a, b"):
        fit(data=features(), encoders={"c": Own()}, out=str(tmp_path / "other"), **SETTINGS)


def test_seeds_are_summarised_and_trained_once(tmp_path, monkeypatch):
    out = tmp_path / "seeds"
    encoder = Own()
    summary = fit_seeds(SETTINGS, [0, 1], data=features(), encoders={"a": encoder}, out=str(out))
    reports = [json.loads((out / f"seed-{seed}" / "report.json").read_text()) for seed in (0, 1)]
    values = [report["test"]["fused"]["accuracy"] for report in reports]
    assert summary["seeds"] == [0, 1] and summary == json.loads((out / "summary.json").read_text())
    assert summary["test"]["fused"]["accuracy"]["mean"] == pytest.approx(np.mean(values), abs=FP64)
    assert summary["test"]["fused"]["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1), abs=FP64)
    # Each seed is trained as if it were alone: nothing of the first reaches the second.
    alone = fit(SETTINGS, data=features(), encoders={"a": encoder}, out=str(tmp_path / "alone"), **{"train.seed": 1})
    assert alone["test"] == reports[1]["test"]
    (out / "seed-1" / "report.json").unlink()
    times = {p: p.stat().st_mtime_ns for p in (out / "seed-0").rglob("*.pt")}
    again = fit_seeds(SETTINGS, [0, 1], data=features(), encoders={"a": encoder}, out=str(out))
    assert again == summary and times == {p: p.stat().st_mtime_ns for p in (out / "seed-0").rglob("*.pt")}
    with pytest.raises(ConfigError, match="holds a finished run"):
        fit_seeds(SETTINGS, [0], data=features(), encoders={"a": encoder}, out=str(out), **{"train.lr": 0.5})
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(ConfigError, match="seeds="):
            fit_seeds(SETTINGS, seeds, data=features(), out=str(out))


def test_progress_is_a_line_per_epoch_where_there_is_no_terminal(tmp_path, capsys):
    fit(data=features(), out=str(tmp_path / "run"), progress=True, **SETTINGS)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and "valid accuracy" in lines[0] and captured.out == ""


def test_a_run_from_a_relative_source_resumes_from_elsewhere(tmp_path, monkeypatch):
    data = features()
    np.savez(tmp_path / "tiny.npz", **data.modalities, label=data.labels, split=data.split)
    monkeypatch.chdir(tmp_path)
    report = fit(data="tiny.npz", out="run", **SETTINGS)
    (tmp_path / "run" / "report.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run")["test"] == report["test"]
    assert evaluate(tmp_path / "run")["fused"] == report["test"]["fused"]


def test_unlabelled_files_can_be_predicted(tmp_path, run):
    data = features()
    np.savez(tmp_path / "new.npz", **data.modalities)
    predictions = predict(run[0], data=str(tmp_path / "new.npz"))
    assert predictions.labels is None
    np.testing.assert_array_equal(predictions.logits, predict(run[0], data=data).logits)


def test_importing_the_package_loads_nothing_that_is_not_needed():
    code = (
        "import sys, torch; before = set(sys.modules); import pgm_fast.train as t; assert 'fit' in dir(t)\n"
        "heavy = {'numpy', 'matplotlib', 'tensorboard', 'omegaconf', 'torchmetrics', 'rich', 'sklearn'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))\n"
        "t.fit; print(sorted({'tensorboard', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[]", "[]"]


def test_the_public_names_are_there():
    import pgm_fast.train as train

    assert train.Config is Config
    assert all(getattr(train, name) is not None for name in train.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        train.nothing  # noqa: B018
