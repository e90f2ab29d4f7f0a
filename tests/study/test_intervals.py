"""Intervals are those of the t-test, and those of splits that share rows are wider."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from tolerances import FP64, T_QUANTILE

from pgm_fast.study.intervals import moments, paired_interval

VALUES = st.lists(st.integers(-100, 100).map(lambda x: x / 100), min_size=2, max_size=12)


@given(VALUES)
def test_the_interval_is_that_of_the_t_test(differences):
    found = paired_interval(differences)
    if len(set(differences)) == 1:
        assert found["low"] == pytest.approx(found["high"], rel=FP64, abs=FP64)
        return
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), rel=T_QUANTILE, abs=T_QUANTILE)


@given(VALUES, st.floats(0.01, 1))
def test_splits_that_share_rows_have_wider_intervals(differences, overlap):
    plain, corrected = paired_interval(differences), paired_interval(differences, overlap)
    count = len(differences)
    factor = math.sqrt(1 + count * overlap)
    half = (plain["high"] - plain["mean"]) * factor
    assert corrected["high"] - corrected["mean"] == pytest.approx(half, rel=FP64, abs=FP64)


def test_one_value_has_no_deviation_and_one_pair_no_interval():
    assert moments([0.5]) == {"mean": 0.5, "sd": None, "n": 1}
    assert paired_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
