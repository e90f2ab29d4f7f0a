"""The formulas of the decomposition against numbers worked out by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerances import FP64

from pgm_fast.interactions.bootstrap import intervals
from pgm_fast.interactions.estimates import Interaction, decompose, shift_of, shifted

LOG2 = math.log(2)


def drawn(rows=50):
    rng = np.random.default_rng(0)
    return [rng.normal(size=rows) for _ in range(3)] + [rng.normal(20, 3, size=rows) for _ in range(2)]


def test_decomposition_row_by_row():
    columns = drawn()
    found = decompose(*columns)
    for row, (i_1, i_2, i_12, h_1, h_2) in enumerate(zip(*columns, strict=True)):
        r = min(h_1, h_2) - min(h_1 - i_1, h_2 - i_2)
        expected = (r, i_1 - r, i_2 - r, i_12 - i_1 - i_2 + r)
        assert np.allclose([values[row] for values in found], expected, rtol=0, atol=FP64)


@pytest.mark.parametrize("with_density", [True, False])
def test_sums_are_kept_by_decomposition_and_shift(with_density):
    i_1, i_2, i_12, *entropies = drawn()
    found = shifted(decompose(i_1, i_2, i_12, *(entropies if with_density else ())), 0.37)
    assert np.allclose(found.redundancy + found.uniqueness_1, i_1, rtol=0, atol=FP64)
    assert np.allclose(found.redundancy + found.uniqueness_2, i_2, rtol=0, atol=FP64)
    assert np.allclose(sum(found), i_12, rtol=0, atol=FP64)


@pytest.mark.parametrize(
    ("i_1", "i_2", "i_12", "expected"),
    [
        (0.0, 0.0, LOG2, (0, 0, 0, LOG2)),
        (LOG2, LOG2, LOG2, (LOG2, 0, 0, 0)),
        (LOG2, 0.0, LOG2, (0, LOG2, 0, 0)),
        (0.0, LOG2, LOG2, (0, 0, LOG2, 0)),
    ],
)
def test_noise_free_bits_give_the_textbook_answer(i_1, i_2, i_12, expected):
    """Two bits of equal density: parity, copies, and a private bit on either side, the last two by the shift."""
    raw = decompose(*(np.full(4, value) for value in (i_1, i_2, i_12, 5.0, 5.0)))
    means = Interaction(*(values.mean() for values in raw))
    assert np.allclose(shifted(means, shift_of(means)), expected, rtol=0, atol=FP64)


@pytest.mark.parametrize(
    ("means", "shift"),
    [
        ((0.1, 0.2, 0.3, 0.4), 0.0),
        ((-0.1, 0.2, 0.3, 0.4), 0.1),
        ((0.1, 0.2, 0.3, -0.4), 0.4),
        ((-0.1, -0.2, 0.3, -0.4), 0.4),
        ((0.1, -0.2, 0.3, 0.4), -0.2),
        ((0.1, -0.2, -0.3, 0.4), -0.3),
    ],
)
def test_the_shift_rule(means, shift):
    assert float(shift_of(Interaction(*means))) == pytest.approx(shift, rel=0, abs=FP64)
    many = Interaction(*(np.array([value, value]) for value in means))
    assert np.allclose(shift_of(many), shift, rtol=0, atol=FP64)


def test_intervals_shrink_with_the_root_of_the_rows_and_hold_the_mean():
    rng = np.random.default_rng(1)
    few = Interaction(*(rng.normal(1, 1, 400) for _ in range(4)))
    many = Interaction(*(np.concatenate([values] * 4) for values in few))
    wide, narrow = intervals(few, 2000, 0.95, 0), intervals(many, 2000, 0.95, 0)
    for values, (low, high), (less, more) in zip(few, wide, narrow, strict=True):
        assert low < less < values.mean() < more < high
        assert 0.4 < (more - less) / (high - low) < 0.6
    assert intervals(few, 2000, 0.95, 0) == wide != intervals(few, 2000, 0.95, 1)


def test_intervals_are_those_of_a_plain_loop():
    """The same draws, rows gathered one resample at a time."""
    rng = np.random.default_rng(2)
    values = Interaction(rng.normal(0.02, 1, 60), *(rng.normal(0.5, 1, 60) for _ in range(3)))
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7])))
    counts = draws.multinomial(60, np.full(60, 1 / 60), size=200)
    means = []
    for count in counts:
        rows = np.repeat(np.arange(60), count)
        resampled = Interaction(*(column[rows].mean() for column in values))
        means.append(shifted(resampled, shift_of(resampled)))
    expected = np.quantile(np.array(means, dtype=float), [0.05, 0.95], axis=0).T
    assert np.allclose(intervals(values, 200, 0.9, 7), expected, rtol=0, atol=FP64)
