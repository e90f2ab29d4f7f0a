"""How pairs of modalities become one statement on each, and how two sizes are read as three masses."""

from __future__ import annotations

import pytest
from tolerances import FP64

from pgm_fast.interactions.estimates import Interaction


@pytest.fixture(scope="module")
def shares_real(script):
    return script("benchmarks/shares_real.py")


def test_the_committed_table_is_made_from_the_committed_runs(shares_real):
    assert shares_real.TABLE.read_text(encoding="utf-8") == shares_real.table()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_what_is_unique_beside_one_modality_may_be_shared_with_another(shares_real, scale):
    pairs = {
        ("a", "b"): (0.1, 0.6, 0.2, 0.1),
        ("a", "c"): (0.7, 0.0, 0.0, 0.0),
        ("b", "c"): (0.2, 0.1, 0.5, 0.2),
    }
    found = shares_real.per_modality({k: Interaction(*(scale * value for value in v)) for k, v in pairs.items()})
    assert found["a"] == pytest.approx({"unique": 0.0, "redundant": 0.7, "synergistic": 0.1}, rel=FP64, abs=FP64)
    assert found["b"] == pytest.approx({"unique": 0.1, "redundant": 0.2, "synergistic": 0.2}, rel=FP64, abs=FP64)
    assert found["c"] == pytest.approx({"unique": 0.0, "redundant": 0.7, "synergistic": 0.2}, rel=FP64, abs=FP64)


def test_the_greatest_overlap_keeps_the_sizes_of_both_sides(shares_real):
    apart = {("set", "weak"): {"unique": 0.4, "redundant": 0.0, "synergistic": 0.5}}
    (found,) = shares_real.overlapping(apart).values()
    assert found == pytest.approx({"unique": 0.0, "redundant": 0.4, "synergistic": 0.1}, rel=FP64, abs=FP64)


def test_agreement_is_that_of_ranks_whatever_the_scale(shares_real):
    one = {("set", m): {"unique": u, "redundant": r, "synergistic": 0.0} for m, u, r in ("a12", "b21", "c33")}
    one = {place: {q: float(value) for q, value in of.items()} for place, of in one.items()}
    other = {place: {**of, "unique": of["unique"] ** 2, "redundant": -of["redundant"]} for place, of in one.items()}
    assert shares_real.agreement(one, other, ["unique"]) == pytest.approx(1, rel=FP64, abs=0)
    assert shares_real.agreement(one, other, ["redundant"]) == pytest.approx(-1, rel=FP64, abs=0)
