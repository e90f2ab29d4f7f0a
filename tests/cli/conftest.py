"""A run that was trained from the command line, and calls that train nothing."""

from __future__ import annotations

import pytest
from cli_calls import FAST, succeed, write_features

import pgm_fast.train


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("data") / "features.npz")


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """(run folder, what train printed)."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, succeed("train", "--data", source, "--out", out, *FAST, "train.plots=true")


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
