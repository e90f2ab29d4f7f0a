"""The card of a report says in words what its shares say in numbers, with the calibration that they rest on."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import ROUNDED_7

from pgm_fast.train import fit
from pgm_fast.train.report.card import sentences
from pgm_fast.train.scores.predictions import Predictions
from pgm_fast.train.scores.shares import share_drift, share_intervals

NAMES = ("uni_only", "paired_only", "shared", "unused")


def report(**changes):
    content = {
        "shares": {"text": dict(zip(NAMES, (0.61, 0.04, 0.2, 0.15), strict=True))},
        "share_intervals": {"text": dict(zip(NAMES, (0.02, 0.01, 0.03, 0.02), strict=True))},
        "calibration": {"temperature": {"task": 1.25, "uni/text": 0.8}},
        "epochs": 20,
        "best_epoch": 12,
        "share_drift": 0.01,
    }
    return {**content, **changes}


def test_a_sentence_per_modality_and_one_for_the_ground():
    first, ground = sentences(report())
    assert first.startswith("text: ") and "61 ± 2 % it alone tells" in first and "15 ± 2 % it does not tell" in first
    assert "20 ± 3 % another modality tells as well" in first and "4 ± 1 % is only told together" in first
    assert "task 1.25, uni/text 0.80" in ground


@pytest.mark.parametrize(("drift", "said"), [(0.12, "learn (by up to 0.12 in"), (None, "learn: train longer")])
def test_shares_that_have_not_come_to_rest_carry_a_caution(drift, said):
    _, caution, ground = sentences(report(share_drift=drift))
    assert said in caution and "After 12 of 20 epochs" in caution and "temperatures" in ground


def test_drift_is_the_largest_change_over_the_last_fifth_of_the_epochs():
    def shares(text, sound):
        return {"text": {"uni": text, "paired": 1 - text}, "sound": {"uni": sound, "paired": 0.5}}

    epochs = [shares(0.1 * k, 0.5) for k in range(8)] + [shares(0.7, 0.5 - 0.02 * k) for k in range(3)]
    assert share_drift(epochs) == pytest.approx(0.04, abs=ROUNDED_7)  # eleven epochs: over two of them
    assert share_drift(epochs[:2]) == pytest.approx(0.1, abs=ROUNDED_7)
    assert share_drift(epochs[:1]) is None is share_drift([{}, {}])
    assert share_drift([shares(0.5, 0.5), {"sound": {"uni": None}}]) is None


def test_shares_that_nothing_measured_stands_behind_say_nothing():
    assert sentences(report(calibration=None)) == [] == sentences(report(shares={}))


def test_a_run_that_diverged_says_so_and_has_a_report(tmp_path, caplog):
    settings = {"train.epochs": 1, "train.lr": 1e30, "train.plots": False, "train.logger": [], "model.dim": 8}
    found = fit(method="pgm", data="digits", out=str(tmp_path / "run"), **settings)
    assert found["test"]["fused"] == {} and sentences(found) == []
    assert "training diverged; lower train.lr (now 1e+30)" in caplog.text
    assert (tmp_path / "run" / "report.html").exists()


def test_intervals_cover_the_true_mean_about_19_times_in_20():
    rng = np.random.default_rng(0)
    trials, rows, mean = 400, 200, 0.3
    covered = 0
    for _ in range(trials):
        x = rng.beta(3, 7, rows)
        half = share_intervals(predictions({"a": np.stack([x, 1 - x], axis=1)}))["a"]["uni"]
        covered += abs(x.mean() - mean) <= half
    spread = 4 * np.sqrt(0.95 * 0.05 / trials)
    assert abs(covered / trials - 0.95) < spread


def test_intervals_are_of_the_rows_that_have_the_modality():
    shares = np.array([[0.2, 0.8], [0.4, 0.6], [9.0, 9.0]])
    present = {"a": np.array([True, True, False])}
    found = share_intervals(predictions({"a": shares}, present))
    assert found["a"]["uni"] == pytest.approx(1.96 * 0.1, abs=ROUNDED_7)


def predictions(shares, presence=None):
    n = len(next(iter(shares.values())))
    return Predictions(index=np.arange(n), shares=shares, presence=presence or {})


def test_a_run_of_pgm_has_its_card(tmp_path):
    settings = {"train.epochs": 2, "train.plots": True, "train.logger": [], "model.dim": 8}
    found = fit(method="pgm", data="synthetic", out=str(tmp_path / "run"), **settings)
    assert set(found["calibration"]["temperature"]) == {"task", "paired", "uni/a", "uni/b"}
    assert set(found["share_intervals"]["a"]) == set(NAMES)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(line.split(":")[0] in page for line in sentences(found)) and "it alone tells" in page
