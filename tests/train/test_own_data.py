"""A run is scored on its own data and continued with its own configuration; other data is coded as the run's."""

from __future__ import annotations

import numpy as np
import pytest

from pgm_fast.errors import CheckpointError, ConfigError, DataError
from pgm_fast.train import evaluate, fit, fit_seeds, predict, resume

NAMES = np.array(["cat", "dog", "owl"])
SMALL = {"model.dim": 8, "model.hidden": 8, "model.heads": 2, "train.epochs": 6, "train.lr": 1e-2}
QUIET = {"train.plots": False, "train.logger": []}


def write(path, keep=slice(None), labels=True, roll=0):
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=240)
    features = rng.normal(size=(240, 6)).astype(np.float32)
    features[:, :3] += 4 * np.eye(3, dtype=np.float32)[classes]
    arrays = {"a": features[keep], "b": rng.normal(size=(240, 4)).astype(np.float32)[keep]}
    if labels:
        arrays["label"] = NAMES[np.roll(classes, roll)][keep]
    np.savez(path, **arrays)
    return classes


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "own.npz")
    fit(method="joint", data=str(tmp_path / "own.npz"), out=str(tmp_path / "run"), **SMALL, **QUIET)
    return tmp_path / "run"


def test_classes_of_another_file_are_coded_as_the_runs(run, tmp_path):
    classes = write(tmp_path / "own_again.npz")
    write(tmp_path / "fewer.npz", keep=classes > 0)
    # without cat, dog and owl would be numbers 0 and 1: nearly all rows wrong
    assert evaluate(run, data=str(tmp_path / "fewer.npz"))["fused"]["accuracy"] > 0.8


def test_one_unlabelled_row_is_enough_for_a_prediction(run, tmp_path):
    write(tmp_path / "one.npz", keep=slice(1), labels=False)
    assert predict(run, data=str(tmp_path / "one.npz")).logits.shape == (1, 3)


def test_a_changed_file_is_not_scored_as_the_runs_own(run, tmp_path):
    write(tmp_path / "own.npz", roll=1)
    with pytest.raises((CheckpointError, ConfigError, DataError), match="label"):
        evaluate(run)


def test_seeds_of_other_data_are_not_reused(tmp_path):
    settings = {"method": "joint", **SMALL, **QUIET, "out": str(tmp_path / "seeds")}
    write(tmp_path / "own.npz")
    fit_seeds({"data.source": str(tmp_path / "own.npz"), **settings}, [0])
    write(tmp_path / "own.npz", roll=1)
    with pytest.raises(ConfigError, match="data other than"):
        fit_seeds({"data.source": str(tmp_path / "own.npz"), **settings}, [0])


def test_an_edited_configuration_does_not_continue_a_run(run):
    config = run / "config.yaml"
    (run / "report.json").unlink()
    config.write_text(config.read_text().replace("batch_size: 64", "batch_size: 32"))
    with pytest.raises(CheckpointError, match=r"train.batch_size is 32 and was 64"):
        resume(run)


@pytest.mark.parametrize("method", ["joint", "ensemble", "pgm", "dmil"])
def test_a_file_without_a_modality_is_predicted_as_one_where_it_is_absent_in_every_row(method, tmp_path, caplog):
    write(tmp_path / "own.npz")
    settings = {**SMALL, **QUIET, "train.epochs": 1}
    if method == "dmil":
        settings |= {"dmil.stage_epochs": [1, 1, 1]}
    fit(method=method, data=str(tmp_path / "own.npz"), out=str(tmp_path / "run"), **settings)
    with np.load(tmp_path / "own.npz") as arrays:
        a = arrays["a"]
    absent = {"b": np.zeros((240, 4), np.float32), "presence": np.tile([True, False], (240, 1))}
    np.savez(tmp_path / "marked.npz", a=a, **absent)
    np.savez(tmp_path / "without.npz", a=a)
    marked = predict(tmp_path / "run", data=str(tmp_path / "marked.npz"))
    with caplog.at_level("WARNING"):
        without = predict(tmp_path / "run", data=str(tmp_path / "without.npz"))
    assert "without lacks b, which the model knows" in caplog.text
    assert np.array_equal(without.logits, marked.logits) and not without.presence["b"].any()


def test_rows_of_nan_count_as_absent_in_training(tmp_path, caplog):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(60, 4)), "b": rng.normal(size=(60, 3)) + 100, "label": np.arange(60) % 3}
    held = rng.random(60) < 0.7
    np.savez(tmp_path / "marked.npz", **arrays, presence=np.stack([np.ones(60, bool), held], 1))
    arrays["b"][~held] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    settings = {**SMALL, **QUIET, "train.epochs": 1}
    with caplog.at_level("WARNING"):
        reports = [
            fit(method="joint", data=str(tmp_path / f"{name}.npz"), out=str(tmp_path / name), **settings)
            for name in ("marked", "nan")
        ]
    assert (
        f"b, row {np.flatnonzero(~held)[0]}: {(~held).sum()} rows are NaN, first this one: they lack b" in caplog.text
    )
    assert reports[0]["test"] == reports[1]["test"]
