"""A sweep keeps to its budget, is chosen on validation alone, and ends the same however often it was stopped."""

from __future__ import annotations

import json
from importlib import util

import numpy as np
import pytest

from pgm_fast.data import FeatureSet
from pgm_fast.errors import ConfigError
from pgm_fast.sweep import Choices, Interval, read_space, run, run_sweep

SEARCH = ["train.lr=log:1e-4..1e-1", "model.layers=1..2", "model.dropout=0,0.2"]
SETTINGS = {"method": "joint", "model.dim": 8, "model.hidden": 8, "train.epochs": 1, "train.device": "cpu"}


def features(rows: int = 60) -> FeatureSet:
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 3
    modalities = {m: (rng.normal(size=(rows, 4)) + label[:, None]).astype(np.float32) for m in "ab"}
    split = np.array(["train", "train", "valid", "test"])[np.arange(rows) // 3 % 4]
    return FeatureSet("tiny", modalities, "classification", label, split)


def test_what_may_be_searched_and_how_it_is_written():
    assert read_space(SEARCH) == {
        "train.lr": Interval(1e-4, 1e-1, log=True),
        "model.layers": Interval(1, 2, whole=True),
        "model.dropout": Choices(("0", "0.2")),
    }
    assert read_space({"train.lr": [1e-3, 3e-3]}) == {"train.lr": Choices(("0.001", "0.003"))}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ([], "needs something to search"),
        (["train.lr"], "KEY=VALUES"),
        (["train.lr=1..0.1"], "the lower first"),
        (["train.lr=log:0..0.1"], "above 0 after log:"),
        (["model.layers=1..2.5"], "two whole numbers"),
        (["model.dropout=0.1"], "two values or more"),
        (["train.lr=1..2", "train.lr=1..3"], "twice"),
        (["train.seed=1,2"], "give several to --seeds"),
        (["data.resplit_seed=0..9"], "not be scored alike"),
    ],
)
def test_what_is_no_search_is_refused_in_one_line(search, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read_space(search)
    assert "\n" not in str(caught.value)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs optuna, not installed here: pip install "pgm-fast\[sweep\]"'):
        run_sweep(SETTINGS, SEARCH, tmp_path / "sweep")


needs_optuna = pytest.mark.skipif(util.find_spec("optuna") is None, reason='needs pip install "pgm-fast[sweep]"')


@needs_optuna
def test_values_outside_their_range_and_unknown_settings_are_refused_before_anything_is_trained(tmp_path):
    for search, said in ((["model.dropout=0.5..1.5"], "model.dropout=1.5"), (["train.learning=1..2"], "unknown")):
        with pytest.raises(ConfigError, match=said):
            run_sweep(SETTINGS, search, tmp_path / "sweep", data=features())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
@needs_optuna
def test_three_trials_stopped_after_each_are_three_trials_at_once(tmp_path, monkeypatch):
    data, whole, parts = features(), tmp_path / "whole", tmp_path / "parts"
    content = run_sweep(SETTINGS, SEARCH, whole, trials=3, data=data)
    original = run.fit_seeds

    def stopped(*args, **kwargs):
        original(*args, **kwargs)
        raise SystemExit(0)  # with the training done and its value not yet told

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "fit_seeds", stopped)
        run_sweep(SETTINGS, SEARCH, parts, trials=3, data=data)
    run_sweep(SETTINGS, SEARCH, parts, trials=2, data=data)
    assert run_sweep(SETTINGS, SEARCH, parts, trials=3, data=data) == content
    assert [trial["trial"] for trial in content["trials"]] == [1, 2, 3]
    best = json.loads((parts / "best" / "seed-0" / "report.json").read_text())
    assert best["valid"]["fused"]["accuracy"] == content["best"]["valid"]
    assert content["best"]["valid"] == max(trial["valid"] for trial in content["trials"])
    assert not list((parts / "trials").iterdir())
    assert {"sweep.json", "sweep.md", "sweep.db", "history.png", "settings.png"} <= {p.name for p in parts.iterdir()}
    assert "test" not in json.dumps(content)
    with pytest.raises(ConfigError, match=r"holds another sweep: seeds is \[1\] and was \[0\]"):
        run_sweep(SETTINGS, SEARCH, parts, trials=3, seeds=[1], data=data)
    with pytest.raises(ConfigError, match="the data differs"):
        run_sweep(SETTINGS, SEARCH, parts, trials=3, data=features(72))
