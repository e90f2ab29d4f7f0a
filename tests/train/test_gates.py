"""Mean gates are those of the rows, per class too; synergy is what only all modalities together get right."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import ROUNDED_7

from pgm_fast.train.report.plots.gates import gate_bars
from pgm_fast.train.scores.gates import mean_gates, synergy_score
from pgm_fast.train.scores.predictions import Predictions


def predictions(**changes):
    right, wrong = [0.0, 2.0], [2.0, 0.0]
    values = {
        "index": np.arange(4),
        "labels": np.array([1, 1, 0, 1]),
        "logits": np.array([right, right, right, wrong]),
        "unimodal": {"a": np.array([wrong, wrong, wrong, wrong]), "b": np.array([wrong, right, right, wrong])},
        "gates": {"unique/a": np.array([0.1, 0.2, 0.5, 0.6]), "redundant": np.array([0.9, 0.8, 0.5, 0.4])},
    }
    return Predictions(**{**values, **changes})


def test_means_over_all_rows_and_over_those_of_each_class():
    gates = mean_gates(predictions(), "classification", ["no", "yes"])
    assert gates["all"] == pytest.approx({"unique/a": 0.35, "redundant": 0.65}, abs=ROUNDED_7)
    assert gates["by_class"]["no"] == pytest.approx({"unique/a": 0.5, "redundant": 0.5}, abs=ROUNDED_7)
    assert gates["by_class"]["yes"] == pytest.approx({"unique/a": 0.3, "redundant": 0.7}, abs=ROUNDED_7)
    assert list(mean_gates(predictions(), "classification")["by_class"]) == ["0", "1"]
    assert set(mean_gates(predictions(labels=np.zeros(4)), "regression")) == {"all"}
    assert mean_gates(predictions(gates={}), "classification") == {}


def test_synergy_is_right_together_and_wrong_by_each_alone():
    # row 0: only together; 1: b too; 2: the fused output is wrong; 3: nobody
    assert synergy_score(predictions(), "classification") == 0.25
    # a row where b is missing does not count, in neither number
    presence = {"b": np.array([True, True, True, False])}
    assert synergy_score(predictions(presence=presence), "classification") == pytest.approx(1 / 3, abs=ROUNDED_7)
    one = {"a": predictions().unimodal["a"]}
    for undefined in (predictions(labels=None), predictions(unimodal=one)):
        assert synergy_score(undefined, "classification") is None
    assert synergy_score(predictions(), "regression") is None


def test_bars_add_up_and_say_how_many_classes_they_leave_out():
    classes = {str(k): {"unique/a": k / 40, "redundant": 1 - k / 40} for k in range(40)}
    figure = gate_bars({"gates": {"all": {"unique/a": 0.5, "redundant": 0.5}, "by_class": classes}})
    (axes,) = figure.axes
    right = [patch.get_x() + patch.get_width() for patch in axes.patches[len(axes.patches) // 2 :]]
    assert right == pytest.approx([1.0] * 25, abs=ROUNDED_7)
    assert "16 more classes" in axes.get_title(loc="left")
    assert gate_bars({"gates": {}}) is None and gate_bars({}) is None
