"""The table of DMIL's gate says what its result file says, and a right gate is told from a wrong one."""

from __future__ import annotations

import pytest
from tolerances import SHARE_SUM


@pytest.fixture(scope="module")
def synthetic_gates(script):
    return script("benchmarks/synthetic_gates.py")


def test_the_committed_table_is_made_from_the_committed_runs(synthetic_gates):
    assert synthetic_gates.TABLE.read_text(encoding="utf-8") == synthetic_gates.table()


def test_a_run_counts_the_samples_whose_largest_weight_is_on_the_right_component(synthetic_gates, tmp_path):
    synthetic_gates.SETTINGS["one epoch"] = {"train.epochs": 1, "model.dim": 8, "model.hidden": 8}
    run = synthetic_gates.measure("one epoch", "mixture", 0, tmp_path / "run")
    assert set(run["gates"]) == set(run["argmax"]) == set(synthetic_gates.TRUTH)
    for kind, weights in run["gates"].items():
        assert sum(weights.values()) == pytest.approx(1, abs=SHARE_SUM)
        if run["argmax"][kind] == 1:
            assert max(weights, key=weights.get) == synthetic_gates.TRUTH[kind]
    assert min(run["argmax"].values()) <= run["argmax_all"] <= max(run["argmax"].values())
