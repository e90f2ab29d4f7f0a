"""What may be relied on: the examples run as they are and do what they say."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pgm_fast.cli.app import app


@pytest.fixture
def example(repository):
    def load(name):
        spec = importlib.util.spec_from_file_location(name, repository / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_drop_in(example, capsys):
    assert example("drop_in").main(steps=60) > 0.9  # text alone tells one of two bits: 0.5
    assert "paired share" in capsys.readouterr().out


def test_own_encoder(example, tmp_path, capsys):
    assert example("own_encoder").main(str(tmp_path / "run"), epochs=4) > 0.6  # tags alone reach 0.59
    assert (tmp_path / "run" / "report.html").exists()
    assert "audio alone" in capsys.readouterr().out


def test_rates(example, capsys):
    found = example("rates").main(steps=3)
    launches = {name: count for name, (count, _) in found.items()}
    assert launches["MultiRateAdamW"] == 1 < launches["torch AdamW, fused"] < launches["torch AdamW"]
    losses = {line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()}
    assert len(losses) == 1  # all three train alike


def test_config(repository, tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    widths = {"text": 6, "audio": 5, "vision": 4}
    modalities = {name: (rng.normal(size=(60, d)) + label[:, None]).astype(np.float32) for name, d in widths.items()}
    modalities["audio"][3, 2] = -np.inf
    split = np.array(["train", "train", "train", "valid", "test"] * 12)
    np.savez(tmp_path / "features.npz", **modalities, label=label, split=split)
    config = repository / "examples" / "config.yaml"
    out = tmp_path / "run"
    arguments = [
        "train",
        "--config",
        config,
        "--data",
        tmp_path / "features.npz",
        "--out",
        out,
        "--epochs",
        "2",
        "train.plots=false",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert set(json.loads((out / "report.json").read_text())["test"]["unimodal"]) == set(widths)
