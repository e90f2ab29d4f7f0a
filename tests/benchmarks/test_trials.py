"""What is tried on a set reads none of its test rows, and is compared with the method as it is, deal by deal."""

from __future__ import annotations

import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def trials(repository, script):
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        yield script("benchmarks/trials.py")
    finally:
        sys.path.remove(str(repository / "benchmarks"))


def test_deals_leave_the_test_rows_out_and_every_class_in_proportion(trials, tmp_path, monkeypatch):
    number = np.arange(400)
    split = np.where(number % 4 == 0, "test", "train")
    np.savez(tmp_path / "made.npz", x=number[:, None].astype(np.float32), label=number // 40, split=split)
    monkeypatch.setattr(trials, "DATA", tmp_path)
    monkeypatch.setitem(trials.SETS, "made", ("made.npz", None, 60, 90))
    first, second = (dict(np.load(trials.deal("made", seed, tmp_path))) for seed in (0, 1))
    assert sorted(first["x"][:, 0]) == list(number[split != "test"])
    for name, rows in {"valid": 60, "test": 90, "train": 150}.items():
        counts = np.bincount(first["label"][first["split"] == name], minlength=10)
        assert counts.sum() == rows and np.ptp(counts) <= 3
    assert (first["split"] != second["split"]).any()


def test_a_variant_is_compared_with_the_method_as_it_is_on_the_same_deals(trials):
    def run(variant, seed, value):
        scores = {"accuracy": value, "nll": 0.0}
        return {"set": "wiki", "variant": variant, "seed": seed, "valid": scores, "held_out": scores}

    runs = [run("pgm", 0, 0.5), run("pgm", 1, 0.6), run("pgm", 2, 0.9)]
    runs += [run("pgm, teachers", 0, 0.51), run("pgm, teachers", 1, 0.63)]
    line = next(line for line in trials.table(runs).splitlines() if "teachers" in line)
    # differences of 1 and 3 points: mean 2, and half of their distance times t of one degree of freedom, 12.706
    assert line.endswith("| 2 | +2.0 [-10.7, 14.7] | +2.0 [-10.7, 14.7] |")
